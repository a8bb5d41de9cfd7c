"""`nightmill trace doc|sequence|model`: from source bytes to trained models, and back."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from typing import Any

from rich.console import Console
from rich.markup import escape

from flows.specs import load_spec
from spark_jobs.errors import RequestError
from spark_jobs.manifests import Corpus
from spark_jobs.snapshot import split_origin
from tasks.ledger import read_ledger
from tasks.lineage import DocumentTrail, Lineage, ModelUse, Visit, rows_of
from tasks.workspace import Workspace
from training.manifests import Checkpoint, ModelFolder

Lines = list[str]


def trace(arguments: argparse.Namespace) -> int:
    """Print the trail of a document, a sequence or a model; with --json, one line on stdout."""
    from flows.console import terminal

    lineage = Lineage(Workspace.of(load_spec(arguments.preset, []).name))
    facts, lines = TRACES[arguments.what](lineage, arguments.id)
    if arguments.json:
        print(json.dumps(facts))  # noqa: T201
    else:
        show(terminal(), lines)
    return 0


def show(console: Console, lines: Lines) -> None:
    for line in lines:
        console.print(line, highlight=False, markup=True, soft_wrap=True)


def trace_document(lineage: Lineage, name: str) -> tuple[dict[str, Any], Lines]:
    doc_id = lineage.find_document(name)
    trails = lineage.trails(doc_id)
    lines: Lines = []
    for trail in trails:
        lines += [f"[bold]document {doc_id}[/bold], night {trail.night}", *_document_lines(trail), ""]
    return {"doc_id": doc_id, "nights": [trail.model_dump(mode="json") for trail in trails]}, lines


def _document_lines(trail: DocumentTrail) -> Lines:
    first = trail.visits[0].step
    places = {visit.origin: visit.source for visit in trail.visits if visit.step == first}
    lines = [f"  from      {source}: {_place(origin)}" for origin, source in sorted(places.items())]
    lines += [
        f"  {visit.step:<9} {_visit(visit)}" + (f", the one from {visit.origin}" if len(places) > 1 else "")
        for visit in trail.visits
    ]
    if trail.is_heldout:
        lines.append("  held out  for evaluation, never trained on")
    lines += [f"  tokens    [{p.first}, {p.stop}) of sequence {p.night}/{p.seq_id}" for p in trail.pieces]
    if trail.is_forgotten:
        lines.append("  [yellow]forgotten[/yellow] in the newest snapshot")
    lines += [f"  corpus    {address}" for address in trail.corpora]
    lines += [f"  model     {_model(use)}" for use in trail.models]
    return lines


def _place(origin: str) -> str:
    file, place, address = split_origin(origin)
    return file + (f", from byte or row {place}" if place else "") + (f", {address}" if address else "")


def _visit(visit: Visit) -> str:
    if visit.state == "kept":
        return f"kept      {visit.address}"
    measured = "" if visit.value is None else f" {visit.value:g}"
    limit = "" if visit.threshold is None else f", threshold {visit.threshold:g}"
    detail = f" ({visit.detail})" if visit.detail else ""
    return f"[red]rejected[/red]  {visit.reason}{measured}{limit}{detail}, rule {visit.rule_version}, {visit.address}"


def _model(use: ModelUse) -> str:
    version = f", version {use.version}" if use.version else ""
    crown = ", [green]champion[/green]" if use.is_champion else ""
    if use.draws is None:
        drawn = "how often it was drawn is not known: the code of the order has changed"
    else:
        drawn = f"drawn {use.draws} times, first at step {use.first_step}"
    return f"{use.address} of {use.night}{version}{crown}, {drawn}"


def trace_sequence(lineage: Lineage, name: str) -> tuple[dict[str, Any], Lines]:
    night, slash, number = name.partition("/")
    if not slash or not number.isdigit():
        raise RequestError(f"sequence {name!r}: wanted NIGHT/NUMBER, for example 2026-11-25/17")
    pieces = lineage.sequence(night, int(number))
    models = list(lineage.models_that_drew(pieces))
    origins = {p.doc_id: lineage.trails(p.doc_id) for p in pieces}
    lines = [f"[bold]sequence {name}[/bold], {pieces[-1].stop} tokens of {len(origins)} documents"]
    lines += [f"  [{p.first}, {p.stop})  {p.doc_id}  {_origin(origins[p.doc_id], night)}" for p in pieces]
    lines += [f"  model     {_model(use)}" for use in models]
    facts = {
        "sequence": name,
        "pieces": [p.model_dump() | {"origin": _origin(origins[p.doc_id], night)} for p in pieces],
        "models": [use.model_dump() for use in models],
    }
    return facts, lines


def _origin(trails: list[DocumentTrail], night: str) -> str:
    visit = next(trail.visits[-1] for trail in trails if trail.night == night)
    return f"{visit.source}: {visit.origin}"


def trace_model(lineage: Lineage, name: str) -> tuple[dict[str, Any], Lines]:
    model = lineage.find_model(name)
    version = lineage.versions.get(model.address, "")
    lines = [f"[bold]model {model.address}[/bold] of {model.night}" + (f", version {version}" if version else "")]
    trainings = lineage.training_of(model)
    facts = []
    for checkpoint in trainings:
        parent = checkpoint.parent("corpus")
        assert parent is not None
        corpus = lineage.load(Corpus, parent.address)
        lines += [*_training_lines(checkpoint, corpus), *_source_lines(lineage, corpus)]
        facts.append({"checkpoint": checkpoint.address, "corpus": corpus.address, "nights": _nights(lineage, corpus)})
    decided = decisions_on(lineage, model.address)
    lines += [f"  decided   {_decided(entry)}" for entry in decided]
    told = {"model": model.address, "version": version, "parents": _parents(model), "trainings": facts}
    return told | {"decisions": decided}, lines


def decisions_on(lineage: Lineage, model: str) -> list[dict[str, Any]]:
    """Lines of the ledger that are about a model or made it champion again, oldest first."""
    names = {"night", "decision", "by", "who", "when", "why", "fence", "evidence", "bundle"}
    return [
        line.model_dump(mode="json", include=names)
        for line in read_ledger(lineage.workspace)
        if line.candidate == model or (line.decision == "rolled back" and line.champion == model)
    ]


def _decided(entry: dict[str, Any]) -> str:
    person = f" by {entry['who']}" if entry["by"] == "hand" else ""
    return escape(f"{entry['decision']}{person} at {entry['when']}, night {entry['night']}: {entry['why']}")


def _training_lines(checkpoint: Checkpoint, corpus: Corpus) -> Lines:
    on = f", on from {checkpoint.resumed_from}" if checkpoint.resumed_from else ", from scratch"
    gone = f", without {corpus.num_forgotten} forgotten documents" if corpus.num_forgotten else ""
    size = f"{checkpoint.num_steps} steps, {checkpoint.num_tokens:,} tokens"
    return [
        f"  training  {checkpoint.address} of {checkpoint.night}: {size}{on}",
        f"  corpus    {corpus.address}{gone}",
    ]


def _source_lines(lineage: Lineage, corpus: Corpus) -> Lines:
    return [
        f"    night {night['night']}: {night['sequences']} sequences, {night['tokens']:,} tokens of "
        + ", ".join(f"{source} ({count} documents)" for source, count in night["documents"].items())
        for night in _nights(lineage, corpus)
    ]


def _nights(lineage: Lineage, corpus: Corpus) -> list[dict[str, Any]]:
    nights = []
    for night in corpus.nights:
        unique = lineage.chain(night)[-1]
        sources = Counter(rows_of(unique, "data", ["source"])[0])
        nights.append(
            {
                "night": night.night,
                "sequences": night.num_sequences,
                "tokens": night.num_tokens,
                "documents": dict(sorted(sources.items())),
                "ingest": night.ingested.address,
                "dedup": night.unique.address,
                "tokenize": night.tokens.address,
            }
        )
    return nights


def _parents(model: ModelFolder) -> dict[str, str]:
    return {parent.role: parent.address for parent in model.parents}


TRACES = {"doc": trace_document, "sequence": trace_sequence, "model": trace_model}
