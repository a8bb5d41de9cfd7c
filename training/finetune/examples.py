"""Encoded rows as what the trainer reads, in an order that is a pure function of (seed, epoch, position).

Labelled sets are small beside corpora: a rank holds all encoded rows (about a kB each) in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow.parquet as pq

from spark_jobs.errors import DataError
from spark_jobs.manifests import LabelledSet
from training.finetune.task import Example, Row, Task, TaskInputs, Unusable, in_batches

ORDER_SALT = 7  # the draws of the order are not those of anything else made from the seed


def read_rows(labelled: LabelledSet, split: str, max_rows: int = 0) -> Iterator[Row]:
    """Rows of a split, by ascending id; at most `max_rows` of them, 0 for all."""
    count = 0
    for path in labelled.paths():
        for batch in pq.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                if row["split"] != split:
                    continue
                if max_rows and count == max_rows:
                    return
                count += 1
                yield row


def encode_rows(task: Task, rows: Iterator[Row]) -> tuple[list[Example], Counter[str]]:
    """Examples of all usable rows, and how many were not, by reason."""
    examples: list[Example] = []
    unusable: Counter[str] = Counter()
    for row in rows:
        try:
            examples += task.encode(row)
        except Unusable as why:
            unusable[str(why)] += 1
    return examples, unusable


def training_examples(task: Task, labelled: LabelledSet) -> tuple[list[Example], Counter[str]]:
    """Raises: DataError if no row of the training split can be used."""
    examples, unusable = encode_rows(task, read_rows(labelled, "train"))
    if not examples:
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(unusable.items())) or "there are none"
        raise DataError(
            f"labelled set {labelled.address}: no row of split train can be trained on ({told}); raise task.max_length, or look "
            "at its rejects"
        )
    return examples, unusable


class TaskMaterial:
    """The examples as an endless stream of epochs, each in an order of its own.

    A step's examples are a random set; among them, those of like length go to the same micro-batch, and every rank gets
    its share of long ones. So no step sees other examples than without it, and little is padded.
    """

    def __init__(
        self, task: Task, examples: Sequence[Example], seed: int, per_step: int, num_ranks: int,
        heldout: Sequence[TaskInputs] = (),
    ) -> None:  # fmt: skip
        self.task, self.examples, self.seed, self.heldout = task, examples, seed, heldout
        self.per_step, self.num_ranks = per_step, num_ranks
        self.epoch, self.order = -1, np.empty(0, np.int64)
        self.step, self.dealt = -1, list[int]()

    def micro_batches(self, positions: Sequence[int], size: int) -> list[TaskInputs]:
        found = [self.examples[self.example_at(position)] for position in positions]
        return [self.task.collate(found[first : first + size]) for first in range(0, len(found), size)]

    def example_at(self, position: int) -> int:
        """Number of the example at a position of the stream."""
        step, place = divmod(position, self.per_step)
        if step != self.step:
            first = step * self.per_step
            drawn = [self._drawn(p) for p in range(first, first + self.per_step)]
            self.step, self.dealt = step, self._deal(drawn)
        return self.dealt[place]

    def _drawn(self, position: int) -> int:
        epoch, index = divmod(position, len(self.examples))
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = np.random.default_rng([ORDER_SALT, self.seed, epoch]).permutation(len(self.examples))
        return int(self.order[index])

    def _deal(self, drawn: list[int]) -> list[int]:
        """Longest first, dealt in turn to the ranks, whose shares then stand one behind the other."""
        ordered = sorted(drawn, key=lambda i: (-self.examples[i].num_tokens, i))
        return [i for rank in range(self.num_ranks) for i in ordered[rank :: self.num_ranks]]


def heldout_inputs(task: Task, examples: Sequence[Example], size: int, rank: int, num_ranks: int) -> list[TaskInputs]:
    """This rank's share of the validation split, in batches: no collective is in scoring them, so shares may differ."""
    return [task.collate(batch) for batch in in_batches(examples[rank::num_ranks], size)]
