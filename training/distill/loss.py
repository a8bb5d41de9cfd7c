"""The loss of a student: its own, and its distance from a teacher that reads the same batch.

    (1 - alpha) loss + alpha T^2 KL(teacher || student) + weight * distance of hidden states

Every part is a sum over targets, so the step's divisor stays the number of targets, on any ranks and micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from training.distill.divergence import sum_divergence
from training.distill.layers import HiddenStates, install_hidden, sum_hidden_distance, token_weights
from training.distill.teacher import load_teacher
from training.distill_spec import DistillSpec
from training.manifests import ModelFolder
from training.pretrain.checkpointing import TRAINING_ONLY
from training.pretrain.parallel import OutputLoss

Divergence = Callable[[Any, Any, Any], Tensor]  # what the student answered, what the teacher did, what was asked -> sum


class DistilledLoss:
    """An `OutputLoss` that also asks the teacher: in evaluation mode, without gradients, in the student's precision or more."""

    def __init__(
        self, loss: OutputLoss, teacher: nn.Module, divergence: Divergence, spec: DistillSpec, device: torch.device,
        maps: HiddenStates | None = None,
    ) -> None:  # fmt: skip
        self.loss, self.divergence, self.spec, self.device, self.maps = loss, divergence, spec, device, maps
        self.teacher = teacher.to(device).eval().requires_grad_(False)

    def __call__(self, output: Any, inputs: Any) -> Tensor:
        with torch.no_grad():
            told = self.teacher(**inputs.model_inputs(self.device))
        alpha = self.spec.alpha
        total = alpha * self.divergence(output, told, inputs)
        if alpha < 1:
            total = total + (1 - alpha) * self.loss(output, inputs)
        if self.spec.hidden is not None and self.maps is not None:
            weights = token_weights(inputs, output.get("logits")).to(self.device)
            distance = sum_hidden_distance(output.mapped, told.hidden_states, self.maps.map, self.spec.hidden, weights)
            total = total + self.spec.hidden.weight * distance
        return total


def taught(
    loss: OutputLoss, student: nn.Module, folder: ModelFolder, spec: DistillSpec, divergence: Divergence, seed: int,
    device: torch.device,
) -> DistilledLoss:  # fmt: skip
    """`loss` with the part of the teacher in `folder`; layers that are learned too get their maps in `student`."""
    teacher = load_teacher(folder)
    if spec.hidden is not None:
        install_hidden(student, teacher, spec.hidden, seed)
    return DistilledLoss(loss, teacher, divergence, spec, device, maps_of(student))


def maps_of(student: nn.Module) -> HiddenStates | None:
    found: HiddenStates | None = getattr(student, TRAINING_ONLY, None)
    return found


def token_divergence(temperature: float) -> Divergence:
    """Of a language model: at every real target of the vocabulary."""

    def of(output: Any, told: Any, inputs: Any) -> Tensor:
        targets = inputs.targets_BS.to(output.logits.device)
        return sum_divergence(output.logits, told.logits, targets, temperature)

    return of
