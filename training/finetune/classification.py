"""One label, or several, a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from spark_jobs.errors import DataError
from training.finetune.task import Example, Prediction, Row, TaskInputs, Unusable, pad
from training.finetune_spec import TaskSpec
from training.loop_spec import LossSpec
from training.metrics.bootstrap import Bootstrap
from training.metrics.classification import classification_scores
from training.metrics.logits import best_labels, labels_above
from training.metrics.multi_label import multi_label_scores
from training.metrics.score import Score
from training.pretrain.loss import sum_cross_entropy


class SequenceTask:
    """What tasks share that read a text, or two, and answer with a vector: encoding, padding, the model's call."""

    auto_class: Any = AutoModelForSequenceClassification
    loss_spec = LossSpec()
    peft_type = "SEQ_CLS"

    def __init__(self, spec: TaskSpec, tokenizer: PreTrainedTokenizerBase, label_set: Sequence[str]) -> None:
        self.spec, self.tokenizer, self.label_set = spec, tokenizer, tuple(label_set)
        self.number = {name: number for number, name in enumerate(self.label_set)}
        self.pad_id = int(tokenizer.pad_token_id)

    def prepare(self, model: nn.Module, examples: Sequence[Example], device: torch.device) -> list[Example]:
        return list(examples)

    def encode(self, row: Row) -> list[Example]:
        if not (row["text"] or "").strip():
            raise Unusable("empty_text")
        features = self.encode_texts(row["text"], row["pair"])
        return [Example(row["id"], features | self.target_of(row), len(features["input_ids"]))]

    def encode_texts(self, text: str, pair: str | None) -> dict[str, Any]:
        """Tokens of one or two texts, cut to max_length; of two the longer is cut first."""
        encoded = self.tokenizer(
            text, pair, truncation="longest_first", max_length=self.spec.max_length, return_attention_mask=False
        )
        return {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}

    def head_fields(self, problem_type: str) -> dict[str, Any]:
        """What the configuration of a model with a logit a label says."""
        return {
            "num_labels": len(self.label_set),
            "id2label": dict(enumerate(self.label_set)),
            "label2id": self.number,
            "problem_type": problem_type,
        }

    def target_of(self, row: Row) -> dict[str, Any]:
        raise NotImplementedError

    def batch_of(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """input_ids, attention_mask and, where the model has them, token_type_ids: int64 (B, T)."""
        ids = [example.features["input_ids"] for example in examples]
        batch = {"input_ids": pad(ids, self.pad_id), "attention_mask": pad([[1] * len(one) for one in ids], 0)}
        if "token_type_ids" in examples[0].features:
            batch["token_type_ids"] = pad([example.features["token_type_ids"] for example in examples], 0)
        return batch

    def logits(self, model: nn.Module, inputs: TaskInputs) -> np.ndarray:
        """float64 (B, C)."""
        device = next(model.parameters()).device
        with torch.no_grad():
            logits: np.ndarray = model(**inputs.model_inputs(device)).logits.double().cpu().numpy()
        return logits


class Classification(SequenceTask):
    """labels: one name of the label set. Loss: cross entropy."""

    def config_fields(self) -> dict[str, Any]:
        return self.head_fields("single_label_classification")

    def target_of(self, row: Row) -> dict[str, Any]:
        labels = row["labels"] or []
        if len(labels) != 1:
            raise Unusable("not_one_label")
        if labels[0] not in self.number:
            raise Unusable("unknown_label")
        return {"label": self.number[labels[0]]}

    def collate(self, examples: Sequence[Example]) -> TaskInputs:
        targets = torch.tensor([example.features["label"] for example in examples])
        return TaskInputs(self.batch_of(examples), targets, tuple(example.id for example in examples))

    def loss(self, output: Any, inputs: TaskInputs) -> Tensor:
        return sum_cross_entropy(output.logits, inputs.targets_BS.to(output.logits.device), self.loss_spec)

    def predict(self, model: nn.Module, inputs: TaskInputs) -> list[Prediction]:
        logits = self.logits(model, inputs)
        labels = best_labels(logits, self.label_set)
        return [{"label": label, "logits": row.tolist()} for label, row in zip(labels, logits, strict=True)]

    def score(self, rows: Sequence[Row], predictions: Mapping[str, list[Prediction]], seed: int) -> dict[str, Score]:
        gold = [row["labels"][0] for row in rows]
        found = [next((p["label"] for p in predictions[row["id"]]), None) for row in rows]
        return classification_scores(gold, found, Bootstrap(seed=seed))


class MultiLabel(SequenceTask):
    """labels: any number of names, also none. Loss: binary cross entropy, of each label of each text."""

    def config_fields(self) -> dict[str, Any]:
        return self.head_fields("multi_label_classification")

    def target_of(self, row: Row) -> dict[str, Any]:
        labels = row["labels"] or []
        if any(name not in self.number for name in labels):
            raise Unusable("unknown_label")
        given = {self.number[name] for name in labels}
        return {"labels": [float(number in given) for number in range(len(self.label_set))]}

    def collate(self, examples: Sequence[Example]) -> TaskInputs:
        wanted = torch.tensor([example.features["labels"] for example in examples])
        ids = tuple(example.id for example in examples)
        return TaskInputs(
            self.batch_of(examples), torch.zeros(wanted.shape, dtype=torch.int64), ids, {"labels": wanted}
        )

    def loss(self, output: Any, inputs: TaskInputs) -> Tensor:
        logits = output.logits.float() if output.logits.dtype != torch.float64 else output.logits
        wanted = inputs.wanted["labels"].to(logits)
        return F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")

    def predict(self, model: nn.Module, inputs: TaskInputs) -> list[Prediction]:
        logits = self.logits(model, inputs)
        cut = float(np.log(self.spec.threshold / (1 - self.spec.threshold)))
        found = labels_above(logits, self.label_set, cut)
        return [
            {"labels": None if names is None else sorted(names), "logits": row.tolist()}
            for names, row in zip(found, logits, strict=True)
        ]

    def score(self, rows: Sequence[Row], predictions: Mapping[str, list[Prediction]], seed: int) -> dict[str, Score]:
        gold = [frozenset(row["labels"] or []) for row in rows]
        answers = [next((p["labels"] for p in predictions[row["id"]]), None) for row in rows]
        found = [None if names is None else frozenset(names) for names in answers]
        return multi_label_scores(gold, found, Bootstrap(seed=seed))


def check_label_set(label_set: Sequence[str], kind: str) -> None:
    """Raises: DataError if there is nothing to tell apart."""
    if len(label_set) < (1 if kind == "multi_label" else 2):
        raise DataError(
            f"task.kind {kind}: the label set is {list(label_set)}; at least two classes are wanted, or there is nothing to learn"
        )
