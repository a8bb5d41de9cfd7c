"""The model jobs through the application: what they publish, what they refuse, what survives a kill."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from spark_jobs.manifests import TokenShards
from training.manifests import Checkpoint, ModelFolder, Scorecard, Verdict
from training.model_folder import load_model
from training.specs import TrainSpec

MODEL = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 64}
TRAIN: dict[str, Any] = {
    "model": MODEL,
    "num_steps": 12,
    "continue_steps": 4,
    "sequences_per_step": 4,
    "micro_batch": 2,
    "ranks": 2,
    "checkpoint_every": 4,
}


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def checkpoint(engine, world) -> Checkpoint:
    return engine.run(Checkpoint, "train", TRAIN, world.root / "checkpoints" / "train-0001", **world.inputs())


@pytest.fixture(scope="module")
def dense(engine, world, checkpoint) -> ModelFolder:
    inputs = {"checkpoint": checkpoint.uri, "tokenizer": world.tokenizer.uri}
    return engine.run(ModelFolder, "export", {}, world.root / "models" / "export-0001", **inputs)


@pytest.fixture(scope="module")
def compressed(engine, world, dense) -> dict[str, ModelFolder]:
    return {
        scheme: engine.run(
            ModelFolder, "compress", {"recipe": {"name": scheme, "quantize": {"bits": bits, "group_size": 32}}},
            world.root / "models" / f"compress-{scheme}-0001", model=dense.uri,
        )
        for scheme, bits in (("int8", 8), ("int4", 4))
    }  # fmt: skip


def test_train_publishes_weights_optimizer_and_a_curve(checkpoint: Checkpoint) -> None:
    names = {f.path for f in checkpoint.files}
    assert names == {f"data/{n}" for n in ("config.json", "curve.jsonl", "model.safetensors", "optimizer.safetensors")}
    curve = [json.loads(line) for line in (Path(checkpoint.folder()) / "curve.jsonl").read_text().splitlines()]
    assert [line["step"] for line in curve] == list(range(1, 13))
    assert curve[-1]["loss"] == checkpoint.final_loss < curve[0]["loss"]
    assert sum(line["tokens"] for line in curve) == checkpoint.num_tokens


@pytest.mark.parametrize("who", ["rank", "launcher"])
def test_train_killed_and_started_again_gives_the_same_bytes(engine, world, checkpoint, tmp_path, who: str) -> None:
    """Killed after step 6 the run resumes at 4; a launcher that is killed takes its ranks along."""
    out, killed = tmp_path / "train-0002", False
    ranks: list[psutil.Process] = []
    messages = engine.start("train", TRAIN, out, **world.inputs())
    for message in messages:
        if message.get("event", {}).get("step", 0) >= 6 and not killed:
            (launcher,) = psutil.Process(engine.process.pid).children()
            ranks = launcher.children()
            os.kill(ranks[-1].pid if who == "rank" else launcher.pid, signal.SIGKILL)
            killed = True
    assert message["failure"]["error"] == "JobCrashed"
    assert "SIGKILL" in message["failure"]["message"]
    assert len(ranks) == 2
    assert not psutil.wait_procs(ranks, timeout=10)[1], "a rank outlived its launcher"
    assert not (out / "data" / "model.safetensors").exists()
    *_, last = engine.start("train", TRAIN, out, **world.inputs())
    assert "outcome" in last
    assert digests(out / "data") == digests(Path(checkpoint.folder()))


def test_train_starts_its_ranks_again_after_one_was_killed(engine, world, checkpoint, tmp_path) -> None:
    """Checkpoints are written in the background; the bytes are those of the run that nothing disturbed."""
    out, killed = tmp_path / "train-0009", False
    incidents = []
    spec = TRAIN | {"max_restarts": 1, "checkpoint_mode": "async"}
    for message in engine.start("train", spec, out, **world.inputs()):
        event = message.get("event", {})
        if event.get("step", 0) >= 10 and not killed:
            (launcher,) = psutil.Process(engine.process.pid).children()
            launcher.children()[-1].kill()
            killed = True
        if "incident" in event:
            incidents.append(event["incident"])
    assert "outcome" in message, message
    assert [(told["action"], told["to_step"] in (4, 8)) for told in incidents] == [("restart", True)]
    assert incidents[0]["reason"].startswith("a rank was killed; all ranks were started again")
    assert digests(out / "data") == digests(Path(checkpoint.folder()))


def test_train_whose_ranks_are_killed_too_often_crashes(engine, world, tmp_path) -> None:
    pids: set[int] = set()
    for message in engine.start("train", TRAIN | {"max_restarts": 1}, tmp_path / "train-0010", **world.inputs()):
        if message.get("event", {}).get("step", 0) >= 2:
            (launcher,) = psutil.Process(engine.process.pid).children()
            victim = launcher.children()[-1]
            if not pids or (len(pids) == 1 and victim.pid not in pids):
                victim.kill()
                pids.add(victim.pid)
    assert len(pids) == 2
    assert message["failure"]["error"] == "JobCrashed"
    assert "SIGKILL" in message["failure"]["message"]


def test_train_resumed_on_another_number_of_ranks_reads_the_same_data(engine, world, tmp_path) -> None:
    out = tmp_path / "train-0003"
    *_, first = engine.start("train", TRAIN, out, **world.inputs())
    curve = (out / "data" / "curve.jsonl").read_text().splitlines()
    shutil.rmtree(out / "scratch" / "checkpoints" / "step-00000012")
    *_, second = engine.start("train", TRAIN | {"ranks": 1}, out, **world.inputs())
    resumed = (out / "data" / "curve.jsonl").read_text().splitlines()
    assert resumed[:8] == curve[:8]
    for a, b in zip(curve[8:], resumed[8:], strict=True):
        one, other = json.loads(a), json.loads(b)
        assert other["tokens"] == one["tokens"]
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert first["outcome"]["fields"]["num_tokens"] == second["outcome"]["fields"]["num_tokens"]


def test_train_with_a_rate_that_explodes_says_so_and_publishes_nothing(engine, world, tmp_path) -> None:
    out = tmp_path / "train-0004"
    spec = TRAIN | {"optimizer": {"learning_rate": 1e30}}
    error, message = engine.fail("train", spec, out, **world.inputs())
    assert error == "TrainingError"
    assert "training stopped at step" in message
    assert "Lower optimizer.learning_rate" in message
    assert not (out / "data" / "model.safetensors").exists()


def test_train_on_too_few_sequences_is_refused(engine, world, tmp_path) -> None:
    spec = TRAIN | {"sequences_per_step": 4000}
    error, message = engine.fail("train", spec, tmp_path / "train-0005", **world.inputs())
    assert error == "DataError"
    assert "one step wants 4000 for 2 ranks" in message


def test_train_on_changed_shards_is_refused(engine, make, tmp_path) -> None:
    world = make.world(tmp_path, [make.texts(30, 1)], 300, 32)
    shards = TokenShards.load(world.corpus.at(world.corpus.nights[0].tokens.address))
    path = Path(shards.paths()[0])
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    error, message = engine.fail("train", TRAIN, tmp_path / "train-0006", **world.inputs())
    assert error == "DataError"
    assert "changed since it was published" in message


def test_train_goes_on_from_a_champion(engine, world, dense, checkpoint, tmp_path) -> None:
    out = tmp_path / "train-0007"
    *events, last = engine.start("train", TRAIN, out, champion=dense.uri, **world.inputs())
    fields = last["outcome"]["fields"]
    assert (fields["num_steps"], fields["resumed_from"]) == (4, dense.address)
    from_scratch = json.loads(Path(checkpoint.folder(), "curve.jsonl").read_text().splitlines()[0])
    assert events[0]["event"]["loss"] < from_scratch["loss"]
    spec = TrainSpec()
    assert max(e["event"]["learning_rate"] for e in events) <= spec.optimizer.learning_rate * spec.continue_rate_ratio


def test_train_on_a_champion_of_another_shape_is_refused(engine, world, dense, tmp_path) -> None:
    spec = TRAIN | {"model": MODEL | {"num_layers": 3}}
    error, message = engine.fail("train", spec, tmp_path / "train-0008", champion=dense.uri, **world.inputs())
    assert error == "RequestError"
    assert "num_hidden_layers 2 (spec asks 3)" in message


def test_export_loads_in_plain_transformers(dense: ModelFolder, checkpoint: Checkpoint) -> None:
    model = AutoModelForCausalLM.from_pretrained(dense.folder())
    assert sum(p.numel() for p in model.parameters()) == dense.num_parameters == checkpoint.num_parameters
    assert model.lm_head.weight is model.model.embed_tokens.weight
    tokenizer = AutoTokenizer.from_pretrained(dense.folder())
    assert tokenizer.decode(tokenizer.encode("the café 水", add_special_tokens=False)) == "the café 水"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_compressed_folders_get_smaller_and_reload(dense: ModelFolder, compressed: dict[str, ModelFolder]) -> None:
    sizes = [compressed["int4"].weight_bytes, compressed["int8"].weight_bytes, dense.weight_bytes]
    assert sizes == sorted(set(sizes))
    for name, folder in compressed.items():
        assert (folder.scheme, folder.file_format) == (name, "compressed-tensors")
        assert folder.max_logit_difference == 0.0
        model = AutoModelForCausalLM.from_pretrained(folder.folder())
        original = load_model(dense)
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert (model.model.embed_tokens.weight == original.model.embed_tokens.weight).all()


def test_compress_with_groups_that_do_not_fit_names_the_layers(engine, dense, tmp_path) -> None:
    spec = {"recipe": {"name": "int8", "quantize": {"bits": 8, "group_size": 48}}}
    error, message = engine.fail("compress", spec, tmp_path / "compress-0002", model=dense.uri)
    assert error == "RequestError"
    assert "model.layers.0.self_attn.q_proj (32 inputs)" in message


def test_compress_of_a_compressed_model_is_refused(engine, compressed, tmp_path) -> None:
    spec = {"recipe": {"name": "int4", "quantize": {"bits": 4, "group_size": 32}}}
    error, message = engine.fail("compress", spec, tmp_path / "compress-0003", model=compressed["int8"].uri)
    assert error == "RequestError"
    assert "is compressed-tensors already" in message


def test_evaluate_and_gate_decide_on_the_same_documents(engine, world, dense, compressed) -> None:
    inputs = {"corpus": world.corpus.uri, "tokenizer": world.tokenizer.uri}
    cards = {
        name: engine.run(
            Scorecard, "evaluate", {"max_document_tokens": 100}, world.root / "scorecards" / f"evaluate-{name}",
            model=folder.uri, **inputs,
        )
        for name, folder in {"dense": dense, "int8": compressed["int8"]}.items()
    }  # fmt: skip
    assert cards["dense"].num_rows == sum(n.num_heldout for n in world.corpus.nights)
    assert cards["dense"].num_bytes == cards["int8"].num_bytes
    assert cards["int8"].bits_per_byte == pytest.approx(cards["dense"].bits_per_byte, abs=0.01)
    first = engine.run(Verdict, "gate", {}, world.root / "verdicts" / "gate-0001", candidate=cards["dense"].uri)
    assert first.decision == "promote"
    tie = engine.run(
        Verdict, "gate", {"min_documents": 2}, world.root / "verdicts" / "gate-0002",
        candidate=cards["dense"].uri, champion=cards["dense"].uri,
    )  # fmt: skip
    assert (tie.decision, tie.difference) == ("keep", 0.0)


def test_generate_writes_text_from_any_folder(engine, dense, compressed, tmp_path) -> None:
    for folder in (dense, compressed["int4"]):
        *_, last = engine.start("generate", {"prompt": "the", "max_new_tokens": 5}, tmp_path / "g", model=folder.uri)
        assert 1 <= last["outcome"]["fields"]["num_new_tokens"] <= 5


def test_an_unknown_job_is_refused_and_the_next_one_still_runs(engine, dense, tmp_path) -> None:
    error, message = engine.fail("bake", {}, tmp_path / "x")
    assert error == "RequestError"
    assert "'bake' is not one of train" in message
    started = time.monotonic()
    *_, last = engine.start("generate", {"max_new_tokens": 1}, tmp_path / "y", model=dense.uri)
    assert "outcome" in last
    assert time.monotonic() - started < 60
