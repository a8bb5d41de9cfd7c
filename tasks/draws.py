"""Which sequences a finished training drew, computed again from its spec and corpus with the functions it used."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from spark_jobs.manifests import Corpus, Frozen
from tasks.fingerprints import code_digests
from training.manifests import Checkpoint, ModelFolder
from training.pretrain.sequence_order import Rows, corpus_row_groups, draws_of, first_rows, row_facts

if TYPE_CHECKING:
    from tasks.lineage import Lineage, Piece

ORDER = "training.pretrain.sequence_order"


class Draws(Frozen):
    """count: positions of the training at which a piece was in the batch. first_step: 0-based; -1 if never."""

    count: int
    first_step: int


@lru_cache(maxsize=8)
def _rows_drawn(
    corpus_uri: str, trained_until: str, ratio: float, seed: int, planned: int, count: int, order: str
) -> tuple[Rows, dict[str, int]]:
    """Rows of the first `count` positions of a training that was planned to draw `planned`."""
    corpus = Corpus.load(corpus_uri)
    groups = corpus_row_groups(corpus, trained_until)
    return draws_of(groups, row_facts(corpus, groups, order, planned), ratio, seed, count), first_rows(groups)


def draws_in(lineage: Lineage, checkpoint: Checkpoint, pieces: list[Piece]) -> Draws | None:
    """How often a training drew sequences with any of `pieces`. None: the code of the order has changed since."""
    parent = checkpoint.parent("corpus")
    assert parent is not None
    corpus = lineage.load(Corpus, parent.address)
    held = {night.night: night.tokens.address for night in corpus.nights}
    left_out = _left_out(corpus)
    wanted = [
        p for p in pieces
        if held.get(p.night) == lineage.nights[p.night].tokens.address and p.place not in left_out.get((p.night, p.seq_id), ())
    ]  # fmt: skip
    if not wanted:
        return Draws(count=0, first_step=-1)
    if checkpoint.code.get(ORDER) != code_digests(ORDER)[ORDER]:
        return None
    champion = checkpoint.parent("champion")
    trained_until = lineage.load(ModelFolder, champion.address).night if champion else ""
    per_step = int(checkpoint.spec["sequences_per_step"])
    ratio = float(corpus.spec.get("replay_ratio", 0.5))
    seed, order = int(checkpoint.spec["seed"]), str(checkpoint.spec.get("order", "shuffled"))
    planned = per_step * int(checkpoint.spec.get("continue_steps" if champion else "num_steps", checkpoint.num_steps))
    read = (checkpoint.num_sequences or planned) + sum(end - first for first, end in checkpoint.jumped)
    drawn, firsts = _rows_drawn(corpus.uri, trained_until, ratio, seed, planned, read, order)
    stays = np.ones(len(drawn), bool)
    for first, end in checkpoint.jumped:  # the weights never saw these
        stays[first:end] = False
    rows = sorted({firsts[p.night] + p.seq_id for p in wanted})
    positions = np.flatnonzero(np.isin(drawn[stays], rows))
    first = int(positions[0]) // per_step if len(positions) else -1
    return Draws(count=len(positions), first_step=first)


def _left_out(corpus: Corpus) -> dict[tuple[str, int], list[int]]:
    import pyarrow.parquet as pq

    return {
        (row["night"], row["seq_id"]): row["pieces"]
        for path in corpus.paths("sequences")
        for row in pq.read_table(path, columns=["night", "seq_id", "pieces"]).to_pylist()
        if row["pieces"]
    }
