"""The compress job: what it publishes, what it refuses, and a kill in the middle of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from spark_jobs.errors import DataError, RequestError
from spark_jobs.requests import Request
from training.compress.calibration import save
from training.compress.job import run
from training.compress.layers import is_matrix, weight_OI
from training.compress.masks import valid_groups
from training.manifests import Calibration, ModelFolder
from training.model_folder import weight_bytes

torch.set_num_threads(1)
NIGHT, BLOCKS = "2026-01-01", 10


@pytest.fixture(scope="module")
def dense(make, tmp_path_factory) -> ModelFolder:
    """A tied Llama of ten blocks, so that there is time to kill what works on them."""
    root = tmp_path_factory.mktemp("compress-job")
    tokenizer = make.tokenizer(root, make.texts(20, 1), 300)
    folder = root / "models" / "export-0001"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=64, num_hidden_layers=BLOCKS, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=96, max_position_embeddings=64, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "data")
    PreTrainedTokenizerFast.from_pretrained(tokenizer.folder()).save_pretrained(folder / "data")
    return make.publish(
        ModelFolder, folder, NIGHT, len(model.state_dict()), format="safetensors", scheme="dense",
        num_parameters=model.num_parameters(), weight_bytes=weight_bytes(folder / "data"), effective_bits=32.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def calibration(make, dense: ModelFolder) -> Calibration:
    folder = dense.workspace / "calibrations" / "calibrate-0001"
    (folder / "data").mkdir(parents=True)
    generator = torch.Generator().manual_seed(2)
    save(folder / "data", [torch.randint(3, 300, (20 + i,), generator=generator).numpy() for i in range(16)])
    return make.publish(
        Calibration, folder, NIGHT, 16, format="safetensors", corpus="corpus/corpus-1", num_sequences=16,
        num_tokens=sum(20 + i for i in range(16)), num_overlapping=0,
    )  # fmt: skip


def request_of(out: Path, spec: dict[str, Any], **inputs: Any) -> Request:
    out.mkdir(parents=True, exist_ok=True)
    uris = {role: handle.uri for role, handle in inputs.items()}
    return Request(job="compress", spec=spec, inputs=uris, out=str(out), night=NIGHT)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def events_of(messages: Iterator[dict[str, Any]]) -> tuple[list[str], dict[str, Any]]:
    *events, last = messages
    return [m["event"]["block"] for m in events if "block" in m.get("event", {})], last


SPARSE4 = {
    "name": "sparse4",
    "prune": {"method": "sparsegpt"},
    "quantize": {"method": "gptq", "bits": 4, "group_size": 32},
}


def test_a_recipe_becomes_a_folder_with_report_and_card(make, dense, calibration) -> None:
    out = dense.workspace / "models" / "compress-sparse4-0001"
    outcome = run(request_of(out, {"recipe": SPARSE4}, model=dense, calibration=calibration))
    folder = make.publish_outcome(ModelFolder, out, NIGHT, outcome)
    assert (folder.scheme, folder.file_format, folder.effective_bits) == ("sparse4", "compressed-tensors", 4.5)
    assert folder.num_parameters == dense.num_parameters
    assert folder.weight_bytes == weight_bytes(out / "data") < dense.weight_bytes / 3
    assert folder.max_logit_difference == 0.0
    rows = pq.read_table(out / "data" / "report.parquet").to_pylist()
    assert [row["method"] for row in rows] == ["sparsegpt 2:4"] * 7 * BLOCKS + ["gptq"] * 7 * BLOCKS
    assert all(0 < row["error_after"] < row["error_before"] for row in rows[: 7 * BLOCKS])
    card = (out / "data" / "README.md").read_text()
    assert str(folder.weight_bytes) in card
    assert calibration.address in card


def test_stages_with_a_folder_between_end_with_the_zeros_of_the_first(make, dense, calibration) -> None:
    thin_out = dense.workspace / "models" / "thin-sparse4-0001"
    spec = {"recipe": SPARSE4 | {"recover": {}}}
    outcome = run(request_of(thin_out, spec | {"stage": "thin"}, model=dense, calibration=calibration))
    thin = make.publish_outcome(ModelFolder, thin_out, NIGHT, outcome)
    assert (thin.scheme, thin.file_format) == ("sparse4", "dense")
    out = dense.workspace / "models" / "compress-sparse4-0002"
    run(request_of(out, spec | {"stage": "finish"}, model=thin, calibration=calibration))
    for folder in (thin_out, out):
        model = AutoModelForCausalLM.from_pretrained(folder / "data")
        model(torch.zeros(1, 2, dtype=torch.int64))  # codes become numbers where they are first used
        layers = [m for name, m in model.named_modules() if is_matrix(m) and name != "lm_head"]
        assert len(layers) == 7 * BLOCKS
        assert all(valid_groups(weight_OI(layer), "2:4") == 1.0 for layer in layers)


def test_a_model_that_holds_codes_already_is_refused_with_its_format(make, dense, calibration, tmp_path) -> None:
    out = dense.workspace / "models" / "compress-int8-0001"
    int8 = {"recipe": {"name": "int8", "quantize": {"bits": 8, "group_size": 32}}}
    coded = make.publish_outcome(ModelFolder, out, NIGHT, run(request_of(out, int8, model=dense)))
    with pytest.raises(RequestError, match=r"models/compress-int8-0001 is compressed-tensors already"):
        run(request_of(tmp_path / "again", int8, model=coded))


def test_calibration_of_another_tokenizer_is_refused(make, dense, tmp_path) -> None:
    folder = tmp_path / "calibrations" / "calibrate-0002"
    (folder / "data").mkdir(parents=True)
    save(folder / "data", [torch.tensor([5, 300, 7]).numpy()])
    other = make.publish(
        Calibration, folder, NIGHT, 1, format="safetensors", corpus="corpus/corpus-1", num_sequences=1, num_tokens=3,
        num_overlapping=0,
    )  # fmt: skip
    with pytest.raises(RequestError, match="has 300 token ids, the calibration sequences use 300"):
        run(request_of(tmp_path / "out", {"recipe": SPARSE4}, model=dense, calibration=other))


def test_codes_larger_than_the_dense_weights_are_refused(make, dense, tmp_path) -> None:
    small = dense.model_copy(update={"weight_bytes": 1000, "uri": str(tmp_path / "models" / "export-0002")})
    (tmp_path / "models" / "export-0002").mkdir(parents=True)
    (tmp_path / "models" / "export-0002" / "data").symlink_to(dense.folder())
    (tmp_path / "models" / "export-0002" / "_manifest.json").write_text(small.canonical())
    spec = {"recipe": {"name": "int8", "quantize": {"bits": 8, "group_size": 32}}}
    with pytest.raises(DataError, match=r"recipe int8: its weights take \d+ bytes, those of .* 1000: nothing gained"):
        run(request_of(tmp_path / "out", spec, model=small))


def test_killed_between_blocks_it_goes_on_there_and_gives_the_same_bytes(engine, dense, calibration, tmp_path) -> None:
    """The process that holds the model is killed in each pass; what it had finished is not done again."""
    inputs = {"model": dense.uri, "calibration": calibration.uri}
    names = [f"model.layers.{k}" for k in range(BLOCKS)]
    told, last = events_of(engine.start("compress", {"recipe": SPARSE4}, tmp_path / "whole", **inputs))
    assert "outcome" in last, last
    assert told == names * 2
    done: list[str] = []
    for kill_at in (names[2], names[4]):
        killed = False
        for message in engine.start("compress", {"recipe": SPARSE4}, tmp_path / "killed", **inputs):
            event = message.get("event", {})
            if "block" in event:
                done.append(event["block"])
            if event.get("block") == kill_at and (kill_at == names[2] or event["part"] == "quantize") and not killed:
                worker = psutil.Process(engine.process.pid).children()[0].children()[0]
                worker.kill()
                killed = True
        assert message["failure"]["error"] == "JobCrashed", message
    again, last = events_of(engine.start("compress", {"recipe": SPARSE4}, tmp_path / "killed", **inputs))
    assert "outcome" in last, last
    assert done + again == names * 2
    assert again, "killed before the end"
    assert digests(tmp_path / "killed" / "data") == digests(tmp_path / "whole" / "data")
    assert json.loads((tmp_path / "whole" / "data" / "config.json").read_text())["quantization_config"]
