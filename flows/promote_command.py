"""`nightmill promote` and `nightmill rollback`: a person moves the champion, in one command, checked before anything moves."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

from flows.console import terminal
from flows.specs import NightlySpec, load_spec
from spark_jobs.errors import RequestError
from tasks.application import Application
from tasks.approval import expire_overdue, reject
from tasks.champion import deciding, follow_ledger
from tasks.ledger import LedgerLine, champion_now
from tasks.promotion import find_target, promote, roll_back
from tasks.servers import client_environment
from tasks.workspace import Workspace, home, parse_night


def promote_model(arguments: argparse.Namespace) -> int:
    """Make what awaits approval, a night's candidate or a version champion; or refuse it; or repair what a kill left half done."""
    spec, workspace = _of(arguments)
    if arguments.repair:
        return _repair(workspace, arguments.json)
    why = _reason(arguments)
    if arguments.reject:
        if arguments.night or arguments.version:
            raise RequestError("--reject refuses what awaits approval: leave out --night and --version")
        return _told(workspace, reject(workspace, why), arguments.json)
    target = find_target(workspace, parse_night(arguments.night) if arguments.night else "", arguments.version)
    with _torch(workspace) as torch:
        line = promote(workspace, target, why, arguments.force, spec.release, torch)
    if line is None:
        follow_ledger(workspace)
    return _told(workspace, line, arguments.json)


def rollback(arguments: argparse.Namespace) -> int:
    """Restore the champion before, or the version named."""
    spec, workspace = _of(arguments)
    with _torch(workspace) as torch:
        line = roll_back(workspace, arguments.to, _reason(arguments), spec.release, torch)
    return _told(workspace, line, arguments.json)


def _of(arguments: argparse.Namespace) -> tuple[NightlySpec, Workspace]:
    os.environ.update(client_environment(home()))  # how long MLflow is waited for, among others
    spec = load_spec(arguments.preset, [])
    workspace = Workspace.of(spec.name)
    if not workspace.ledger.is_file():
        raise RequestError(f"pipeline {spec.name} has decided nothing yet in {workspace.root}; run its nightly first")
    return spec, workspace


def _reason(arguments: argparse.Namespace) -> str:
    if not arguments.why.strip():
        raise RequestError("--why is empty: say in a few words why; it is kept in the ledger beside who and when")
    return str(arguments.why.strip())


@contextmanager
def _torch(workspace: Workspace) -> Iterator[Application]:
    with Application("torch", workspace.root / "logs" / "by-hand") as torch:
        yield torch


def _repair(workspace: Workspace, as_json: bool) -> int:
    expire_overdue(workspace)
    with deciding(workspace):
        mended = follow_ledger(workspace)
    if as_json:
        print(json.dumps({"mended": mended}))  # noqa: T201
        return 0
    for line in mended or ["ledger, aliases and champion.json agree"]:
        terminal().print(line, highlight=False, soft_wrap=True)
    return 0


def _told(workspace: Workspace, line: LedgerLine | None, as_json: bool) -> int:
    champion = champion_now(workspace)
    if as_json:
        facts = {
            "decision": line.decision if line else "already champion",
            "champion": champion and champion.model_dump(),
            "line": line and line.model_dump(mode="json"),
        }
        print(json.dumps(facts))  # noqa: T201
        return 0
    version = f"version {champion.version} ({champion.address})" if champion else "none"
    before = f", before: version {line.previous_version}" if line and line.previous_version else ""
    terminal().print(
        f"{line.decision if line else 'nothing to do'}: the champion of {workspace.name} is {version}{before}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    return 0
