"""Candidates of a query, put in order by a cross-encoder: query and candidate are read together, one logit a pair.

The loss is that of each pair alone: binary cross entropy with the click, or the relevance as a share of the highest. A
softmax over the candidates of a query would need all of them in one batch, and would learn nothing from a query with
one; this loss takes any batch, and its logits are log-odds of a click.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from training.finetune.classification import SequenceTask
from training.finetune.task import Example, Prediction, Row, TaskInputs, Unusable
from training.finetune_spec import TaskSpec
from training.metrics.bootstrap import Bootstrap
from training.metrics.ranking import auc, ranking_scores
from training.metrics.score import Score

TOP = 10  # of NDCG and recall


class Ranking(SequenceTask):
    """text: query; pair: candidate; value: 0 to 1, click or relevance; group: which query, the text where it is null."""

    def __init__(self, spec: TaskSpec, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(spec, tokenizer, ())

    def config_fields(self) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "multi_label_classification"}

    def encode(self, row: Row) -> list[Example]:
        if not (row["pair"] or "").strip():
            raise Unusable("empty_pair")
        return super().encode(row)

    def target_of(self, row: Row) -> dict[str, Any]:
        if row["value"] is None or not 0 <= row["value"] <= 1:
            raise Unusable("value_not_in_0_1")
        return {"value": float(row["value"])}

    def collate(self, examples: Sequence[Example]) -> TaskInputs:
        wanted_B = torch.tensor([example.features["value"] for example in examples])
        ids = tuple(example.id for example in examples)
        return TaskInputs(
            self.batch_of(examples), torch.zeros(len(examples), dtype=torch.int64), ids, {"clicks": wanted_B}
        )

    def loss(self, output: Any, inputs: TaskInputs) -> Tensor:
        """Nats."""
        logits_B = output.logits.squeeze(-1)
        logits_B = logits_B.to(torch.promote_types(logits_B.dtype, torch.float32))
        return F.binary_cross_entropy_with_logits(logits_B, inputs.wanted["clicks"].to(logits_B), reduction="sum")

    def predict(self, model: nn.Module, inputs: TaskInputs) -> list[Prediction]:
        return [{"logit": logit} for logit in self.logits(model, inputs)[:, 0].tolist()]

    def score(self, rows: Sequence[Row], predictions: Mapping[str, list[Prediction]], seed: int) -> dict[str, Score]:
        """mrr, ndcg@10, recall@10 of queries; auc of rows, where all values are 0 or 1."""
        relevance = [row["value"] for row in rows]
        found = [next((p["logit"] for p in predictions[row["id"]]), math.nan) for row in rows]
        groups = [row["group"] or row["text"] for row in rows]
        scores = ranking_scores(groups, relevance, found, TOP, Bootstrap(seed=seed))
        if set(relevance) <= {0.0, 1.0}:
            scores["auc"] = auc(relevance, found, Bootstrap(seed=seed))
        return scores
