"""What a training does beside plain steps, on real ranks: spikes, averages, a batch that grows, an early end, fp16."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from training.loop_spec import OptimizerSpec
from training.parallel_spec import Coordinate
from training.pretrain import checkpointing, loss_scale, parallel
from training.pretrain.chunked_loss import install_loss_head
from training.pretrain.heldout import heldout_batches, heldout_rows
from training.pretrain.local_training import ReplicaMesh
from training.pretrain.loss import sum_cross_entropy
from training.pretrain.mesh import Ranks, make_mesh
from training.pretrain.model import model_config, new_model
from training.pretrain.objectives import Examples, PackedText
from training.pretrain.optimizer import make_optimizer
from training.pretrain.parallel import parallelize
from training.pretrain.sequence_order import corpus_row_groups
from training.pretrain.spikes import Window, position_of
from training.pretrain.token_shards import Batch, Sequences
from training.pretrain.trainer import plan_of, seed_dropout, train_rank, train_step
from training.specs import TrainSpec

MODEL = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 24}
SPEC: dict[str, Any] = {
    "model": MODEL,
    "num_steps": 12,
    "sequences_per_step": 4,
    "micro_batch": 1,
    "ranks": 2,
    "checkpoint_every": 4,
    "optimizer": {"learning_rate": 1e-2},
}
REPLICAS: dict[str, Any] = {"parallel": {"dp_replicate": 2}, "local": {"every": 4, "outer": "nesterov"}}
DETECTOR = {"enabled": True, "window": 8, "active_after": 8, "sigma": 4.5}
LEARNS_FAST = {"num_steps": 20, "optimizer": {"learning_rate": 3e-2}}  # so that noise stands out by step 15


class Stream(Sequences):
    """The corpus's sequences with `bad` positions full of noise, or as if the `gone` ones had never been there."""

    bad: tuple[Window, ...] = ()
    gone: tuple[Window, ...] = ()

    def micro_batches(self, positions: Sequence[int], micro_batch: int) -> Iterator[Batch]:
        found = [position_of(p, self.gone) for p in positions]
        for i, batch in enumerate(super().micro_batches(found, micro_batch)):
            for row, position in enumerate(found[i * micro_batch : (i + 1) * micro_batch]):
                if any(first <= position < end for first, end in self.bad):
                    noise = torch.arange(batch.tokens_BT.shape[1]) * 7919 % 300
                    batch.tokens_BT[row] = torch.where(batch.documents_BT[row] >= 0, noise, batch.tokens_BT[row])
                    batch.labels_BT[row] = torch.where(batch.labels_BT[row] >= 0, noise, batch.labels_BT[row])
            yield batch


def poison(model: Any, bad_call: int, what: str = "loss") -> None:
    """Let one forward pass, counted from 1, answer NaN; -1: every one. gradient: only the way back is infinite."""
    calls = itertools.count(1)

    def answer(module: Any, inputs: Any, output: Any) -> Any:
        if bad_call in (-1, next(calls)):
            if what == "loss":
                output.logits = output.logits * float("nan")
            else:
                output.logits.register_hook(lambda grad: grad * float("inf"))
        return output

    model.register_forward_hook(answer)


def run(
    world: Any, ranks: Ranks, out: Path, fields: dict[str, Any], poisoned_call: tuple[Any, ...] = (0, 0), **stream: Any
) -> dict[str, Any]:
    """Train as main does, and return the facts of rank 0. poisoned_call: rank, forward pass, and what of it is bad."""
    spec = TrainSpec.model_validate(SPEC | fields)
    mesh = make_mesh(ranks, spec.parallel.degrees(ranks.world_size))
    model = new_model(model_config(spec.model, world.tokenizer, world.corpus.seq_len), spec.seed, spec.objective)
    head = install_loss_head(model, spec.loss) if spec.loss.chunk_tokens else None
    loss = functools.partial(sum_cross_entropy, spec=spec.loss)
    placed = mesh if spec.local is None else ReplicaMesh.of(mesh)
    shared = parallelize(model, placed, spec.parallel, spec.precision, loss, head)
    if poisoned_call[1] and poisoned_call[0] == ranks.rank:
        poison(shared.module, *poisoned_call[1:])
    sequences = Stream(corpus_row_groups(world.corpus), world.corpus.seq_len, 0, 0.5, spec.seed)
    for name, value in stream.items():
        setattr(sequences, name, value)
    heldout = []
    if spec.early_stop.watch == "heldout":
        rows = heldout_rows(world.corpus, world.tokenizer, spec.early_stop.num_sequences)
        heldout = heldout_batches(rows, mesh, spec.micro_batch, 0, world.corpus.seq_len)
    if ranks.is_first:
        for name in ("data", "scratch"):
            (out / name).mkdir(parents=True, exist_ok=True)
    material = PackedText(sequences, Examples(spec, mesh, world.tokenizer), heldout)
    return train_rank(shared, material, spec, plan_of(spec, False, "a"), out)


def weights(out: Path, part: str = "model") -> dict[str, torch.Tensor]:
    return load_file(out / "data" / f"{part}.safetensors")


def curve(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "data" / "curve.jsonl").read_text().splitlines()]


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def train(world, run_ranks, tmp_path: Path) -> Any:
    """Train into a folder of the test; returns (facts, folder)."""

    def start(name: str, fields: dict[str, Any], **stream: Any) -> tuple[dict[str, Any], Path]:
        out = tmp_path / name
        world_size = (SPEC | fields)["ranks"]
        results = run_ranks(lambda ranks: json.dumps(run(world, ranks, out, fields, **stream)), world_size)
        return json.loads(results[0]), out

    return start


def test_spike_is_skipped_and_the_weights_are_those_of_a_run_that_never_saw_its_rows(train) -> None:
    facts, out = train("spike", LEARNS_FAST | {"spikes": DETECTOR}, bad=((56, 60),))
    assert facts["jumped"] == [[56, 60]]
    (incident,) = [json.loads(line) for line in (out / "data" / "incidents.jsonl").read_text().splitlines()]
    assert (incident["step"], incident["action"], incident["rows"]) == (15, "skip", [56, 60])
    assert "4.5 sigma over the last 8 steps" in incident["reason"]
    _, clean = train("clean", LEARNS_FAST, gone=((56, 60),))
    assert_same(weights(out), weights(clean))
    assert [line["loss"] for line in curve(out)] == [line["loss"] for line in curve(clean)]


def test_spike_that_lasts_sends_training_back_and_its_rows_are_jumped_over(train) -> None:
    """Steps 15 and 16 are noise; one skip is allowed, so the second spike goes back to step 12 and jumps to row 64."""
    facts, out = train("spike", LEARNS_FAST | {"spikes": DETECTOR | {"max_skips": 1}}, bad=((56, 64),))
    incidents = [json.loads(line) for line in (out / "data" / "incidents.jsonl").read_text().splitlines()]
    assert [(i["action"], i["rows"], i["to_step"]) for i in incidents] == [
        ("skip", [56, 60], 14),
        ("rollback", [48, 64], 12),
    ]
    assert (facts["jumped"], facts["num_steps"], facts["num_sequences"]) == ([[48, 64]], 20, 80)
    _, clean = train("clean", LEARNS_FAST, gone=((48, 64),))
    assert_same(weights(out), weights(clean))
    assert [line["step"] for line in curve(out)] == list(range(1, 21))
    events = [json.loads(line) for line in (out / "scratch" / "events.jsonl").read_text().splitlines()]
    assert [e["incident"]["action"] for e in events if "incident" in e] == ["skip", "rollback"]


def test_replicas_go_back_to_their_last_outer_step_together(train) -> None:
    """Both had taken two steps on their own since; what they know of these is gone too."""
    fields = LEARNS_FAST | REPLICAS | {"local": {"every": 4}}
    facts, out = train("spike", fields | {"spikes": DETECTOR | {"max_skips": 1}}, bad=((56, 64),))
    assert (facts["jumped"], facts["num_steps"], facts["num_incidents"]) == ([[48, 64]], 20, 2)
    _, clean = train("clean", fields, gone=((48, 64),))
    assert_same(weights(out), weights(clean))


def test_overflow_on_one_replica_halves_the_scale_of_all(train) -> None:
    fields = REPLICAS | {"precision": "fp16"}
    facts, out = train("overflow", fields, poisoned_call=(1, 9, "gradient"))
    assert (facts["num_incidents"], facts["num_steps"], facts["jumped"]) == (0, 12, [])
    _, plain = train("plain", fields)
    folders = [place / "scratch" / "checkpoints" for place in (out, plain)]
    scales = [checkpointing.facts_of(folder, 12)["run"]["scale"]["scale"] for folder in folders]
    assert scales[0] == scales[1] / 2


def test_checkpoint_is_clean_unless_something_was_jumped_since_the_one_before(train) -> None:
    """Noise in steps 14 and 17: checkpoints 16 and 20 are not to go back to, 12 is, and stays though two are newer."""
    _, out = train("spikes", LEARNS_FAST | {"spikes": DETECTOR}, bad=((52, 56), (68, 72)))
    folder = out / "scratch" / "checkpoints"
    clean = {step: checkpointing.facts_of(folder, step)["clean"] for step in checkpointing.complete_steps(folder)}
    assert clean == {12: True, 16: False, 20: False}


def test_run_resumed_after_a_rollback_decides_as_it_did(train) -> None:
    fields = LEARNS_FAST | {"spikes": DETECTOR | {"max_skips": 1}}
    _, out = train("spike", fields, bad=((56, 64),))
    found, incidents = weights(out), (out / "data" / "incidents.jsonl").read_bytes()
    folder = out / "scratch" / "checkpoints"
    shutil.rmtree(folder / f"step-{checkpointing.complete_steps(folder)[-1]:08d}")
    train("spike", fields, bad=((56, 64),))
    assert_same(weights(out), found)
    assert (out / "data" / "incidents.jsonl").read_bytes() == incidents


def test_step_that_is_not_finite_on_one_rank_is_skipped_by_all(train) -> None:
    """Rank 1 meets NaN once, in its share of step 5; nobody asked for a detector."""
    facts, out = train("nan", {}, poisoned_call=(1, 9))
    assert facts["jumped"] == [[16, 20]]
    _, clean = train("clean", {}, gone=((16, 20),))
    assert_same(weights(out), weights(clean))


def test_steps_that_are_never_finite_end_training(train) -> None:
    with pytest.raises(Exception, match=r"loss nan, gradient norm nan, .* after 3 steps skipped and 0 rollbacks"):
        train("nan", {}, poisoned_call=(1, -1))


def test_rollbacks_are_capped(train) -> None:
    fields = LEARNS_FAST | {"spikes": DETECTOR | {"max_skips": 1, "max_rollbacks": 0}}
    with pytest.raises(
        Exception, match=r"step 15 of 20: .* .* after 1 steps skipped and 0 rollbacks; nothing was published"
    ):
        train("spike", fields, bad=((56, 100),))


def test_average_is_saved_exported_by_choice_and_the_same_after_a_resume(train) -> None:
    fields = {"ema": {"decay": 0.9}}
    facts, out = train("whole", fields)
    assert facts["exported"] == "ema"
    plain_facts, plain = train("plain", {})
    assert plain_facts["exported"] == "model"
    assert_same(weights(out), weights(plain))
    average = weights(out, "ema")
    assert average.keys() == weights(out).keys()
    assert not torch.equal(average["model.norm.weight"], weights(out)["model.norm.weight"])
    newest = checkpointing.complete_steps(out / "scratch" / "checkpoints")[-1]
    shutil.rmtree(out / "scratch" / "checkpoints" / f"step-{newest:08d}")
    train("whole", fields)
    assert_same(weights(out, "ema"), average)


def test_batch_that_grows_keeps_the_rate_of_each_token_and_draws_as_many_sequences(train) -> None:
    fields = {"adaptive_batch": {"measure_every": 1, "max_ratio": 4, "change_every": 2, "smoothing": 0.5}}
    shape = {"ranks": 1, "sequences_per_step": 2, "num_steps": 24}
    facts, out = train("grows", shape | fields)
    assert facts["num_sequences"] == 48
    assert facts["num_steps"] < 24
    _, plain = train("plain", shape)
    rates = [line["learning_rate"] for line in curve(plain)]
    drawn, found = 0, [json.loads(x) for x in (out / "scratch" / "events.jsonl").read_text().splitlines()]
    for event in found:
        assert event["learning_rate"] == rates[drawn // 2]
        drawn += event["sequences"]
    assert drawn == 48
    assert max(event["sequences"] for event in found) > 2
    assert all(line["noise_scale"] > 0 for line in curve(out) if "noise_scale" in line)


def test_measuring_the_noise_scale_changes_no_number(train) -> None:
    _, plain = train("plain", {})
    _, measured = train("measured", {"adaptive_batch": {"measure_every": 2}})
    for one, other in zip(curve(plain), curve(measured), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert any("noise_scale" in line for line in curve(measured))


def test_training_stops_early_when_the_held_out_loss_does_not_fall(train) -> None:
    """A gain of 100 nats never comes: best at the first look, two looks without a gain, stopped at the third."""
    stop = {"watch": "heldout", "every": 2, "patience": 2, "min_gain": 100.0, "num_sequences": 3}
    facts, out = train("stops", {"early_stop": stop})
    assert (facts["num_steps"], facts["stopped_early"]) == (6, True)
    seen = [line["heldout_loss"] for line in curve(out) if "heldout_loss" in line]
    assert len(seen) == 3
    assert 1.0 < seen[-1] < seen[0] < 6.0
    _, one_rank = train("one", {"early_stop": stop, "ranks": 1})
    alone = [line["heldout_loss"] for line in curve(one_rank) if "heldout_loss" in line]
    assert alone == pytest.approx(seen, abs=1e-4)


def test_fp16_tries_again_after_an_overflow_and_follows_fp32(train, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a scale of 2^40 gradients overflow again and again; no row is lost, no step is missing."""
    monkeypatch.setattr(loss_scale, "START", 2.0**40)
    _, plain = train("fp32", {})
    facts, half = train("fp16", {"precision": "fp16"})
    assert (facts["num_incidents"], facts["jumped"]) == (0, [])
    newest = checkpointing.complete_steps(half / "scratch" / "checkpoints")[-1]
    scale = checkpointing.facts_of(half / "scratch" / "checkpoints", newest)["run"]["scale"]["scale"]
    assert 1.0 < scale < 2.0**30
    for one, other in zip(curve(plain), curve(half), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=0.02)


def test_overflow_on_one_rank_halves_the_scale_of_all_and_loses_no_row(train) -> None:
    """Scales that part company would never meet again (pytorch#115710)."""
    facts, out = train("overflow", {"precision": "fp16"}, poisoned_call=(1, 9, "gradient"))
    assert (facts["num_incidents"], facts["num_steps"], facts["jumped"]) == (0, 12, [])
    _, plain = train("plain", {"precision": "fp16"})
    scales = [
        checkpointing.facts_of(folder / "scratch" / "checkpoints", 12)["run"]["scale"]["scale"]
        for folder in (out, plain)
    ]
    assert scales[0] == scales[1] / 2
    for one, other in zip(curve(plain), curve(out), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=0.02)


def test_gradients_are_unscaled_before_they_are_clipped(world, run_ranks) -> None:
    """Scaling by 1,024 is exact, so nothing may change; clipped before, gradients would shrink by it."""

    def step(ranks: Ranks) -> list[float]:
        found = []
        for scale in (1.0, 1024.0):
            spec = TrainSpec.model_validate(SPEC | {"ranks": 1})
            mesh = make_mesh(ranks, spec.parallel.degrees(1))
            model = new_model(model_config(spec.model, world.tokenizer, world.corpus.seq_len), 0)
            shared = parallelize(model, mesh, spec.parallel)
            batches = Sequences(corpus_row_groups(world.corpus), 32, 0, 0.5, 0).micro_batches(range(4), 2)
            parts = [Examples(spec, mesh, world.tokenizer).of(batch, range(2)) for batch in batches]
            optimizer = make_optimizer(shared.module, OptimizerSpec(kind="sgd", learning_rate=1.0))
            facts = train_step(shared, optimizer, parts, 1.0, 0.1, scale=scale)
            total = sum(float(p.detach().full_tensor().double().sum()) for p in shared.module.parameters())
            found += [facts.loss, facts.grad_norm, total]
        return found

    ((loss, norm, total, *scaled),) = run_ranks(step, 1)
    assert norm > 0.1
    assert scaled == pytest.approx([loss, norm, total], rel=1e-6)


def test_look_at_the_average_leaves_weights_and_dropout_as_they_were(train) -> None:
    """The looked-at average must not stay in the place of the weights, nor evaluation in that of training."""
    fields = {"model": MODEL | {"architecture": "gpt2", "dropout": 0.2}}
    _, plain = train("plain", fields)
    looked = {"ema": {"decay": 0.9}, "early_stop": {"watch": "heldout", "every": 3, "num_sequences": 4}}
    _, out = train("looked", fields | looked)
    assert_same(weights(out), weights(plain))


def test_dropout_differs_over_rows_and_is_the_same_over_matrices() -> None:
    def drawn(batch: int, tp: int) -> list[float]:
        seed_dropout(3, SimpleNamespace(at=Coordinate(0, batch, 0, tp)))
        return torch.rand(4).tolist()

    assert drawn(0, 0) == drawn(0, 1)
    assert drawn(0, 0) != drawn(1, 0)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_weights_in_low_precision_have_fp32_masters(train, precision: str) -> None:
    """A bf16 weight of 1.0 never moves under steps of 1e-3."""
    _, out = train(precision, {"precision": precision, "num_steps": 2})
    assert {t.dtype for part in ("model", "optimizer") for t in weights(out, part).values()} == {torch.float32}


@pytest.mark.parametrize(
    "fields",
    [
        {"loss": {"chunk_tokens": 10}},
        {"model": MODEL | {"architecture": "gpt2"}},
        {"model": MODEL | {"architecture": "bert"}, "objective": "masked_lm", "loss": {"chunk_tokens": 8}},
        {"model": MODEL | {"architecture": "t5", "dropout": 0.1}, "objective": "seq2seq_lm"},
        {"optimizer": {"kind": "muon", "learning_rate": 1e-2}, "schedule": {"kind": "cosine"}},
        {"optimizer": {"kind": "adafactor", "learning_rate": 3e-2}, "loss": {"label_smoothing": 0.05, "z_loss": 1e-4}},
    ],
    ids=["chunked", "gpt2", "bert", "t5", "muon", "adafactor"],
)
def test_each_kind_of_training_lowers_its_loss(train, fields: dict[str, Any]) -> None:
    facts, out = train("kind", fields | {"num_steps": 16})
    losses = [line["loss"] for line in curve(out)]
    assert sum(losses[-4:]) < sum(losses[:4])
    assert facts["final_loss"] == losses[-1]


@pytest.mark.parametrize(
    "fields",
    [
        {"model": MODEL | {"architecture": "gpt2"}, "loss": {"chunk_tokens": 7}},
        {"model": MODEL | {"architecture": "bert"}, "objective": "masked_lm"},
        {"model": MODEL | {"architecture": "t5"}, "objective": "seq2seq_lm"},
    ],
    ids=["gpt2", "bert", "t5"],
)
def test_blocks_sharded_one_by_one_give_the_losses_of_a_model_sharded_whole(
    train, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    """Large models gather a block at a time; small ones are made to here."""
    fields = fields | {"num_steps": 3, "parallel": {"activation_checkpointing": "full"}}
    _, whole = train("whole", fields)
    monkeypatch.setattr(parallel, "RESHARD_FROM", 0)
    _, blocks = train("blocks", fields)
    for one, other in zip(curve(whole), curve(blocks), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-5)


def test_chunked_loss_trains_the_same_weights(train) -> None:
    _, plain = train("plain", {})
    _, chunked = train("chunked", {"loss": {"chunk_tokens": 10}})
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(chunked)[name], tensor, atol=1e-4, rtol=0)
