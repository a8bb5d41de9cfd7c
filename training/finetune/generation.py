"""What tasks share whose answer is a text: the loss of its tokens, their likelihood, and writing one.

Padding of what is learned stands on the right, that of prompts on the left, so that all new tokens of a batch stand in
the same columns. Both are hidden by attention masks made of lengths: padding may have the end token's id
(transformers#23530), and the end token must be learned and seen.

Shapes: B examples, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from spark_jobs.errors import DataError, RequestError
from training.finetune.task import Example, Prediction, TaskInputs, Unusable, pad
from training.finetune_spec import TaskSpec
from training.loop_spec import LossSpec
from training.metrics.bootstrap import Bootstrap
from training.metrics.likelihood import perplexity
from training.metrics.score import Score
from training.pretrain.loss import IGNORED, sum_cross_entropy, targets_of

PROMPT, PROMPT_MASK = "prompt_ids", "prompt_mask"  # in TaskInputs.wanted: what a causal model goes on from


class TextTask:
    """A task that writes. Made with a causal base unless a subclass says otherwise."""

    auto_class: Any = AutoModelForCausalLM
    loss_spec = LossSpec()
    peft_type = "CAUSAL_LM"

    def __init__(self, spec: TaskSpec, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises: DataError if the tokenizer has no end token: nothing written would ever stop."""
        if tokenizer.eos_token_id is None:
            raise DataError(
                f"task.kind {spec.kind}: the tokenizer of the base has no end token, so no text would stop; set eos_token in "
                "its tokenizer_config.json"
            )
        self.spec, self.tokenizer = spec, tokenizer
        self.pad_id, self.end_id = int(tokenizer.pad_token_id), int(tokenizer.eos_token_id)
        self.end_ids: tuple[int, ...] = (self.end_id,)  # any of them stops
        added = tokenizer.added_tokens_decoder
        self.special_ids = {*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)}
        steering = sorted(self.special_ids - {tokenizer.unk_token_id})  # that a word is unknown steers nothing
        self.special_texts = tuple(str(text) for text in tokenizer.convert_ids_to_tokens(steering))

    def config_fields(self) -> dict[str, Any]:
        return {}

    def prepare(self, model: nn.Module, examples: Sequence[Example], device: torch.device) -> list[Example]:
        return list(examples)

    def refuse_special(self, text: str) -> None:
        """Raises: Unusable if the text spells a token that steers: it would end an answer, or speak for another."""
        if any(special in text for special in self.special_texts):
            raise Unusable("special_token_in_text")

    def collate(self, examples: Sequence[Example]) -> TaskInputs:
        """Of a causal model. features: input_ids and labels of a whole example, prompt_ids of what stands before the
        answer that is written; lists of numbers, IGNORED where a label is not learned."""
        ids = [example.features["input_ids"] for example in examples]
        prompts = [example.features[PROMPT] for example in examples]
        labels_BT = pad([example.features["labels"] for example in examples], IGNORED)
        return TaskInputs(
            {"input_ids": pad(ids, self.pad_id), "attention_mask": seen(ids)},
            targets_of(labels_BT),
            tuple(example.id for example in examples),
            {PROMPT: pad(prompts, self.pad_id, left=True), PROMPT_MASK: seen(prompts, left=True)},
        )

    def loss(self, output: Any, inputs: TaskInputs) -> Tensor:
        targets_BT = inputs.targets_BS
        return sum_cross_entropy(own_logits(output, targets_BT), targets_BT.to(output.logits.device), self.loss_spec)

    def predict(self, model: nn.Module, inputs: TaskInputs) -> list[Prediction]:
        """text: what the model writes, None if its likelihoods are not finite; nats: of the wanted answer, over num_targets
        tokens."""
        with torch.no_grad():
            output = model(**inputs.model_inputs(next(model.parameters()).device))
            nats_B, counts_B = nats_of(output, inputs.targets_BS)
            texts = self.write(model, inputs)
        return [
            {"text": text if math.isfinite(nats) else None, "nats": nats, "num_targets": count}
            for text, nats, count in zip(texts, nats_B.tolist(), counts_B.tolist(), strict=True)
        ]

    def write(self, model: nn.Module, inputs: TaskInputs) -> list[str]:
        """A text an example: greedy, or the best of num_beams beams; at most max_target_length tokens, up to an end token.

        Raises: RequestError for beams of a model with a learned prompt.
        """
        if learns_prompt(model):
            return [self.text_of(ids) for ids in self.stepwise(model, inputs)]
        ids_BT, mask_BT = self.read(inputs)
        device = next(model.parameters()).device
        output_BT: Tensor = cast("PreTrainedModel", model).generate(
            input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), max_new_tokens=self.spec.max_target_length,
            do_sample=False, num_beams=self.spec.num_beams, use_cache=True, eos_token_id=list(self.end_ids),
            pad_token_id=self.pad_id,
        )  # fmt: skip
        return [self.text_of(ids) for ids in output_BT[:, self.num_given(ids_BT) :].tolist()]

    def stepwise(self, model: nn.Module, inputs: TaskInputs) -> list[list[int]]:
        """Greedy, by whole forward passes as in training: `generate` of peft 0.21 under transformers 5.24 leaves a learned
        prefix out, and puts what follows a learned prompt to wrong positions from the second new token on.

        New tokens of each example, the end token included. Raises: RequestError if beams are wanted.
        """
        if self.spec.num_beams > 1:
            raise RequestError(
                f"task.num_beams {self.spec.num_beams}: a model with a learned prompt or prefix writes greedily; set it to 1"
            )
        begun = self.begun(inputs)
        written: list[list[int]] = [[] for _ in begun]
        for _ in range(self.spec.max_target_length):
            going = [i for i, ids in enumerate(written) if not ids or ids[-1] not in self.end_ids]
            if not going:
                break
            ids = [begun[i] + written[i] for i in going]
            logits_BTV = own_logits(self.after(model, inputs, going, ids), pad(ids, self.pad_id))
            for place, i in enumerate(going):
                written[i].append(int(logits_BTV[place, len(ids[place]) - 1].argmax()))
        return written

    def read(self, inputs: TaskInputs) -> tuple[Tensor, Tensor]:
        """What `generate` is given: tokens, and which of them are seen."""
        return inputs.wanted[PROMPT], inputs.wanted[PROMPT_MASK]

    def num_given(self, ids_BT: Tensor) -> int:
        """Columns of `generate`'s answer that are not new."""
        return ids_BT.shape[1]

    def begun(self, inputs: TaskInputs) -> list[list[int]]:
        """What stands before the first new token of each example, without padding."""
        pairs = zip(inputs.wanted[PROMPT], inputs.wanted[PROMPT_MASK], strict=True)
        return [ids_T[mask_T.bool()].tolist() for ids_T, mask_T in pairs]

    def after(self, model: nn.Module, inputs: TaskInputs, going: Sequence[int], ids: Sequence[Sequence[int]]) -> Any:
        """The model's answer to examples `going` of a batch, of which `ids` stand there."""
        device = next(model.parameters()).device
        return model(input_ids=pad(ids, self.pad_id).to(device), attention_mask=seen(ids).to(device))

    def text_of(self, ids: Sequence[int]) -> str:
        """Up to the first end token; padding behind it may have any id."""
        end = next((place for place, number in enumerate(ids) if number in self.end_ids), len(ids))
        text: str = self.tokenizer.decode(ids[:end], skip_special_tokens=True)
        return text.strip()

    def settle(self, model: PreTrainedModel, folder: Path) -> None:
        """Before `model` is saved in `folder`: what whoever loads it needs, to write as it is scored here."""
        model.generation_config.update(
            eos_token_id=list(self.end_ids), pad_token_id=self.pad_id, do_sample=False, num_beams=self.spec.num_beams,
            max_new_tokens=self.spec.max_target_length,
        )  # fmt: skip


def learns_prompt(model: nn.Module) -> bool:
    """Whether peft puts learned vectors before what the model reads."""
    config = getattr(model, "active_peft_config", None)
    return config is not None and bool(config.is_prompt_learning)


def seen(lists: Sequence[Sequence[int]], left: bool = False) -> Tensor:
    """int64 (B, T): 1 where a list has a token, 0 where padding will stand."""
    return pad([[1] * len(one) for one in lists], 0, left)


def own_logits(output: Any, targets_BT: Tensor) -> Tensor:
    """Logits at the places of `targets_BT`: a prompt that is learned (peft) stands before them, with logits of its own."""
    logits_BTV: Tensor = output.logits[:, -targets_BT.shape[1] :]
    return logits_BTV


def nats_of(output: Any, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """float64 (B,): negative log-likelihood of each example's targets, summed; int64 (B,): how many they are."""
    logits_BTV = own_logits(output, targets_BT)
    targets_BT = targets_BT.to(logits_BTV.device)
    logits_NV = logits_BTV.flatten(0, 1).to(torch.promote_types(logits_BTV.dtype, torch.float32))
    losses_N = F.cross_entropy(logits_NV, targets_BT.flatten(), reduction="none", ignore_index=IGNORED)
    return losses_N.double().view(targets_BT.shape).sum(1).cpu(), (targets_BT != IGNORED).sum(1).cpu()


def answer_perplexity(predictions: Mapping[str, list[Prediction]], bootstrap: Bootstrap) -> Score:
    """Of the wanted answers' tokens: nats of all rows over tokens of all rows, never a mean over batches or rows. Rows
    that could not be encoded have none."""
    found = [one for row in sorted(predictions) for one in predictions[row]]
    return perplexity([one["nats"] for one in found], [one["num_targets"] for one in found], bootstrap)


def check_causal(spec: TaskSpec, config: PreTrainedConfig) -> None:
    """Raises: RequestError if the base cannot go on from a prompt. AutoModelForCausalLM also loads a BERT, which would see
    the tokens that it is asked for."""
    name = (config.architectures or ["nothing"])[0]
    kind = getattr(transformers, name, None)
    if config.is_encoder_decoder or kind is None or not kind.can_generate():
        raise RequestError(
            f"task.kind {spec.kind}: the base is a {config.model_type} ({name}), which does not go on from a prompt; choose a "
            "causal base, for example a LlamaForCausalLM"
        )
