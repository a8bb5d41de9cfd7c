"""A number for a text (regression) or for two (similarity), by one linear head and squared error.

Values are learned in deviations from the mean of the training split, whatever their unit: Adam moves a weight by about its
rate a step, so a head that had to reach 1000 would never get there. Mean and deviation stand in the model's
configuration, as value_mean and value_deviation, and predictions are in the unit of the values: logit x value_deviation +
value_mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from spark_jobs.errors import DataError
from training.finetune.classification import SequenceTask
from training.finetune.task import Example, Prediction, Row, TaskInputs, Unusable
from training.finetune_spec import TaskSpec
from training.metrics.bootstrap import Bootstrap
from training.metrics.regression import regression_scores
from training.metrics.score import Score

MEASURED = ("value_mean", "value_deviation")  # of a model's configuration


class Regression(SequenceTask):
    """value: any finite number. Loss: squared error, in deviations."""

    def __init__(self, spec: TaskSpec, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(spec, tokenizer, ())
        self.mean, self.deviation = math.nan, math.nan  # of the training split, once `prepare` has seen it

    def config_fields(self) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def prepare(self, model: Any, examples: Sequence[Example], device: torch.device) -> list[Example]:
        """Measure mean and deviation of the first examples there are, which are those trained on.

        Raises: DataError if all have one value.
        """
        if math.isnan(self.mean):
            values = np.array([example.features["value"] for example in examples], np.float64)
            self.mean, self.deviation = float(values.mean()), float(values.std())
            if len(values) < 2 or np.ptp(values) == 0:
                raise DataError(
                    f"task.kind {self.spec.kind}: all {len(values)} rows of split train have the value {values[0]:g}; there "
                    "is nothing to learn"
                )
            model.config.value_mean, model.config.value_deviation = self.mean, self.deviation
        return list(examples)

    def target_of(self, row: Row) -> dict[str, Any]:
        if row["value"] is None or not math.isfinite(row["value"]):
            raise Unusable("no_value")
        return {"value": float(row["value"])}

    def collate(self, examples: Sequence[Example]) -> TaskInputs:
        values_B = torch.tensor([example.features["value"] for example in examples], dtype=torch.float64)
        ids = tuple(example.id for example in examples)
        return TaskInputs(
            self.batch_of(examples), torch.zeros(len(examples), dtype=torch.int64), ids, {"values": values_B}
        )

    def loss(self, output: Any, inputs: TaskInputs) -> Tensor:
        logits_B = output.logits.squeeze(-1)
        wanted_B = ((inputs.wanted["values"] - self.mean) / self.deviation).to(logits_B.device)
        return F.mse_loss(logits_B.to(torch.float64), wanted_B, reduction="sum")

    def predict(self, model: nn.Module, inputs: TaskInputs) -> list[Prediction]:
        config: Any = model.config
        logits_B = self.logits(model, inputs)[:, 0]
        return [{"value": value} for value in (logits_B * config.value_deviation + config.value_mean).tolist()]

    def score(self, rows: Sequence[Row], predictions: Mapping[str, list[Prediction]], seed: int) -> dict[str, Score]:
        """pearson first; a row without a prediction leaves all undefined, see training/metrics/regression.py."""
        found = [next((p["value"] for p in predictions[row["id"]]), math.nan) for row in rows]
        scores = regression_scores([row["value"] for row in rows], found, Bootstrap(seed=seed))
        return {name: scores[name] for name in ("pearson", "spearman", "mse", "mae", "r2")}


class Similarity(Regression):
    """value: how alike text and pair are, in any unit. The two are read together."""

    def encode(self, row: Row) -> list[Example]:
        if not (row["pair"] or "").strip():
            raise Unusable("empty_pair")
        return super().encode(row)

    def score(self, rows: Sequence[Row], predictions: Mapping[str, list[Prediction]], seed: int) -> dict[str, Score]:
        """spearman first, as is usual for similarity: its unit is a convention."""
        scores = super().score(rows, predictions, seed)
        return {"spearman": scores["spearman"]} | scores
