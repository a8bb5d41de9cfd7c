from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spark_jobs.errors import DataError
from spark_jobs.manifests import Corpus
from training.parallel_spec import Degrees
from training.pretrain.loss import IGNORED, targets_of
from training.pretrain.model import model_config, new_model
from training.pretrain.sequence_order import RowGroup, corpus_row_groups, epoch_order
from training.pretrain.token_shards import Sequences, make_batch
from training.pretrain.trainer import rank_positions
from training.specs import ModelSpec


def row(ids: list[int], lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(ids, np.int32), np.array(lengths, np.int32)


def groups_of(sizes: list[int], num_replay: int = 0) -> list[RowGroup]:
    return [RowGroup("", i, n, i < num_replay) for i, n in enumerate(sizes)]


def test_batch_restarts_positions_and_labels_with_each_document() -> None:
    batch = make_batch([row([11, 12, 13, 21, 22], [3, 2])], seq_len=7, pad_id=0)
    assert batch.tokens_BT.tolist() == [[11, 12, 13, 21, 22, 0, 0]]
    assert batch.positions_BT.tolist() == [[0, 1, 2, 0, 1, 0, 0]]
    assert batch.documents_BT.tolist() == [[0, 0, 0, 1, 1, -1, -1]]
    assert targets_of(batch.labels_BT).tolist() == [[12, 13, IGNORED, 22, IGNORED, IGNORED, IGNORED]]
    assert batch.num_tokens == 5


def test_batch_of_lengths_that_do_not_add_up_is_refused() -> None:
    with pytest.raises(DataError, match=re.escape("has 3 tokens, document lengths [2, 2]")):
        make_batch([row([1, 2, 3], [2, 2])], seq_len=8, pad_id=0)


def test_packed_documents_do_not_see_each_other(world) -> None:
    """Changing the first document leaves the second one's logits as they are, and packed equals alone."""
    model = new_model(model_config(ModelSpec(hidden_size=32, num_layers=2), world.tokenizer, 32), 0).eval()
    first, second = list(range(10, 15)), list(range(40, 51))

    def logits(ids: list[int], lengths: list[int]) -> torch.Tensor:
        batch = make_batch([row(ids, lengths)], seq_len=20, pad_id=0)
        with torch.no_grad():
            out = model(
                input_ids=batch.tokens_BT, attention_mask=batch.attention_mask(), position_ids=batch.positions_BT
            )
        return out.logits[0]

    packed = logits(first + second, [5, 11])
    changed = logits([99, 98, 97, 96, 95, *second], [5, 11])
    assert torch.equal(packed[5:16], changed[5:16])
    assert not torch.equal(packed[:5], changed[:5])
    torch.testing.assert_close(packed[:5], logits(first, [5])[:5], atol=1e-6, rtol=0)
    torch.testing.assert_close(packed[5:16], logits(second, [11])[:11], atol=1e-6, rtol=0)
    assert torch.isfinite(packed).all()


@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=6), epoch=st.integers(0, 3))
def test_epoch_order_has_every_new_row_once(sizes: list[int], epoch: int) -> None:
    order = epoch_order(groups_of(sizes), 0.5, seed=7, epoch=epoch)
    assert sorted(order.tolist()) == list(range(sum(sizes)))


def test_epoch_order_depends_on_seed_and_epoch_only() -> None:
    groups = groups_of([50, 50])
    assert epoch_order(groups, 0.5, 1, 0).tolist() == epoch_order(groups, 0.5, 1, 0).tolist()
    assert epoch_order(groups, 0.5, 1, 0).tolist() != epoch_order(groups, 0.5, 1, 1).tolist()
    assert epoch_order(groups, 0.5, 1, 0).tolist() != epoch_order(groups, 0.5, 2, 0).tolist()


@pytest.mark.parametrize(("ratio", "num_replayed"), [(0.0, 0), (0.5, 10), (100.0, 60)])
def test_epoch_order_replays_the_asked_share_without_repeats(ratio: float, num_replayed: int) -> None:
    order = epoch_order(groups_of([60, 20], num_replay=1), ratio, seed=0, epoch=0).tolist()
    assert sorted(i for i in order if i >= 60) == list(range(60, 80))
    replayed = [i for i in order if i < 60]
    assert len(set(replayed)) == len(replayed) == num_replayed


def test_ranks_share_a_step_without_gap_or_overlap() -> None:
    one = list(rank_positions(3, 12, Degrees(1, 1, 1, 1, 1), 0))
    for world_size in (2, 3, 4):
        degrees = Degrees(pp=1, dp_replicate=1, dp_shard=world_size, cp=1, tp=1)
        parts = [rank_positions(3, 12, degrees, rank) for rank in range(world_size)]
        assert [p for part in parts for p in part] == one == list(range(36, 48))


@pytest.mark.parametrize("degrees", [Degrees(2, 2, 1, 2, 2), Degrees(1, 1, 2, 4, 2), Degrees(4, 1, 2, 1, 2)])
def test_peers_of_a_share_read_the_same_rows_on_any_layout(degrees: Degrees) -> None:
    parts = {rank_positions(3, 12, degrees, rank) for rank in range(16)}
    assert parts == {range(36, 42), range(42, 48)}


def test_sequences_read_back_every_row_of_every_night(world) -> None:
    """Parquet row groups in the fixture are 64 rows; two epochs give each sequence twice, in two orders."""
    groups = corpus_row_groups(world.corpus)
    sequences = Sequences(groups, 32, 0, 0.5, seed=0)
    n = sequences.num_per_epoch
    assert n == sum(night.num_sequences for night in world.corpus.nights)
    epochs = [[sequences.row_at(e * n + i) for i in range(n)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(n))
    assert epochs[0] != epochs[1]
    tokens = sum(len(sequences.read(i)[0]) for i in range(n))
    assert tokens == sum(night.num_tokens for night in world.corpus.nights)


def test_sequences_from_orc_equal_those_from_parquet(world, tmp_path: Path, make) -> None:
    shards = make.shards(tmp_path, make.texts(60, 1), world.tokenizer, "2026-01-01", 32, file_format="orc")
    corpus = make.corpus(tmp_path, [shards], world.tokenizer)
    from_orc = Sequences(corpus_row_groups(corpus), 32, 0, 0.5, seed=0)
    from_parquet = Sequences(corpus_row_groups(world.corpus), 32, 0, 0.5, seed=0)
    for i in range(from_orc.num_per_epoch):
        for a, b in zip(from_orc.read(i), from_parquet.read(i), strict=True):
            assert a.tolist() == b.tolist()


def test_nights_up_to_the_champion_are_replay(world) -> None:
    flags = [g.is_replay for g in corpus_row_groups(world.corpus, "2026-01-01")]
    assert flags == sorted(flags, reverse=True)
    assert 0 < sum(flags) < len(flags)


def test_last_night_is_new_when_the_champion_has_seen_all(world) -> None:
    corpus = Corpus.load(world.corpus.uri)
    assert [g.is_replay for g in corpus_row_groups(corpus, "2026-12-31")] == [
        g.is_replay for g in corpus_row_groups(corpus, "2026-01-01")
    ]
