"""Moving the champion: a fence, the ledger's line, and what follows from it (MLflow's aliases, `champion.json`).

The line in the ledger decides. Aliases and pointer are only ever written *from* the ledger, and the ledger is read again after they
were: a writer that lost its lock cannot leave them at its own model. What a kill left half done is done by the next release, or by
`nightmill promote PRESET --repair`.

    <workspace>/fences/00000007     empty; the highest number is the newest decision's that somebody began
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from spark_jobs.errors import DataError, StepBusy
from tasks import registry
from tasks.ledger import LedgerLine, awaiting, crowned, read_ledger, write_decision
from tasks.locks import Lock, held
from tasks.workspace import Workspace, write_atomic
from training.champion_pointer import POINTER, read_pointer

LOCK_WAIT_S = 120.0  # a dead owner on another host is taken over after half of that


@dataclass(frozen=True)
class Fence:
    """The right to decide, held under the lock of the champion. `number` is above that of every decision begun before."""

    workspace: Workspace
    lock: Lock
    number: int

    def check(self) -> None:
        """Raises: StepBusy if the lock went to another run, or a decision with a higher number has begun."""
        newest = _newest(self.workspace)
        if not self.lock.still_mine() or newest != self.number:
            raise StepBusy(
                f"champion of {self.workspace.name}: another run took over (fence {newest}, ours {self.number}); nothing was moved, run again"
            )


@contextmanager
def deciding(workspace: Workspace) -> Iterator[Fence]:
    """Hold the lock of the champion, with a fence of its own.

    Raises: StepBusy if another run keeps it.
    """
    with held(workspace.lock("champion"), LOCK_WAIT_S) as lock:
        yield Fence(workspace, lock, _next(workspace))


def decide(fence: Fence, line: LedgerLine) -> LedgerLine:
    """Write the decision down, then let aliases and pointer follow. Returns it with its fence.

    Raises: StepBusy, and nothing was written, if the fence is not the newest any more.
    """
    fence.check()
    fenced = line.model_copy(update={"fence": fence.number})
    write_decision(fence.workspace, fenced)
    follow_ledger(fence.workspace)
    return fenced


def follow_ledger(workspace: Workspace) -> list[str]:
    """Make `champion.json` and MLflow's aliases say what the ledger says; returns what was mended, in words.

    The pointer comes first: servers follow it, also where MLflow does not answer.
    """
    mended: list[str] = []
    while True:
        before = read_ledger(workspace)
        mended += _point(workspace)
        if before:
            mended += registry.set_aliases(workspace.name, wanted_aliases(workspace))
        if read_ledger(workspace) == before:
            return mended


def differences(workspace: Workspace) -> list[str]:
    """What `follow_ledger` would mend, without asking MLflow."""
    wanted = crowned(workspace)
    try:
        found = read_pointer(workspace.root)
    except DataError as err:
        return [str(err)]
    if wanted == found:
        return []
    there = f"version {found.version}, fence {found.fence}" if found else "nothing"
    return [f"{POINTER} says {there}, the ledger {f'version {wanted.version}' if wanted else 'nothing'}"]


def wanted_aliases(workspace: Workspace) -> dict[str, str | None]:
    """Alias -> version; None: it must not be there."""
    champion, waiting = crowned(workspace), awaiting(workspace)
    return {
        registry.CHAMPION: champion.version if champion else None,
        registry.CANDIDATE: waiting.candidate_version if waiting else None,
    }


def _point(workspace: Workspace) -> list[str]:
    wrong = differences(workspace)
    wanted = crowned(workspace)
    if wrong and wanted is not None:
        write_atomic(workspace.root / POINTER, wanted.model_dump_json(indent=1) + "\n")
    return wrong if wanted is not None else []


def _newest(workspace: Workspace) -> int:
    """Of the fences begun and of those in the ledger, should the folder be lost."""
    begun = [int(path.name) for path in (workspace.root / "fences").glob("[0-9]*")]
    return max([*begun, *(line.fence for line in read_ledger(workspace))], default=0)


def _next(workspace: Workspace) -> int:
    """A number that no other process gets: the file of that name is made by one of them alone."""
    folder = workspace.root / "fences"
    folder.mkdir(parents=True, exist_ok=True)
    number = _newest(workspace)
    while True:
        number += 1
        try:
            (folder / f"{number:08d}").touch(exist_ok=False)
        except FileExistsError:
            continue
        return number
