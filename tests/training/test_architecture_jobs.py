"""Models of other shapes through the jobs of a night: trained, exported, scored, gated, made to write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.manifests import Checkpoint, ModelFolder, Scorecard

MODEL = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "intermediate_size": 64}
TRAIN: dict[str, Any] = {"num_steps": 16, "sequences_per_step": 4, "micro_batch": 2, "checkpoint_every": 8}


@pytest.mark.parametrize(
    ("architecture", "objective", "saved"),
    [
        ("gpt2", "causal_lm", "GPT2LMHeadModel"),
        ("bert", "masked_lm", "BertForMaskedLM"),
        ("t5", "seq2seq_lm", "T5ForConditionalGeneration"),
    ],
)
def test_model_of_another_shape_goes_through_every_job(
    engine, world, tmp_path: Path, architecture: str, objective: str, saved: str
) -> None:
    spec = TRAIN | {"model": MODEL | {"architecture": architecture}, "objective": objective, "ema": {"decay": 0.5}}
    checkpoint = engine.run(Checkpoint, "train", spec, tmp_path / "checkpoints" / "train-0001", **world.inputs())
    checkpoint = checkpoint.model_copy(update={"spec": spec})
    (Path(checkpoint.uri) / "_manifest.json").write_text(checkpoint.canonical())
    inputs = {"checkpoint": checkpoint.uri, "tokenizer": world.tokenizer.uri}
    folder = engine.run(ModelFolder, "export", {}, tmp_path / "models" / "export-0001", **inputs)
    assert json.loads((Path(folder.folder()) / "config.json").read_text())["architectures"] == [saved]
    card = engine.run(
        Scorecard, "evaluate", {"max_document_tokens": 60}, tmp_path / "scorecards" / "evaluate-0001",
        model=folder.uri, corpus=world.corpus.uri, tokenizer=world.tokenizer.uri,
    )  # fmt: skip
    assert card.num_invalid == 0
    assert 0.5 < card.bits_per_byte < 9
    *_, last = engine.start("generate", {"max_new_tokens": 4}, tmp_path / "text", model=folder.uri)
    assert 1 <= last["outcome"]["fields"]["num_new_tokens"] <= 4
    *_, again = engine.start("train", spec, tmp_path / "train-0002", champion=folder.uri, **world.inputs())
    assert again["outcome"]["fields"]["resumed_from"] == folder.address
    if objective != "causal_lm":
        error, message = engine.fail(
            "compress",
            {"recipe": {"name": "int8", "quantize": {"bits": 8, "group_size": 16}}},
            tmp_path / "int8",
            model=folder.uri,
        )
        assert (error, "set compress.recipes to []" in message) == ("RequestError", True)
