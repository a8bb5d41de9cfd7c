"""What a task is to the trainer: rows of a labelled set -> batches, a head, a loss, predictions, scores. Nothing more.

Shapes: B examples, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from training.loop_spec import LossSpec
from training.metrics.score import Score

Row = Mapping[str, Any]  # columns of spark_jobs.manifests.LabelledSet
Prediction = dict[str, Any]  # columns of the table of predictions


class Unusable(Exception):
    """A row that cannot be trained on or scored; its text is the reason as it is counted, for example `no_target`."""


@dataclass(frozen=True)
class Example:
    """One encoded row, or a window of one. features: what `collate` needs, by name, as lists of numbers. num_tokens: what
    a forward pass sees; examples of like length are run together."""

    id: str
    features: Mapping[str, Any]
    num_tokens: int


@dataclass(frozen=True)
class TaskInputs:
    """A batch: what the model is called with, by argument, and what it must predict (`IGNORED` where nothing).

    targets: int64, whatever shape the loss wants; their number that is not IGNORED weighs the batch in the step. Where the
    loss is not one of classes, targets are zeros, one for each thing counted, and what is wanted is in `wanted`.
    """

    model: Mapping[str, Tensor]
    targets_BS: Tensor  # noqa: N815
    ids: tuple[str, ...]
    wanted: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Tokens that are no padding, of what the model reads (and writes)."""
        masks = [self.model[name] for name in ("attention_mask", "decoder_attention_mask") if name in self.model]
        return sum(int(mask.sum()) for mask in masks)

    def model_inputs(self, device: torch.device) -> dict[str, Tensor]:
        return {name: tensor.to(device) for name, tensor in self.model.items()}


class Task(Protocol):
    """One kind of labelled data. Made with its spec, the tokenizer and the label set."""

    loss_spec: LossSpec  # label smoothing and z-loss, of tasks whose loss is a cross entropy; the trainer sets it

    auto_class: Any  # of transformers, with the head this task wants
    peft_type: str  # what peft calls it
    pad_id: int

    def config_fields(self) -> dict[str, Any]:
        """What the model's configuration must say, for example num_labels and id2label."""
        ...

    def encode(self, row: Row) -> list[Example]:
        """Examples of one row: one, or several windows. Raises: Unusable."""
        ...

    def collate(self, examples: Sequence[Example]) -> TaskInputs:
        """A padded batch."""
        ...

    def prepare(self, model: nn.Module, examples: Sequence[Example], device: torch.device) -> list[Example]:
        """Examples with what only the untrained model can tell, for example a reference's log-probabilities.

        First called with the examples trained on, then with those held out. What is measured of the first and needed to
        predict goes into model.config. A collective: every rank calls it.
        """
        ...

    def loss(self, output: Any, inputs: TaskInputs) -> Tensor:
        """Summed over targets, in nats or the task's own unit, at least fp32."""
        ...

    def predict(self, model: nn.Module, inputs: TaskInputs) -> list[Prediction]:
        """One prediction an example, of a model in eval mode."""
        ...

    def score(self, rows: Sequence[Row], predictions: Mapping[str, list[Prediction]], seed: int) -> dict[str, Score]:
        """Metrics by name, the main one first. predictions: of each row, by its id; [] where it could not be encoded,
        which counts as wrong."""
        ...


def pad(lists: Sequence[Sequence[int]], value: int, left: bool = False) -> Tensor:
    """int64 (B, longest), padded with `value` on the right, or the left."""
    longest = max(len(one) for one in lists)
    rows = []
    for one in lists:
        rest = [value] * (longest - len(one))
        rows.append([*rest, *one] if left else [*one, *rest])
    return torch.tensor(rows, dtype=torch.int64)


def in_batches(examples: Sequence[Example], size: int) -> Iterator[list[Example]]:
    """Batches of like length, longest first (what does not fit into memory shows at once). Order of ids does not matter to
    what is answered."""
    ordered = sorted(examples, key=lambda example: (-example.num_tokens, example.id))
    for first in range(0, len(ordered), size):
        yield ordered[first : first + size]
