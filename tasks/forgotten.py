"""Requests to forget documents: one JSON line each in `<workspace>/forgotten.jsonl`, never rewritten.

A request is a rule, not a list of documents: it also holds for what later nights bring. Every snapshot made after it lacks
what it names. Outputs that are published already stay as they are, and so do the models trained on them; the line names these.
"""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import Field

from spark_jobs.manifests import Frozen
from spark_jobs.specs import ForgetRule
from tasks.actor import current_actor
from tasks.workspace import Workspace, append_line


class ForgetLine(Frozen):
    """documents, sequences: what the rule named when it was written. models: addresses of those trained on any of it."""

    rule: ForgetRule
    why: str
    who: str = Field(default_factory=current_actor)
    when: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    documents: int
    sequences: int
    models: tuple[str, ...] = ()


def read_forgotten(workspace: Workspace) -> list[ForgetLine]:
    if not workspace.forgotten.is_file():
        return []
    lines = workspace.forgotten.read_text().splitlines()
    return [ForgetLine.model_validate_json(line) for line in lines if line.strip()]


def forget_rules(workspace: Workspace) -> tuple[ForgetRule, ...]:
    """Each rule once, in an order of its own: when it was asked does not change what is computed."""
    rules = {(line.rule.by, line.rule.value): line.rule for line in read_forgotten(workspace)}
    return tuple(rules[name] for name in sorted(rules))


def write_request(workspace: Workspace, line: ForgetLine) -> bool:
    """Append unless the same rule is there already; returns whether it was new."""
    if line.rule in forget_rules(workspace):
        return False
    append_line(workspace.forgotten, line.model_dump(mode="json"))
    return True
