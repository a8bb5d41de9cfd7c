"""Token shards of a corpus as micro-batches, in an order that is a pure function of (seed, epoch, position).

No cursor, no buffer: the sequences of step s are known from s alone, so a resumed run, or one on another number of
ranks, reads exactly what the unbroken one would have read. Memory holds a few row groups, never the corpus.
Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyarrow import orc
from torch import Tensor

from spark_jobs.errors import DataError
from training.pretrain.loss import IGNORED
from training.pretrain.sequence_order import RowFacts, RowGroup, order_of

COLUMNS = ["tokens", "doc_lengths"]
NO_FACTS = RowFacts()
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
CACHED_GROUPS = 4  # of one night's row group and the replayed nights' it is mixed with


@dataclass(frozen=True)
class Batch:
    """tokens, positions (restart at 0 with each document), labels (IGNORED on padding and on each document's first
    token), documents (number of the document inside the sequence, -1 on padding): int64 (B, T)."""

    tokens_BT: Tensor  # noqa: N815
    positions_BT: Tensor  # noqa: N815
    labels_BT: Tensor  # noqa: N815
    documents_BT: Tensor  # noqa: N815

    @property
    def num_tokens(self) -> int:
        return count_tokens(self.documents_BT)

    def attention_mask(self) -> Tensor:
        """bool (B, 1, T, T): a token sees itself and earlier tokens of its own document, nothing else.

        Padding sees padding: a row that sees nothing would be NaN.
        """
        return same_document(self.documents_BT).tril()[:, None]


def count_tokens(documents_BT: Tensor) -> int:
    """Tokens that are no padding."""
    return int((documents_BT >= 0).sum())


def same_document(documents_BT: Tensor) -> Tensor:
    """bool (B, T, T): whether two tokens are of one document."""
    return documents_BT[:, :, None] == documents_BT[:, None, :]


class Sequences:
    """Random access to packed sequences by position in the endless stream of epochs."""

    def __init__(
        self, groups: Sequence[RowGroup], seq_len: int, pad_id: int, replay_ratio: float, seed: int,
        facts: RowFacts = NO_FACTS,
    ) -> None:  # fmt: skip
        self.groups, self.facts = list(groups), facts
        self.seq_len, self.pad_id, self.replay_ratio, self.seed = seq_len, pad_id, replay_ratio, seed
        self.starts = np.cumsum([0, *(g.num_rows for g in groups)])
        self.epoch = 0
        self.order = order_of(self.groups, facts, replay_ratio, seed, 0)
        self.cache: OrderedDict[int, tuple[Any, ...]] = OrderedDict()

    @property
    def num_per_epoch(self) -> int:
        return len(self.order)

    def row_at(self, position: int) -> int:
        """Row number of a position; epochs follow one another in orders of their own."""
        epoch, index = divmod(position, self.num_per_epoch)
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = order_of(self.groups, self.facts, self.replay_ratio, self.seed, epoch)
        return int(self.order[index])

    def read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (int32) and document lengths (int32) of one sequence, without those of forgotten documents."""
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        if number not in self.cache:
            self.cache[number] = _read_group(self.groups[number])
            if len(self.cache) > CACHED_GROUPS:
                self.cache.popitem(last=False)
        self.cache.move_to_end(number)
        tokens, token_ends, lengths, length_ends = self.cache[number]
        i = row - int(self.starts[number])
        row_tokens, row_lengths = (
            tokens[token_ends[i] : token_ends[i + 1]],
            lengths[length_ends[i] : length_ends[i + 1]],
        )
        if row not in self.facts.left_out:
            return row_tokens, row_lengths
        stays = np.ones(len(row_lengths), bool)
        stays[self.facts.left_out[row]] = False
        return row_tokens[np.repeat(stays, row_lengths)], row_lengths[stays]

    def micro_batches(self, positions: Sequence[int], micro_batch: int) -> Iterator[Batch]:
        for first in range(0, len(positions), micro_batch):
            rows = [self.read(self.row_at(p)) for p in positions[first : first + micro_batch]]
            yield make_batch(rows, self.seq_len, self.pad_id)


class Prefetcher(Generic[K, V]):
    """Answers `make(key)`, one answer made ahead by a thread while the caller works on the one before.

    What comes next stays the caller's decision: an answer made ahead is used only for the key that it was made for, and
    thrown away, with its error if it had one, where another is asked for. `make` runs in the one thread alone.
    """

    def __init__(self, make: Callable[[K], V]) -> None:
        self.make = make
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self.ahead: tuple[K, Future[V]] | None = None

    def take(self, key: K) -> V:
        """Raises: what `make(key)` raises."""
        ahead, self.ahead = self.ahead, None
        if ahead is not None and ahead[0] == key:
            return ahead[1].result()
        if ahead is not None:
            ahead[1].cancel()
        return self.thread.submit(self.make, key).result()

    def expect(self, key: K) -> None:
        """Begin with what will probably be asked for next."""
        self.ahead = (key, self.thread.submit(self.make, key))

    def close(self) -> None:
        self.thread.shutdown(cancel_futures=True)


def _read_group(group: RowGroup) -> tuple[Any, ...]:
    if group.path.endswith(".orc"):
        table = pa.Table.from_batches([orc.ORCFile(group.path).read_stripe(group.index, columns=COLUMNS)])
    else:
        table = pq.ParquetFile(group.path).read_row_group(group.index, columns=COLUMNS, use_threads=False)
    arrays: list[Any] = []
    for name in COLUMNS:
        column = table.column(name).combine_chunks()
        offsets = column.offsets.to_numpy()
        arrays += [column.values.to_numpy(zero_copy_only=False), offsets]
    return tuple(arrays)


def make_batch(rows: Sequence[tuple[np.ndarray, np.ndarray]], seq_len: int, pad_id: int) -> Batch:
    """Lay packed sequences side by side, padded on the right to `seq_len`.

    Raises: DataError if document lengths do not add up to the tokens, or there are more than seq_len.
    """
    shape = (len(rows), seq_len)
    tokens, labels = np.full(shape, pad_id, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
    positions, documents = np.zeros(shape, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
    for b, (ids, lengths) in enumerate(rows):
        n = len(ids)
        if n != lengths.sum() or n > seq_len:
            raise DataError(
                f"a packed sequence has {n} tokens, document lengths {lengths.tolist()}, at most {seq_len} wanted; "
                "run step tokenize again"
            )
        starts = np.cumsum(lengths) - lengths
        tokens[b, :n] = labels[b, :n] = ids
        labels[b, starts] = IGNORED
        positions[b, :n] = np.arange(n) - np.repeat(starts, lengths)
        documents[b, :n] = np.repeat(np.arange(len(lengths)), lengths)
    return Batch(*(torch.from_numpy(a) for a in (tokens, positions, labels, documents)))
