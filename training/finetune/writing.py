"""Translation and summarization: a text is read, another is written.

An encoder-decoder reads the source with its encoder and writes with its decoder. A causal model goes on from a prompt
that has the source in it; only what it writes is learned. Either way the target ends with the end token, which is learned,
and the loss is ours on the logits: `labels` are never handed to the model, which would shift them once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedTokenizerBase

from spark_jobs.errors import DataError, RequestError
from training.finetune.generation import PROMPT, TextTask, answer_perplexity, check_causal, seen
from training.finetune.task import Example, Prediction, Row, TaskInputs, Unusable, pad
from training.finetune_spec import TaskSpec
from training.metrics.bootstrap import Bootstrap
from training.metrics.score import Score
from training.metrics.summarization import rouge_scores
from training.metrics.translation import bleu, chrf
from training.pretrain.loss import IGNORED

TEXT = "{text}"
PROMPTS = {"translation": "{text}\nTranslation:\n", "summarization": "{text}\nSummary:\n"}  # of a causal model


def writing_task(spec: TaskSpec, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> CausalWriting:
    """Raises: RequestError, DataError if the base cannot write, or the prompt has no place for the source."""
    if spec.prompt and TEXT not in spec.prompt:
        raise RequestError(f"task.prompt {spec.prompt!r} has no {TEXT}: the source would not be read; put it in")
    if config.is_encoder_decoder:
        return EncodedWriting(spec, tokenizer, config)
    check_causal(spec, config)
    return CausalWriting(spec, tokenizer)


class CausalWriting(TextTask):
    """text, target. input_ids: beginning-of-text if there is one, prompt, target, end token."""

    def encode(self, row: Row) -> list[Example]:
        text, target = row["text"] or "", row["target"] or ""
        if not text.strip():
            raise Unusable("empty_text")
        if not target.strip():
            raise Unusable("no_target")
        self.refuse_special(text)
        self.refuse_special(target)
        features = self.features_of(text, self.target_ids(target))
        return [Example(row["id"], features, len(features["input_ids"]) + len(features.get("target_ids", ())))]

    def features_of(self, text: str, target: list[int]) -> dict[str, Any]:
        prompt = fitting(text, self.prompt_ids, self.spec.max_length)
        labels = [IGNORED] * len(prompt) + target
        return {"input_ids": prompt + target, "labels": labels, PROMPT: prompt}

    def prompt_ids(self, text: str) -> list[int]:
        """As `nightmill generate` and the served model begin."""
        start = [] if self.tokenizer.bos_token_id is None else [int(self.tokenizer.bos_token_id)]
        filled = (self.spec.prompt or PROMPTS[self.spec.kind]).replace(TEXT, text)
        return start + list(self.tokenizer(filled, add_special_tokens=False)["input_ids"])

    def target_ids(self, target: str) -> list[int]:
        """At most max_target_length tokens, the end token among them. Raises: Unusable if nothing but that is left."""
        return self.ended(self.tokenizer(target, add_special_tokens=False)["input_ids"])

    def ended(self, ids: Sequence[int]) -> list[int]:
        kept = list(ids[:-1] if ids and ids[-1] == self.end_id else ids)[: self.spec.max_target_length - 1]
        if all(number in self.special_ids and number != self.tokenizer.unk_token_id for number in kept):
            raise Unusable("no_target")
        return [*kept, self.end_id]

    def score(self, rows: Sequence[Row], predictions: Mapping[str, list[Prediction]], seed: int) -> dict[str, Score]:
        bootstrap = Bootstrap(seed=seed)
        written = [next((p["text"] for p in predictions[row["id"]]), None) for row in rows]
        wanted = [[row["target"] or ""] for row in rows]
        likelihood = {"perplexity": answer_perplexity(predictions, bootstrap)}
        if self.spec.kind == "translation":
            chrfs = {"chrf": chrf(written, wanted, bootstrap)}
            return chrfs | {"bleu": bleu(written, wanted, self.spec.language, bootstrap)} | likelihood
        rouges = rouge_scores(written, wanted, bootstrap)
        return {"rougeL": rouges["rougeL"]} | rouges | {"chrf": chrf(written, wanted, bootstrap)} | likelihood


class EncodedWriting(CausalWriting):
    """Of an encoder-decoder. Decoder inputs: the start token, then the target up to its last but one."""

    auto_class = AutoModelForSeq2SeqLM
    peft_type = "SEQ_2_SEQ_LM"

    def __init__(self, spec: TaskSpec, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
        """Raises: DataError if the configuration does not say what the decoder starts from."""
        super().__init__(spec, tokenizer)
        start = getattr(config, "decoder_start_token_id", None)
        if start is None:
            raise DataError(
                f"task.kind {spec.kind}: config.json of the {config.model_type} base has no decoder_start_token_id; set it to "
                "the token its decoder was trained to start from"
            )
        self.start_id = int(start)

    def features_of(self, text: str, target: list[int]) -> dict[str, Any]:
        return {"input_ids": fitting(text, self.prompt_ids, self.spec.max_length), "target_ids": target}

    def prompt_ids(self, text: str) -> list[int]:
        """What the encoder reads, with whatever the tokenizer itself puts around it."""
        return list(self.tokenizer((self.spec.prompt or TEXT).replace(TEXT, text))["input_ids"])

    def target_ids(self, target: str) -> list[int]:
        return self.ended(self.tokenizer(text_target=target)["input_ids"])

    def collate(self, examples: Sequence[Example]) -> TaskInputs:
        sources = [example.features["input_ids"] for example in examples]
        targets = [example.features["target_ids"] for example in examples]
        inputs = {
            "input_ids": pad(sources, self.pad_id),
            "attention_mask": seen(sources),
            "decoder_input_ids": pad([[self.start_id, *ids[:-1]] for ids in targets], self.pad_id),
            "decoder_attention_mask": seen(targets),
        }
        return TaskInputs(inputs, pad(targets, IGNORED), tuple(example.id for example in examples))

    def read(self, inputs: TaskInputs) -> tuple[Tensor, Tensor]:
        return inputs.model["input_ids"], inputs.model["attention_mask"]

    def num_given(self, ids_BT: Tensor) -> int:
        """The decoder's start."""
        return 1

    def begun(self, inputs: TaskInputs) -> list[list[int]]:
        return [[self.start_id] for _ in inputs.ids]

    def after(self, model: nn.Module, inputs: TaskInputs, going: Sequence[int], ids: Sequence[Sequence[int]]) -> Any:
        """All of `ids` are of one length: those that end are no longer `going`."""
        device = next(model.parameters()).device
        sources_BT, mask_BT = (tensor_BT[list(going)].to(device) for tensor_BT in self.read(inputs))
        decoded = {
            "decoder_input_ids": pad(ids, self.pad_id).to(device),
            "decoder_attention_mask": seen(ids).to(device),
        }
        return model(input_ids=sources_BT, attention_mask=mask_BT, **decoded)


def fitting(text: str, ids_of: Callable[[str], list[int]], max_tokens: int) -> list[int]:
    """Tokens of a prompt with `text` in it, the text cut at its end until they are at most `max_tokens`. What the prompt
    says after the text stays.

    Raises: Unusable if nothing of the text would be left.
    """
    ids, around = ids_of(text), len(ids_of(""))
    while len(ids) > max_tokens:
        share = max(0, max_tokens - around) / max(1, len(ids) - around)
        text = text[: min(len(text) - 1, int(len(text) * share))].rstrip()
        if not text:
            raise Unusable("no_text_left")
        ids = ids_of(text)
    return ids
