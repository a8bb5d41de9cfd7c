"""Scores of an evaluation: values and intervals by documents, slices, and confidence in the next token."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from spark_jobs.errors import DataError
from spark_jobs.manifests import MANIFEST, Corpus, TokenShards
from training.evaluate.documents import heldout_documents, texts_of
from training.evaluate.intervals import confidence_columns, scored
from training.evaluate.perplexity import NO_TOKENS, TokenScores, score_documents, score_tokens
from training.evaluate.slices import length_name, slices_of
from training.manifests import ModelFolder, Scorecard
from training.metrics.bootstrap import Bootstrap
from training.metrics.calibration import adaptive_calibration_error, brier, calibration_error
from training.metrics.likelihood import perplexity
from training.specs import EvaluateSpec

MODEL = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 64}


def told(confidence: list[float], right: list[bool], nats: float = 1.0) -> TokenScores:
    return TokenScores(nats, np.array(confidence, np.float32), np.array(right), np.zeros(len(right), np.float32))


def by_name(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {score["name"]: score for score in found["scores"]}


def columns(nats: list[float], size: list[float]) -> dict[str, list[float]]:
    return {"nats": nats, "num_bytes": size, "num_tokens": [s / 4 for s in size]}


def test_scores_of_documents_are_sums_before_they_are_ratios() -> None:
    """Nats 12 and 3 of 12 and 20 bytes: 15 / (32 ln 2), not the mean of two ratios."""
    found = by_name(scored(columns([12, 3], [12, 20]), [TokenScores(1.0, *NO_TOKENS)] * 2, {}, 0, EvaluateSpec()))
    assert found["bits_per_byte"]["value"] == pytest.approx(15 / (32 * math.log(2)))
    assert found["perplexity"]["value"] == pytest.approx(math.exp(15 / 8))
    assert set(found) == {"bits_per_byte", "perplexity"}, "a model without a next token has no confidence in it"


def test_interval_of_perplexity_is_that_of_the_metric() -> None:
    rng = np.random.default_rng(0)
    nats, tokens = rng.uniform(50, 200, 40), np.ceil(rng.uniform(20, 60, 40))
    rows = {"nats": nats.tolist(), "num_bytes": (tokens * 4).tolist(), "num_tokens": tokens.tolist()}
    found = by_name(scored(rows, [TokenScores(1.0, *NO_TOKENS)] * 40, {}, 0, EvaluateSpec()))["perplexity"]
    wanted = perplexity(nats.tolist(), tokens.tolist(), Bootstrap())
    assert [found[k] for k in ("value", "low", "high", "n")] == pytest.approx(
        [wanted.value, wanted.low, wanted.high, 40]
    )


def test_document_without_a_finite_score_leaves_the_whole_undefined_and_is_counted() -> None:
    slices = {"source=a": [0], "source=b": [1]}
    found = scored(columns([12, 3], [12, 20]), [TokenScores(1.0, *NO_TOKENS)] * 2, slices, 3, EvaluateSpec())
    whole = by_name(found)["bits_per_byte"]
    assert (whole["value"], whole["n"], whole["n_invalid"]) == (None, 5, 3)
    assert found["slices"]["source=b"]["value"] == pytest.approx(3 / (20 * math.log(2)))


def test_slices_have_their_own_value_and_interval() -> None:
    rng = np.random.default_rng(1)
    size, rate = np.full(60, 100.0), np.where(np.arange(60) < 20, 2.0, 1.0) + rng.normal(0, 0.1, 60)
    places = {"source=few": list(range(20)), "source=many": list(range(20, 60))}
    spec = EvaluateSpec()
    found = scored(
        columns((rate * size * math.log(2)).tolist(), size.tolist()),
        [TokenScores(1.0, *NO_TOKENS)] * 60,
        places,
        0,
        spec,
    )
    few, many = found["slices"]["source=few"], found["slices"]["source=many"]
    assert (few["n"], many["n"]) == (20, 40)
    assert few["value"] == pytest.approx(rate[:20].mean())
    assert few["low"] < few["value"] < few["high"] < 2.2
    assert (few["high"] - few["low"]) / (many["high"] - many["low"]) == pytest.approx(math.sqrt(2), rel=0.5)


def test_confidence_of_tokens_is_measured_as_that_of_texts() -> None:
    """Against the metrics of labelled sets, which take an item at a time."""
    rng = np.random.default_rng(2)
    lengths = [7, 1, 30, 12]
    tokens = [told(rng.uniform(0, 1, n).tolist(), (rng.random(n) < 0.5).tolist()) for n in lengths]
    rows = columns([1.0] * 4, [10.0] * 4)
    found = by_name(scored(rows, tokens, {}, 0, EvaluateSpec(calibration_bins=5)))
    confidence = np.concatenate([t.confidence for t in tokens]).astype(float).tolist()
    right = np.concatenate([t.right for t in tokens]).tolist()
    few = Bootstrap(replicates=1)
    assert found["ece"]["value"] == pytest.approx(calibration_error(confidence, right, few, 5).value)
    assert found["adaptive_ece"]["value"] == pytest.approx(adaptive_calibration_error(confidence, right, few, 5).value)
    assert found["token_accuracy"]["value"] == pytest.approx(np.mean(right))
    assert found["ece"]["n"] == 4, "documents are drawn, not tokens"


def test_tokens_on_the_edge_of_a_bin_are_in_one_bin_only() -> None:
    """(lo, hi]: 0 and .25 are in the first of four, .5 in the second, 1 in the last."""
    _, bins = confidence_columns([told([0.0, 0.25, 0.5, 1.0], [True] * 4)], 4)
    assert [(b["low"], b["n"]) for b in bins] == [(0.0, 2), (0.25, 1), (0.75, 1)]


def test_surely_wrong_tokens_are_badly_calibrated() -> None:
    """.95 right and 1.0 wrong: one bin, |.5 - .975|."""
    found = by_name(scored(columns([1.0], [4.0]), [told([0.95, 1.0], [True, False])], {}, 0, EvaluateSpec()))
    assert found["ece"]["value"] == pytest.approx(0.475, abs=1e-6)


@pytest.fixture(scope="module")
def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=16,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().double()


def test_tokens_of_a_document_are_scored_once_each_in_order(tiny_model: LlamaForCausalLM) -> None:
    """40 tokens in windows of 16: as many confidences, the nats of before; Brier as the metric has it."""
    documents = [[i * 7 % 50 for i in range(40)], [3, 4, 5]]
    found = score_tokens(tiny_model, documents, 1, 16, 8, 50)
    assert [one.nats for one in found] == score_documents(tiny_model, documents, 1, 16, 8, 50)
    assert [len(one.confidence) for one in found] == [40, 3]
    with torch.no_grad():
        shares = torch.softmax(tiny_model(input_ids=torch.tensor([[1, 3, 4, 5]])).logits[0, :3], dim=-1).numpy()
    assert found[1].confidence == pytest.approx(shares.max(axis=1), abs=1e-6)
    assert found[1].right.tolist() == [bool(a == b) for a, b in zip(shares.argmax(axis=1), [3, 4, 5], strict=True)]
    assert found[1].square.mean() == pytest.approx(brier(shares, [3, 4, 5], Bootstrap(replicates=1)).value, abs=1e-6)


@pytest.mark.parametrize(
    ("size", "name"),
    [
        (511, "under 512 bytes"),
        (512, "512 to 2,047 bytes"),
        (8191, "2,048 to 8,191 bytes"),
        (8192, "8,192 bytes or more"),
    ],
)
def test_lengths_are_in_one_part_each(size: int, name: str) -> None:
    assert length_name(size) == name


def test_slices_of_a_scorecard_of_before_have_no_languages() -> None:
    columns = {"doc_id": ["1", "2"], "source": ["a", "b"], "num_bytes": [100, 9000], "language": ["en", ""]}
    found = slices_of(pa.table(columns))
    assert {name: sorted(ids) for name, ids in found.items()} == {
        "source=a": ["1"], "source=b": ["2"], "language=en": ["1"], "language=unknown": ["2"],
        "length=under 512 bytes": ["1"], "length=8,192 bytes or more": ["2"],
    }  # fmt: skip
    del columns["language"]
    assert not [name for name in slices_of(pa.table(columns)) if name.startswith("language")]


def test_held_out_documents_have_the_language_that_is_stored(make: Any, tmp_path: Path) -> None:
    world = make.world(tmp_path, [make.texts(30, 1)], 300, 32, heldout_share=0.5)
    assert {d.language for d in heldout_documents(world.corpus, 5)} == {""}
    shards = make.shards(tmp_path / "again", make.texts(30, 1), world.tokenizer, "2026-01-01", 32, heldout_share=0.5)
    (path,) = map(Path, shards.paths("heldout"))
    table = pq.read_table(path)
    pq.write_table(table.append_column("language", pa.array(["en"] * table.num_rows)), path)
    (Path(shards.uri) / MANIFEST).unlink()
    told = {name: getattr(shards, name) for name in ("seq_len", "vocab_size", "num_tokens", "num_heldout", "tokenizer")}
    shards = make.publish(TokenShards, Path(shards.uri), "2026-01-01", shards.num_rows, **told)
    corpus: Corpus = make.corpus(tmp_path / "again", [shards], world.tokenizer)
    documents = heldout_documents(corpus, 5)
    assert {d.language for d in documents} == {"en"}
    assert texts_of(corpus, [documents[2].doc_id]) == {documents[2].doc_id: documents[2].text}


@pytest.fixture(scope="module")
def dense(engine: Any, world: Any, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    from training.manifests import Checkpoint

    spec = {"model": MODEL, "num_steps": 2, "sequences_per_step": 4, "micro_batch": 4}
    root = tmp_path_factory.mktemp("evaluation")
    checkpoint = engine.run(Checkpoint, "train", spec, root / "checkpoints" / "train-0001", **world.inputs())
    inputs = {"checkpoint": checkpoint.uri, "tokenizer": world.tokenizer.uri}
    found: ModelFolder = engine.run(ModelFolder, "export", {}, root / "models" / "export-0001", **inputs)
    return found


def evaluated(engine: Any, world: Any, dense: ModelFolder, out: Path, **spec: Any) -> tuple[Scorecard, dict[str, Any]]:
    card = engine.run(
        Scorecard,
        "evaluate",
        {"max_document_tokens": 100, "noise_share": 0.2} | spec,
        out,
        model=dense.uri,
        **world.inputs(),
    )
    return card, json.loads((Path(card.folder()) / "scores.json").read_text())


def test_ranks_share_the_documents_and_change_no_number(
    engine: Any, world: Any, dense: ModelFolder, tmp_path: Path
) -> None:
    """Five documents on two ranks are five, in their order, and as disturbed as on one; so they are in other batches."""
    alone, scores = evaluated(engine, world, dense, tmp_path / "evaluate-1", max_documents=5)
    rows = pq.read_table(Path(alone.folder()) / "documents.parquet").to_pylist()
    assert len(rows) == 5
    for name, change in (("2", {"ranks": 2}), ("3", {"ranks": 3, "batch_tokens": 256})):
        card, found = evaluated(engine, world, dense, tmp_path / f"evaluate-{name}", max_documents=5, **change)
        other = pq.read_table(Path(card.folder()) / "documents.parquet").to_pylist()
        assert [row["doc_id"] for row in other] == [row["doc_id"] for row in rows]
        assert [row["nats"] for row in other] == pytest.approx([row["nats"] for row in rows], rel=1e-6)
        assert [s["value"] for s in found["scores"]] == pytest.approx([s["value"] for s in scores["scores"]], rel=1e-5)


def test_slips_cost_bits_and_are_those_of_the_seed(engine: Any, world: Any, dense: ModelFolder, tmp_path: Path) -> None:
    _, found = evaluated(engine, world, dense, tmp_path / "evaluate-1", ranks=1)
    _, again = evaluated(engine, world, dense, tmp_path / "evaluate-2", ranks=1)
    assert found == again
    scores = by_name(found)
    clean, noisy, loss = (scores[name]["value"] for name in ("bits_per_byte", "noisy_bits_per_byte", "noise_loss"))
    assert loss == pytest.approx(noisy - clean)
    assert "characters:0.2|seed:0" in scores["noise_loss"]["signature"]
    assert found["reliability"]
    assert set(by_name(evaluated(engine, world, dense, tmp_path / "evaluate-3", noise_share=0)[1])) == set(scores) - {
        "noisy_bits_per_byte", "noise_loss"
    }  # fmt: skip


def test_rank_that_cannot_score_says_why(engine: Any, make: Any, dense: ModelFolder, tmp_path: Path) -> None:
    other = make.world(tmp_path, [make.texts(40, 5)], 290, 32)
    error, message = engine.fail("evaluate", {"ranks": 2}, tmp_path / "evaluate-4", model=dense.uri, **other.inputs())
    assert error == DataError.__name__
    assert "evaluate it with the tokenizer it was trained with" in message
