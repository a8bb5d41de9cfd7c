"""`nightmill forget`: take documents out of every snapshot made from now on, and say which models have seen them."""

from __future__ import annotations

import argparse
import json

from flows.specs import load_spec
from spark_jobs.errors import RequestError
from spark_jobs.snapshot import forgotten_ids
from spark_jobs.specs import ForgetRule
from tasks.forgotten import ForgetLine, write_request
from tasks.lineage import HEX, ID_DIGITS, Lineage, ModelUse, pieces_of
from tasks.workspace import Workspace


def forget(arguments: argparse.Namespace) -> int:
    """Write the request, unless --dry-run; print what it takes out and who has seen it.

    Raises: RequestError if it names no document of any night.
    """
    from flows.console import terminal

    lineage = Lineage(Workspace.of(load_spec(arguments.preset, []).name))
    rule = rule_of(lineage, arguments)
    line, models = request_of(lineage, rule, arguments.why)
    written = not arguments.dry_run and write_request(lineage.workspace, line)
    if arguments.json:
        print(json.dumps(line.model_dump(mode="json") | {"written": written}))  # noqa: T201
        return 0
    console = terminal()
    state = "would be forgotten" if arguments.dry_run else "forgotten" if written else "forgotten already"
    console.print(f"{line.documents} documents, {line.sequences} sequences hold them: {state} ({rule.by} {rule.value})")
    for use in models:
        crown = ", champion" if use.is_champion else ""
        drawn = "perhaps" if use.draws is None else f"{use.draws} times"
        console.print(f"  seen by {use.address} of {use.night}{crown}, {drawn}", highlight=False)
    if models and not arguments.dry_run:
        console.print(
            "Snapshots made from now on lack them; a model that goes on from one of the above has still seen them. "
            "A new pipeline (another `name`) trains from scratch."
        )
    return 0


def rule_of(lineage: Lineage, arguments: argparse.Namespace) -> ForgetRule:
    if arguments.doc:
        doc_id = lineage.find_document(arguments.doc)
        if not (HEX.fullmatch(doc_id) and len(doc_id) == ID_DIGITS):
            raise RequestError(f"{arguments.doc}: was rejected while it was read, so there is no document to forget")
        return ForgetRule(by="doc", value=doc_id)
    if arguments.source:
        return ForgetRule(by="source", value=arguments.source)
    return ForgetRule(by="origin", value=arguments.origin)


def request_of(lineage: Lineage, rule: ForgetRule, why: str) -> tuple[ForgetLine, list[ModelUse]]:
    """Raises: RequestError if the rule names nothing that was kept."""
    chosen: set[str] = set()
    pieces = []
    for night, data in lineage.nights.items():
        unique, tokens = lineage.night_tables(data)
        ids = set(forgotten_ids([unique], [rule]).to_pylist())
        chosen |= ids
        pieces += list(pieces_of(night, tokens, ids))
    if not chosen:
        raise RequestError(
            f"{rule.by} {rule.value!r}: no document of {lineage.workspace.name} is of it; nothing written"
        )
    models = list(lineage.models_that_drew(pieces)) if pieces else []
    line = ForgetLine(
        rule=rule,
        why=why,
        documents=len(chosen),
        sequences=len({(piece.night, piece.seq_id) for piece in pieces}),
        models=tuple(use.address for use in models),
    )
    return line, models
