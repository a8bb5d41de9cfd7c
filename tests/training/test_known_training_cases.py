"""Faults of other trainers that no test beside a module covers; docs/training-cases.md lists all of them by number."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from training.loop_spec import OptimizerSpec
from training.parallel_spec import Degrees
from training.pretrain import checkpointing
from training.pretrain.flops import model_flops_per_token
from training.pretrain.heldout import heldout_batches
from training.pretrain.loss import IGNORED, count_targets, targets_of
from training.pretrain.mesh import Mesh, Ranks, make_mesh
from training.pretrain.model import load_weights, model_config, new_model
from training.pretrain.objectives import Examples, PackedText
from training.pretrain.optimizer import make_optimizer, set_rate
from training.pretrain.parallel import parallelize
from training.pretrain.sequence_order import corpus_row_groups
from training.pretrain.token_shards import Sequences, make_batch
from training.pretrain.trainer import plan_of, rank_positions, train_rank
from training.specs import ModelSpec, TrainSpec

SMALL = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "intermediate_size": 24}
ALONE = Degrees(1, 1, 1, 1, 1)
RunRanks = Callable[[Callable[[Ranks], Any], int], list[Any]]


def row(ids: list[int], lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(ids, np.int32), np.array(lengths, np.int32)


def stream(world: Any) -> Sequences:
    return Sequences(corpus_row_groups(world.corpus), world.corpus.seq_len, 0, 0.5, seed=3)


def small_model(world: Any, seed: int, **fields: Any) -> Any:
    return new_model(model_config(ModelSpec.model_validate(SMALL | fields), world.tokenizer, 32), seed)


def test_end_of_text_is_learnt_where_padding_has_the_same_id() -> None:
    """A10 (transformers#23530): labels come from lengths; a mask by id would take the end of the document along."""
    batch = make_batch([row([3, 4, 2], [3])], seq_len=5, pad_id=2)
    assert batch.labels_BT.tolist() == [[IGNORED, 4, 2, IGNORED, IGNORED]]
    assert targets_of(batch.labels_BT)[0, 1] == 2


def test_padding_is_not_counted_as_tokens() -> None:
    """B6 (torchtune#1875): 4 of 8."""
    assert make_batch([row([3, 4, 5, 6], [4])], seq_len=8, pad_id=0).num_tokens == 4


def test_checkpoint_of_a_step_is_never_overwritten(run_ranks: RunRanks, tmp_path: Path) -> None:
    """C2: half of the second would be mixed with half of the first."""

    def save_twice(ranks: Ranks) -> float:
        state = {"w": torch.ones(3)}
        checkpointing.save_step(tmp_path, 1, state, {"identity": "a"}, ranks, keep=2)
        state["w"].fill_(2.0)
        with pytest.raises(OSError, match="not empty"):
            checkpointing.save_step(tmp_path, 1, state, {"identity": "a"}, ranks, keep=2)
        checkpointing.load_newest(tmp_path, state, "a", ranks)
        return float(state["w"].mean())

    assert run_ranks(save_twice, 1) == [1.0]


def test_tied_weights_and_rotary_tables_are_right_after_loading(world: Any, tmp_path: Path) -> None:
    """C8 (Automodel#2511), F10: a tie is one tensor after loading too, and what is not saved is what it was."""
    saved, other = small_model(world, 1), small_model(world, 2)
    save_file({name: p.detach().clone() for name, p in saved.named_parameters()}, tmp_path / "w.safetensors")
    load_weights(other, tmp_path / "w.safetensors")
    assert other.get_output_embeddings().weight is other.get_input_embeddings().weight
    assert sum(p.numel() for p in other.parameters()) == sum(
        t.numel() for t in load_file(tmp_path / "w.safetensors").values()
    )
    tokens = torch.arange(10)[None]
    assert torch.equal(saved(input_ids=tokens).logits, other(input_ids=tokens).logits)


def test_rate_and_decay_come_from_the_spec_and_not_from_a_checkpoint(
    run_ranks: RunRanks, world: Any, tmp_path: Path
) -> None:
    """C20 (OLMo-core): only moments are loaded."""

    def resume(ranks: Ranks) -> list[float]:
        mesh, found = make_mesh(ranks, ALONE), []
        for spec in (OptimizerSpec(learning_rate=0.5, weight_decay=0.3), OptimizerSpec(weight_decay=0.1)):
            model = parallelize(small_model(world, 1), mesh, TrainSpec().parallel)
            optimizer = make_optimizer(model.module, spec)
            state = checkpointing.train_state(model.module, optimizer)
            checkpointing.load_newest(tmp_path, state, "a", ranks)
            checkpointing.save_step(tmp_path, len(found) + 1, state, {"identity": "a"}, ranks, keep=2)
            set_rate(optimizer, spec.learning_rate)
            decays = {group["weight_decay"] for group in optimizer.param_groups}
            found += [optimizer.param_groups[0]["lr"], max(decays)]
        return found

    assert run_ranks(resume, 1) == [[0.5, 0.3, OptimizerSpec().learning_rate, 0.1]]


@pytest.mark.parametrize("stop", [1, 40, 41])
def test_stream_goes_on_in_the_same_order_wherever_it_stopped(world: Any, stop: int) -> None:
    """D1, D4 (accelerate#4071), D6 (datasets#7538): also in the second epoch; no row is lost or drawn twice."""
    whole = stream(world)
    n = whole.num_per_epoch
    order = [whole.row_at(p) for p in range(2 * n)]
    for first in (stop, n + stop):
        resumed = stream(world)
        assert [resumed.row_at(p) for p in range(first, 2 * n)] == order[first:]
    assert sorted(order[:n]) == sorted(order[n:]) == list(range(n))


def test_resume_skips_micro_batches_and_not_steps(world: Any) -> None:
    """D8 (gpt-neox#308): ten steps of four micro-batches of one sequence are 40 sequences."""
    resumed = list(stream(world).micro_batches(rank_positions(10, 4, ALONE, 0), 1))
    expected = [stream(world).read(stream(world).row_at(p))[0] for p in range(40, 44)]
    assert [b.tokens_BT[0, : b.num_tokens].tolist() for b in resumed] == [tokens.tolist() for tokens in expected]


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 8])
def test_every_sequence_is_in_one_micro_batch_whatever_their_number(world: Any, size: int) -> None:
    """D15: micro-batches of four; the last one may be smaller, and is not dropped."""
    batches = list(stream(world).micro_batches(range(size), 4))
    assert [len(b.tokens_BT) for b in batches] == [4] * (size // 4) + [size % 4] * (size % 4 > 0)
    expected = sum(len(stream(world).read(stream(world).row_at(p))[0]) for p in range(size))
    assert sum(b.num_tokens for b in batches) == expected


@pytest.mark.parametrize("num_rows", [1, 4, 7])
def test_held_out_rows_count_once_and_ranks_have_as_many_batches(num_rows: int) -> None:
    """D10, D12 (pytorch#141069): 7 rows on 2 ranks; nothing is repeated to fill up, nobody waits for a peer."""
    rows = [row(list(range(3, 3 + 4 + i)), [4 + i]) for i in range(num_rows)]
    counts = []
    for rank in range(2):
        mesh: Any = Mesh(Ranks(rank, 2, torch.device("cpu")), Degrees(1, 1, 2, 1, 1), None, None)
        batches = heldout_batches(rows, mesh, 2, 0, 16)
        counts.append((len(batches), sum(count_targets(targets_of(b.labels_BT)) for b in batches)))
    assert counts[0][0] == counts[1][0]
    assert counts[0][1] + counts[1][1] == sum(3 + i for i in range(num_rows))


def test_reading_draws_no_random_number_of_torch_or_numpy(world: Any) -> None:
    """F2 (Megatron-DeepSpeed#276): dropout must not depend on who reads, or how far ahead."""
    mesh: Any = Mesh(Ranks(0, 1, torch.device("cpu")), ALONE, None, None)
    spec = TrainSpec.model_validate({"objective": "masked_lm", "model": SMALL | {"architecture": "bert"}})
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    batches = list(stream(world).micro_batches(range(8), 4))
    inputs = [Examples(spec, mesh, world.tokenizer).of(batch, range(4)) for batch in batches]
    assert count_targets(inputs[0].targets_BS) > 0
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before


def test_sharded_ranks_start_from_the_weights_of_one(run_ranks: RunRanks, world: Any) -> None:
    """F4 (torchtitan#1750)."""

    def start(ranks: Ranks) -> dict[str, torch.Tensor]:
        mesh = make_mesh(ranks, Degrees(1, 1, 2, 1, 1))
        model = parallelize(small_model(world, 5), mesh, TrainSpec().parallel)
        weights = {name: p.detach() for name, p in model.module.named_parameters()}
        return checkpointing.gather_state(weights, mesh)

    found = run_ranks(start, 2)[0]
    expected = dict(small_model(world, 5).named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_dropout_goes_on_where_it_was_after_a_resume_at_the_end_of_an_epoch(
    run_ranks: RunRanks, world: Any, tmp_path: Path
) -> None:
    """D2 (transformers#46628), D3 (transformers#17032): each step is an epoch; the resumed third has its own masks."""
    spec = TrainSpec.model_validate(
        {
            "model": SMALL | {"architecture": "gpt2", "dropout": 0.2}, "num_steps": 3, "micro_batch": 16, "ranks": 1,
            "sequences_per_step": stream(world).num_per_epoch, "checkpoint_every": 1,
        }
    )  # fmt: skip

    def train(ranks: Ranks) -> bool:
        mesh = make_mesh(ranks, ALONE)
        model = new_model(model_config(spec.model, world.tokenizer, 32), 0)
        material = PackedText(stream(world), Examples(spec, mesh, world.tokenizer))
        train_rank(parallelize(model, mesh, spec.parallel), material, spec, plan_of(spec, False, "a"), tmp_path)
        return True

    (tmp_path / "data").mkdir()
    (tmp_path / "scratch").mkdir()
    run_ranks(train, 1)
    whole = (tmp_path / "data" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "scratch" / "checkpoints" / "step-00000003")
    run_ranks(train, 1)
    assert (tmp_path / "data" / "model.safetensors").read_bytes() == whole


def test_flops_are_those_of_all_blocks(world: Any) -> None:
    """E17 (OLMo-core): counted before a pipeline cuts the model; by hand for two blocks of width 16."""
    model = small_model(world, 0)
    block = 4 * 16 * 16 + 3 * 16 * 24 + 2 * 16
    matrices = 2 * block + 16 + world.tokenizer.vocab_size * 16
    assert model_flops_per_token(model, 32) == 6 * matrices + 12 * 2 * 16 * 32


def test_every_test_that_the_list_of_training_cases_names_exists() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs/training-cases.md").read_text()
    named = re.findall(r"`((?:tests/)?[\w/]+\.py)(?:::(\w+))?`", page)
    assert len(named) > 60
    for file, test in named:
        path = root / file if file.startswith("tests/") else root / "tests/training" / file
        assert path.is_file(), file
        assert not test or re.search(rf"^def {test}\(", path.read_text(), re.MULTILINE), f"{file}::{test}"


def test_list_of_training_cases_has_every_number_once_with_a_test_or_a_reason() -> None:
    wanted = {
        "A": [*range(1, 9), 10, 11, 13, 14, 15, 16], "B": range(1, 7), "C": [*range(1, 9), *range(12, 21)],
        "D": [1, 2, 3, 4, 6, 8, 9, 10, 11, 12, 14, 15], "E": [1, 2, 3, 5, 6, 7, 8, 9, 10, 12, 13, 14, 15, 17],
        "F": [1, 2, 4, 6, 7, 8, 9, 10],
    }  # fmt: skip
    page = (Path(__file__).parents[2] / "docs/training-cases.md").read_text()
    rows = [line.strip("| \n").split(" | ") for line in page.splitlines() if re.match(r"\| [A-F]\d+ \|", line)]
    assert [cells[0] for cells in rows] == [f"{group}{n}" for group, numbers in wanted.items() for n in numbers]
    assert all(len(cells) == 4 and ("`" in cells[3] or cells[3].startswith("no test: ")) for cells in rows)
