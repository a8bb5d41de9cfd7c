"""Which packed sequences of a corpus are drawn, how often and when: a pure function of (corpus, seed, epoch, position).

No torch here, so that lineage can ask the same question without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import orc

from spark_jobs.manifests import Corpus, TokenShards

Rows = NDArray[np.int64]
LENGTH_STEPS = 8  # of the order short_first
COPIES_SALT = 1  # the draws of weighted rows do not disturb the draws of the order


@dataclass(frozen=True)
class RowGroup:
    """A Parquet row group or an ORC stripe: the unit that is read at once."""

    path: str
    index: int
    num_rows: int
    is_replay: bool
    night: str = ""


@dataclass(frozen=True)
class RowFacts:
    """What decides about single rows. weights: float64[num_rows], or None where each is drawn once an epoch. left_out: for
    a row, the places of its documents that are forgotten. lengths: float64[num_rows], mean tokens of a row's documents, where
    the first `num_sorted` positions are to go from short to long; else None."""

    weights: NDArray[np.float64] | None = None
    left_out: dict[int, list[int]] = field(default_factory=dict)
    lengths: NDArray[np.float64] | None = None
    num_sorted: int = 0


def corpus_row_groups(corpus: Corpus, trained_until: str = "") -> list[RowGroup]:
    """All row groups, oldest night first. Those of nights up to `trained_until` are replay (empty: none is)."""
    replayed = {n.night for n in corpus.nights if n.night <= trained_until}
    if len(replayed) == len(corpus.nights):  # nothing is newer than the champion: go on with the last night
        replayed.discard(corpus.nights[-1].night)
    groups: list[RowGroup] = []
    for night in corpus.nights:
        shards = TokenShards.load(corpus.at(night.tokens.address))
        for path in shards.paths():
            counts = _group_sizes(path)
            groups += [RowGroup(path, i, n, night.night in replayed, night.night) for i, n in enumerate(counts) if n]
    return groups


def _group_sizes(path: str) -> list[int]:
    if path.endswith(".orc"):
        file = orc.ORCFile(path)
        return [file.read_stripe(i, columns=["seq_id"]).num_rows for i in range(file.nstripes)]
    footer = pq.read_metadata(path)
    return [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]


def first_rows(groups: Sequence[RowGroup]) -> dict[str, int]:
    """Row number of the first sequence of each night; sequence seq_id of the night is that many rows further."""
    firsts: dict[str, int] = {}
    row = 0
    for group in groups:
        firsts.setdefault(group.night, row)
        row += group.num_rows
    return firsts


def row_facts(corpus: Corpus, groups: Sequence[RowGroup], order: str = "shuffled", num_draws: int = 0) -> RowFacts:
    """The corpus's `sequences/` by row number; and what the order short_first of a training of `num_draws` asks for."""
    lengths = mean_lengths(groups) if order == "short_first" else None
    paths = corpus.paths("sequences")
    if not paths:
        return RowFacts(lengths=lengths, num_sorted=num_draws)
    firsts = first_rows(groups)
    weights = np.ones(sum(group.num_rows for group in groups))
    left_out: dict[int, list[int]] = {}
    for path in paths:
        for batch in pq.ParquetFile(path).iter_batches():
            for told in batch.to_pylist():
                row = firsts[told["night"]] + told["seq_id"]
                weights[row] = told["weight"]
                if told["pieces"]:
                    left_out[row] = told["pieces"]
    return RowFacts(None if np.all(weights == 1.0) else weights, left_out, lengths, num_draws)


def mean_lengths(groups: Sequence[RowGroup]) -> NDArray[np.float64]:
    """Mean tokens of the documents of each row: what a token can look back on."""
    means = []
    for group in groups:
        if group.path.endswith(".orc"):
            column = orc.ORCFile(group.path).read_stripe(group.index, columns=["doc_lengths"]).column(0)
        else:
            table = pq.ParquetFile(group.path).read_row_group(group.index, columns=["doc_lengths"], use_threads=False)
            column = table.column(0).combine_chunks()
        sizes = np.diff(column.offsets.to_numpy())
        ends = np.concatenate(([0], np.cumsum(column.flatten().to_numpy(), dtype=np.int64)))
        borders = column.offsets.to_numpy() - column.offsets[0].as_py()
        means.append(np.diff(ends[borders]) / np.maximum(sizes, 1))
    return np.concatenate(means) if means else np.empty(0)


def short_first(order: Rows, facts: RowFacts) -> Rows:
    """The first `num_sorted` positions in LENGTH_STEPS steps from short to long, each in the order it had."""
    assert facts.lengths is not None
    head = order[: facts.num_sorted]
    lengths = facts.lengths[head]
    borders = np.quantile(lengths, np.arange(1, LENGTH_STEPS) / LENGTH_STEPS) if len(head) else np.empty(0)
    steps = np.searchsorted(borders, lengths, side="left")
    return np.concatenate((head[np.argsort(steps, kind="stable")], order[facts.num_sorted :]))


def order_of(groups: Sequence[RowGroup], facts: RowFacts, replay_ratio: float, seed: int, epoch: int) -> Rows:
    """Row numbers of one epoch; the first goes from short to long if `facts` ask for it."""
    order = epoch_order(groups, replay_ratio, seed, epoch, facts.weights)
    return short_first(order, facts) if facts.lengths is not None and epoch == 0 else order


def epoch_order(
    groups: Sequence[RowGroup], replay_ratio: float, seed: int, epoch: int, weights: NDArray[np.float64] | None = None
) -> Rows:
    """Row numbers (int64, over all groups in their given order) of one epoch.

    Every new row once (or `weights` times on average), and round(replay_ratio * new rows) replayed ones (at most all),
    spread evenly at random. Every epoch is as long as the first.
    Row groups are shuffled, then rows inside each: a step touches few groups. Rows of a night were already put in a
    seeded global order when they were packed.
    """
    rng = np.random.default_rng([seed, epoch])
    chance = np.random.default_rng([seed, epoch, COPIES_SALT])
    starts = np.cumsum([0, *(g.num_rows for g in groups)])
    sets: list[Rows] = []
    for is_replay in (False, True):
        indices = [i for i, g in enumerate(groups) if g.is_replay is is_replay]
        copies = None if weights is None else _copies(indices, starts, weights, chance)
        sets.append(_shuffled_rows(indices, starts, rng, copies))
    new, old = sets[0], sets[1][: round(replay_ratio * len(sets[0]))]
    order = np.empty(len(new) + len(old), dtype=np.int64)
    from_new = rng.permutation(len(order)) < len(new)
    order[from_new] = new
    order[~from_new] = old
    return order


def _copies(indices: Sequence[int], starts: Rows, weights: NDArray[np.float64], chance: np.random.Generator) -> Rows:
    """How often each row (of all groups; 0 outside of `indices`) is drawn: the whole part of its weight, and once more
    for round(sum of the rests) rows, by systematic sampling over a random order. The sum is the same in every epoch.
    """
    copies = np.zeros(len(weights), np.int64)
    rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in indices] or [np.empty(0, np.int64)])
    whole = np.floor(weights[rows])
    copies[rows] = whole.astype(np.int64)
    rows = rows[order := chance.permutation(len(rows))]
    ends = np.cumsum(weights[rows] - whole[order])
    num_more = round(float(ends[-1])) if len(ends) else 0
    if num_more:
        points = (chance.random() + np.arange(num_more)) * (ends[-1] / num_more)
        np.add.at(copies, rows[np.searchsorted(ends, points, side="right").clip(max=len(rows) - 1)], 1)
    return copies


def _shuffled_rows(indices: Sequence[int], starts: Rows, rng: np.random.Generator, copies: Rows | None = None) -> Rows:
    parts = []
    for i in rng.permutation(np.array(indices, int)):
        rows = np.arange(starts[i], starts[i + 1])
        rows = rows if copies is None else np.repeat(rows, copies[rows])
        parts.append(rows[rng.permutation(len(rows))])
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def draws_of(groups: Sequence[RowGroup], facts: RowFacts, replay_ratio: float, seed: int, num_draws: int) -> Rows:
    """Row number of each of the first `num_draws` positions of the endless stream of epochs."""
    drawn: list[Rows] = []
    count = epoch = 0
    while count < num_draws:
        order = order_of(groups, facts, replay_ratio, seed, epoch)
        if not len(order):
            break
        drawn.append(order)
        count, epoch = count + len(order), epoch + 1
    return np.concatenate(drawn)[:num_draws] if drawn else np.empty(0, dtype=np.int64)
