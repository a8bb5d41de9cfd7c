"""Degrees of parallelism: what is inferred, what is refused, and with which words."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from training.parallel_spec import Coordinate, Degrees, ParallelSpec
from training.specs import TrainSpec


def spec_of(ranks: int, model: dict[str, Any] | None = None, rows: int = 8, **parallel: Any) -> TrainSpec:
    fields = {"ranks": ranks, "sequences_per_step": rows, "parallel": parallel, "model": model or {}}
    return TrainSpec.model_validate(fields)


def test_degrees_of_the_default_are_one_shard_a_rank() -> None:
    assert ParallelSpec().degrees(6) == Degrees(pp=1, dp_replicate=1, dp_shard=6, cp=1, tp=1)


@pytest.mark.parametrize(
    ("parallel", "dp_shard"),
    [({"tp": 2}, 8), ({"dp_replicate": 4, "cp": 2}, 2), ({"pp": 16}, 1), ({"tp": 2, "pp": 2, "cp": 2}, 2)],
)
def test_dp_shard_takes_the_ranks_left_over(parallel: dict[str, int], dp_shard: int) -> None:
    assert ParallelSpec(**parallel).degrees(16).dp_shard == dp_shard


def test_coordinates_cover_the_grid_once_with_tensor_peers_side_by_side() -> None:
    degrees = Degrees(pp=2, dp_replicate=2, dp_shard=1, cp=2, tp=2)
    found = [degrees.coordinate(rank) for rank in range(16)]
    assert len(set(found)) == 16
    assert found[:3] == [Coordinate(0, 0, 0, 0), Coordinate(0, 0, 0, 1), Coordinate(0, 0, 1, 0)]
    assert found[8] == Coordinate(1, 0, 0, 0)


@pytest.mark.parametrize(
    ("ranks", "model", "parallel", "message"),
    [
        (4, {}, {"tp": 3}, "tp 3 x pp 1 = 3 does not divide 4 ranks: set ranks to a multiple of 3"),
        (4, {}, {"dp_shard": 3}, "dp_shard 3 x dp_replicate 1 .* = 3, but there are 4 ranks: set ranks to 3"),
        (4, {}, {"dp_shard": 0}, "at least 1 is wanted, or -1"),
        (3, {}, {}, "sequences_per_step 8 is not a multiple of the 3 ranks that read different rows"),
        (4, {}, {"tp": 4}, "model.num_kv_heads 2 cannot be shared by tp 4 ranks"),
        (2, {"intermediate_size": 255}, {"tp": 2}, "model.intermediate_size 255 cannot be shared by tp 2"),
        (4, {}, {"pp": 4}, "model.num_layers 2 is fewer than 4 pipeline stages"),
        (2, {}, {"pp": 2, "schedule": "interleaved1f1b"}, "num_layers 2 is fewer than 4 pipeline stages"),
        (2, {}, {"pp": 2, "pp_micro_batches": 3}, "8 sequences of a rank cannot be cut into 3 micro-batches"),
        (2, {}, {"pp": 2, "pp_micro_batches": 1}, "1f1b on 2 ranks wants a multiple of 2"),
        (2, {}, {"strategy": "ddp", "tp": 2}, "copies of cut weights are not supported"),
        (2, {}, {"strategy": "ddp", "offload": True}, "offload wants strategy fsdp"),
        (2, {}, {"cpp": 2}, "Extra inputs are not permitted"),
    ],
)
def test_a_layout_that_cannot_be_is_refused_with_the_next_move(
    ranks: int, model: dict[str, Any], parallel: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        spec_of(ranks, model, **parallel)


def test_copies_in_bf16_are_refused() -> None:
    with pytest.raises(ValidationError, match="ddp trains in fp32, not bf16"):
        TrainSpec(parallel=ParallelSpec(strategy="ddp"), precision="bf16")


@pytest.mark.parametrize(
    ("parallel", "seq_len", "vocab_size", "message"),
    [
        ({"cp": 2}, 30, 300, r"30 tokens cannot be cut into 4 \(2 x cp x tp\)"),
        ({"tp": 2}, 31, 300, r"31 tokens cannot be cut into 2 \(tp\)"),
        ({"tp": 2}, 32, 301, "vocabulary of 301 cannot be shared by tp 2"),
    ],
)
def test_a_corpus_that_cannot_be_cut_is_refused(
    parallel: dict[str, int], seq_len: int, vocab_size: int, message: str
) -> None:
    degrees = ParallelSpec(**parallel).degrees(4)
    with pytest.raises(ValueError, match=message):
        degrees.check_sequences(seq_len, vocab_size)
    degrees.check_sequences(32, 300)
