"""A tag a word: entities and other spans, in the BIO scheme, scored strictly as spans.

The words of a row are joined by spaces and cut into tokens as any text is; a word's tag is predicted at its first token.
(Handing over the words one by one would have byte-level vocabularies read them without the space before them, which is
not how those models were trained.) A sentence longer than `max_length` is read in overlapping windows, and each word is
predicted once, in the window that shows most of what is on both sides of it.

Predicted tags are taken as they are: an I-type that follows nothing of its type is no span (training.metrics.spans), and
`orphan_share` counts such tags.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerBase

from spark_jobs.errors import DataError
from training.finetune.classification import SequenceTask
from training.finetune.task import Example, Prediction, Row, TaskInputs, Unusable, pad
from training.finetune.windows import cut_windows
from training.finetune_spec import TaskSpec
from training.metrics.bootstrap import Bootstrap
from training.metrics.logits import best_labels
from training.metrics.score import Score
from training.metrics.spans import span_scores
from training.pretrain.loss import IGNORED, sum_cross_entropy

TAG = re.compile(r"O|[BI]-.+")
NOWHERE = -1  # pads lists of places


class Tagging(SequenceTask):
    """tokens: words; tags: one each. Loss: cross entropy of every word."""

    auto_class: Any = AutoModelForTokenClassification
    peft_type = "TOKEN_CLS"

    def __init__(self, spec: TaskSpec, tokenizer: PreTrainedTokenizerBase, label_set: Sequence[str]) -> None:
        super().__init__(spec, tokenizer, tags_of(label_set))

    def config_fields(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.label_set),
            "id2label": dict(enumerate(self.label_set)),
            "label2id": self.number,
        }

    def encode(self, row: Row) -> list[Example]:
        words, tags = row["tokens"] or [], row["tags"] or []
        if len(words) != len(tags):
            raise Unusable("words_and_tags_differ")
        if any(tag not in self.number for tag in tags):
            raise Unusable("unknown_label")
        windows = cut_windows(self.tokenizer, " ".join(words), None, self.spec.max_length, self.spec.stride)
        first = [first_tokens(words, window.offsets) for window in windows]
        seen = [_least_context(places, window.offsets) for places, window in zip(first, windows, strict=True)]
        examples = []
        for number, window in enumerate(windows):
            own = [word for word in first[number] if _best_window(word, seen) == number]
            if not own:
                continue
            features = window.features | {
                "words": own,
                "places": [first[number][word] for word in own],
                "tags": [self.number[tags[word]] for word in own],
            }
            examples.append(Example(row["id"], features, len(window.offsets)))
        if not examples:
            raise Unusable("empty_text")
        return examples

    def collate(self, examples: Sequence[Example]) -> TaskInputs:
        batch = self.batch_of(examples)
        targets_BT = torch.full_like(batch["input_ids"], IGNORED)
        for row, example in enumerate(examples):
            targets_BT[row, example.features["places"]] = torch.tensor(example.features["tags"])
        wanted = {name: pad([example.features[name] for example in examples], NOWHERE) for name in ("words", "places")}
        return TaskInputs(batch, targets_BT, tuple(example.id for example in examples), wanted)

    def loss(self, output: Any, inputs: TaskInputs) -> Tensor:
        num_tokens = inputs.targets_BS.shape[1]
        logits_BTC = output.logits[:, -num_tokens:]  # virtual tokens of prompt tuning stand before the text
        return sum_cross_entropy(logits_BTC, inputs.targets_BS.to(logits_BTC.device), self.loss_spec)

    def predict(self, model: nn.Module, inputs: TaskInputs) -> list[Prediction]:
        """words: places of words in the row; tags and logits: of each of them."""
        logits_BTC = self.logits(model, inputs)[:, -inputs.targets_BS.shape[1] :]
        predictions: list[Prediction] = []
        for row, (words, places) in enumerate(
            zip(inputs.wanted["words"].tolist(), inputs.wanted["places"].tolist(), strict=True)
        ):
            num_words = len(words) - words.count(NOWHERE)
            own = logits_BTC[row, places[:num_words]]
            tags = best_labels(own, self.label_set)
            predictions.append({"words": words[:num_words], "tags": tags, "logits": own.tolist()})
        return predictions

    def score(self, rows: Sequence[Row], predictions: Mapping[str, list[Prediction]], seed: int) -> dict[str, Score]:
        gold = [row["tags"] for row in rows]
        found = [merge_tags(len(row["tokens"]), predictions[row["id"]]) for row in rows]
        return span_scores(gold, found, Bootstrap(seed=seed))


def tags_of(label_set: Sequence[str]) -> tuple[str, ...]:
    """O, then B- and I- of each type. A label set may hold types (PER, LOC: what the label job finds) or, if every name
    of it is one, tags (O, B-PER, I-PER).

    Raises: DataError if there is no type.
    """
    names = tuple(label_set)
    if all(TAG.fullmatch(name) for name in names):
        names = tuple(dict.fromkeys(name[2:] for name in names if name != "O"))
    if not names:
        raise DataError(f"task.kind tagging: the label set is {list(label_set)}; at least one type of span is wanted")
    return ("O", *(f"{prefix}-{name}" for name in names for prefix in "BI"))


def first_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int] | None]) -> dict[int, int]:
    """Word -> its first token in a window. Words without a token, empty or made of control characters, are left out.

    offsets: characters of each token in the words joined by spaces.
    """
    starts = list(accumulate((len(word) + 1 for word in words), initial=0))
    first: dict[int, int] = {}
    word = 0
    for place, offset in enumerate(offsets):
        if offset is None:
            continue
        while word < len(words) and starts[word] + len(words[word]) <= offset[0]:
            word += 1
        if word < len(words) and starts[word] < offset[1]:  # else it is the space before the word
            first.setdefault(word, place)
    return first


def merge_tags(num_words: int, predictions: Sequence[Prediction]) -> list[str] | None:
    """Tags of all words of a row from those of its windows; words without a token are O. None if there is no prediction,
    or a logit was not finite."""
    if not predictions or any(None in prediction["tags"] for prediction in predictions):
        return None
    tags = ["O"] * num_words
    for prediction in predictions:
        for word, tag in zip(prediction["words"], prediction["tags"], strict=True):
            tags[word] = tag
    return tags


def _least_context(places: Mapping[int, int], offsets: Sequence[tuple[int, int] | None]) -> dict[int, int]:
    """Word -> tokens between it and the nearer end of the window."""
    real = [place for place, offset in enumerate(offsets) if offset is not None]
    return {word: min(place - real[0], real[-1] - place) for word, place in places.items()}


def _best_window(word: int, seen: Sequence[Mapping[int, int]]) -> int:
    """The first of the best: a word that goes on in the next window begins in this one."""
    return max(range(len(seen)), key=lambda number: seen[number].get(word, NOWHERE))
