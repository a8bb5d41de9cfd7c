"""README.md of a registered model: what it is, what it was trained on, what was measured. Facts from manifests alone, no promises."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from spark_jobs.errors import DataError
from spark_jobs.manifests import Corpus, Handle
from training.benchmarks.results import SCORES, read_results
from training.manifests import BenchmarkScorecard, Checkpoint, Evidence, ModelFolder, Scorecard, Verdict
from training.metrics.score import Score

H = TypeVar("H", bound=Handle)
LONGEST = 5000  # characters that MLflow's database keeps of a version's description


def release_card(name: str, model: ModelFolder, verdict: Verdict, corpus: Corpus, evidence: Evidence) -> str:
    """The card as Markdown, at most 5,000 characters. name: of the pipeline, which is that of the registered model."""
    parts = [
        f"# {name}, night {verdict.night}",
        "Every number here was measured in that night or stands in a manifest; digests are below.",
        _model(model),
        _training(model, corpus),
        _scores(verdict),
        _intervals(verdict),
        f"## Decision\nThe gate said **{verdict.decision}**: {verdict.reason}.",
        _digests({"model": model, "verdict": verdict, "corpus": corpus, "evidence": evidence}),
        _loading(name, model),
    ]
    return ("\n\n".join(part for part in parts if part) + "\n")[:LONGEST]


def _model(model: ModelFolder) -> str:
    config = _config(model)
    rows = [
        ("architecture", (config.get("architectures") or ["unknown"])[0]),
        ("parameters", f"{model.num_parameters:,}"),
        ("weights on disk, bytes", f"{model.weight_bytes:,}"),
        ("stored bits a weight", f"{model.effective_bits:g}"),
        ("format", model.file_format),
        ("scheme", model.scheme),
    ]
    if "max_position_embeddings" in config:
        rows.append(("positions", f"{config['max_position_embeddings']:,}"))
    return _table("Model", ("what", "value"), rows)


def _training(model: ModelFolder, corpus: Corpus) -> str:
    nights = [night.night for night in corpus.nights]
    tokens = sum(night.num_tokens for night in corpus.nights)
    span = f"{nights[0]} to {nights[-1]}" if nights else "none"
    lines = [f"## Training\n- corpus: {tokens:,} tokens of {len(nights)} nights ({span})"]
    if corpus.num_forgotten:
        lines.append(f"- documents taken out on request: {corpus.num_forgotten:,}")
    checkpoint = _parent(model, "checkpoint", Checkpoint)
    if checkpoint is not None:
        on = f"on from `{checkpoint.resumed_from}`" if checkpoint.resumed_from else "from scratch"
        lines.append(
            f"- {checkpoint.num_steps:,} steps, {checkpoint.num_tokens:,} tokens, {on}; last loss {checkpoint.final_loss:.4f}"
        )
    dense = model.parent("dense")
    if dense is not None:
        lines.append(f"- made smaller from `{dense.address}`; its own card lies beside the weights")
    return "\n".join(lines)


def _scores(verdict: Verdict) -> str:
    """The candidate and, where there was one, the champion that it was compared with, on the same documents."""
    cards = {role: _parent(verdict, role, Scorecard) for role in ("candidate", "champion")}
    rows: list[tuple[object, ...]] = [
        (
            role,
            f"{card.bits_per_byte:.4f}",
            f"{card.perplexity:.3f}",
            f"{card.num_rows:,}",
            f"{card.num_bytes:,}",
            card.num_invalid,
        )
        for role, card in cards.items()
        if card is not None
    ]
    candidate = cards["candidate"]
    if candidate is None:
        return ""
    rows.append(("gzip -9", f"{candidate.gzip_bits_per_byte:.4f}", "", "", "", ""))
    return _table("Held-out text", ("model", "bits per byte", "perplexity", "documents", "bytes", "not scored"), rows)


def _intervals(verdict: Verdict) -> str:
    """The candidate's scores that have an interval: on held-out text, and of benchmarks where some were asked for."""
    found: list[tuple[str, Score]] = []
    card = _parent(verdict, "candidate", Scorecard)
    if card is not None and (Path(card.folder()) / SCORES).is_file():
        told = json.loads((Path(card.folder()) / SCORES).read_text())
        found = [("held-out text", Score.model_validate(one)) for one in told["scores"]]
    benchmarks = _parent(verdict, "candidate_benchmarks", BenchmarkScorecard)
    if benchmarks is not None:
        results = read_results(Path(benchmarks.folder()) / SCORES)
        found += [(name, result.scores[result.main]) for name, result in results.items()]
    if not found:
        return ""
    rows = [
        (
            name,
            score.name,
            f"{score.value:.4f}",
            f"{score.low:.4f} to {score.high:.4f}",
            f"{score.n:,}",
            score.n_invalid,
        )
        for name, score in found
    ]
    return _table("Scores", ("on", "metric", "value", "95 % interval", "n", "invalid"), rows)


def _digests(outputs: dict[str, Handle]) -> str:
    rows = [(role, f"`{handle.address}`", f"`{handle.digest}`") for role, handle in outputs.items()]
    return _table("Where it came from", ("what", "address", "sha256 of its manifest"), rows)


def _loading(name: str, model: ModelFolder) -> str:
    kind = (_config(model).get("architectures") or ["AutoModel"])[0]
    return (
        f"## Loading\n`nightmill serve {name}`, or `mlflow models serve -m models:/{name}@champion --env-manager local`; in Python "
        f"`transformers.{kind}.from_pretrained` on the folder `artifacts/data`."
    )


def _config(model: ModelFolder) -> dict[str, Any]:
    path = Path(model.folder()) / "config.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _parent(handle: Handle, role: str, kind: type[H]) -> H | None:
    """None also where it was deleted since."""
    parent = handle.parent(role)
    if parent is None:
        return None
    try:
        return kind.load(handle.at(parent.address))
    except DataError:
        return None


def _table(title: str, names: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    lines = [f"## {title}", "", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    return "\n".join(lines + [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows])
