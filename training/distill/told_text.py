"""Packed text with what a served teacher said about each of its documents, and the loss that uses it.

Shapes: B sequences, T tokens, K likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.distill.divergence import sum_top_divergence
from training.distill.served import ServedTeacher
from training.distill_spec import DistillSpec
from training.pretrain.loss import IGNORED
from training.pretrain.micro_batch import MicroBatch
from training.pretrain.objectives import PackedText
from training.pretrain.parallel import OutputLoss


@dataclass(frozen=True)
class ToldBatch:
    """A micro-batch; top_ids int64 (B, T, K), -1 where there is none; top_log_p float32 (B, T, K)."""

    batch: MicroBatch
    top_ids_BTK: Tensor  # noqa: N815
    top_log_p_BTK: Tensor  # noqa: N815

    @property
    def targets_BS(self) -> Tensor:  # noqa: N802
        return self.batch.targets_BS

    @property
    def num_tokens(self) -> int:
        return self.batch.num_tokens

    def model_inputs(self, device: torch.device) -> dict[str, Tensor]:
        return self.batch.model_inputs(device)


@dataclass(frozen=True)
class ToldText:
    """What `text` gives, and the teacher's word beside it."""

    text: PackedText
    teacher: ServedTeacher

    @property
    def heldout(self) -> list[ToldBatch]:
        return [self._told(batch) for batch in self.text.heldout]

    def micro_batches(self, positions: Sequence[int], size: int) -> list[ToldBatch]:
        return [self._told(batch) for batch in self.text.micro_batches(positions, size)]

    def ask_all(self, steps: Sequence[Sequence[int]], size: int) -> None:
        """Before training, so that no rank waits for another's teacher. steps: this rank's positions, step by step."""
        for positions in steps:
            self.micro_batches(positions, size)

    def _told(self, batch: Any) -> ToldBatch:
        assert isinstance(batch, MicroBatch)  # TrainSpec refuses other objectives
        shape = (*batch.tokens_BS.shape, self.teacher.spec.top_k)
        ids, log_p = np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32)
        tokens, documents = batch.tokens_BS.numpy(), batch.documents_BT.numpy()
        for row in range(shape[0]):
            for number in range(int(documents[row].max()) + 1):
                (places,) = np.nonzero(documents[row] == number)
                told = self.teacher.top_tokens(tokens[row, places].tolist())
                ids[row, places], log_p[row, places] = told.ids, told.log_p
        return ToldBatch(batch, torch.from_numpy(ids), torch.from_numpy(log_p))


def told_loss(loss: OutputLoss, spec: DistillSpec) -> OutputLoss:
    """(1 - alpha) loss + alpha KL over the likeliest tokens and the bucket of all others, summed over real targets."""

    def of(output: Any, inputs: ToldBatch) -> Tensor:
        real = inputs.targets_BS != IGNORED
        device = output.logits.device
        ids_NK, log_p_NK = inputs.top_ids_BTK[real].to(device), inputs.top_log_p_BTK[real].to(device)
        taught = spec.alpha * sum_top_divergence(output.logits[real.to(device)], ids_NK, log_p_NK)
        return taught + (1 - spec.alpha) * loss(output, inputs.batch) if spec.alpha < 1 else taught

    return of
