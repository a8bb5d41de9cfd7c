"""The ledger's rules, fences, and aliases and pointer that follow the ledger. Real MLflow on SQLite."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_jobs.errors import DataError, NightmillError, StepBusy
from tasks import registry
from tasks.champion import decide, deciding, differences, follow_ledger
from tasks.ledger import (
    LedgerLine,
    awaiting,
    champion_before,
    champion_now,
    champion_to_beat,
    crowned,
    line_of_reign,
    overruled,
    read_ledger,
    withdrawn,
    without_late_ones,
    write_decision,
)
from tasks.workspace import Workspace, append_line
from training.champion_pointer import ChampionPointer, read_pointer

FIRST, SECOND, THIRD = "2026-01-01", "2026-01-02", "2026-01-03"


def line(decision: str, version: int, night: str = FIRST, before: int = 0, **fields: Any) -> LedgerLine:
    """A decision after which model `version` is champion; of `rolled back`, `before` is the one that went."""
    candidate = before if decision == "rolled back" else version
    base = {
        "night": night, "decision": decision, "why": "test", "who": "me", "candidate": f"models/m-{candidate}",
        "candidate_digest": "d", "candidate_version": str(candidate), "champion": f"models/m-{version}",
        "champion_digest": f"digest-{version}", "champion_version": str(version),
        "previous_champion": f"models/m-{before}" if before else "", "previous_version": str(before or ""),
        "evidence": "verdicts/v", "evidence_digest": f"{night}-{version}",
    }  # fmt: skip
    return LedgerLine.model_validate(base | fields)


def waits(version: int, champion: int, night: str) -> LedgerLine:
    candidate = {
        "candidate": f"models/m-{version}",
        "candidate_version": str(version),
        "evidence_digest": f"e{version}",
    }
    return line("awaiting", champion, night, until="2026-01-05T00:00:00+00:00", **candidate)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("NIGHTMILL_HOME", str(tmp_path))
    return Workspace.of("demo")


@pytest.fixture
def registered(workspace: Workspace) -> Any:
    """A registry with versions 1 to 3 of `demo`."""
    client = registry.registry_client()
    client.create_registered_model("demo")
    for _ in range(3):
        client.create_model_version("demo", str(workspace.root))
    return client


def write(workspace: Workspace, *lines: LedgerLine) -> None:
    workspace.root.mkdir(parents=True, exist_ok=True)
    with workspace.ledger.open("a") as ledger:
        ledger.writelines(one.model_dump_json() + "\n" for one in lines)


def test_ledger_written_before_fences_is_read_and_counts_in_its_order(workspace):
    old = line("promoted", 1).model_dump(mode="json")
    for name in ("fence", "by", "candidate_version", "bundle", "bundle_digest", "until"):
        del old[name]
    append_line(workspace.ledger, old)
    write(workspace, line("promoted", 2, SECOND, 1))
    assert [entry.champion_version for entry in read_ledger(workspace)] == ["1", "2"]
    assert crowned(workspace) == ChampionPointer(
        address="models/m-2", digest="digest-2", version="2", fence=0, night=SECOND
    )


def test_line_of_a_writer_that_came_late_is_void(workspace):
    write(workspace, line("promoted", 1, fence=1), line("promoted", 3, fence=4), line("promoted", 2, fence=3))
    assert champion_now(workspace).version == "3"
    assert [entry.fence for entry in read_ledger(workspace)] == [1, 4]


@given(st.lists(st.integers(0, 9)))
def test_fences_of_lines_that_count_rise(fences):
    lines = [line("promoted", n, fence=fence) for n, fence in enumerate(fences, 1)]
    kept = [entry.fence for entry in without_late_ones(lines) if entry.fence]
    assert kept == sorted(set(kept))
    assert sum(fence == 0 for fence in fences) == sum(entry.fence == 0 for entry in without_late_ones(lines))


def test_kept_line_of_an_older_night_does_not_change_what_later_nights_train_from(workspace):
    write(
        workspace, line("promoted", 1), line("promoted", 2, SECOND, 1), line("kept", 2, FIRST, candidate="models/m-9")
    )
    assert champion_before(workspace, SECOND).version == "1"


def test_rollback_counts_for_later_nights_and_stops_the_night_it_overrules(workspace):
    write(
        workspace,
        line("promoted", 1),
        line("promoted", 2, SECOND, 1),
        line("rolled back", 1, SECOND, 2, by="hand", why="it swears"),
    )
    assert champion_before(workspace, SECOND).version == "1"
    assert champion_before(workspace, THIRD).version == "1"
    assert champion_to_beat(workspace, "models/m-2", SECOND).version == "1"
    assert "rolled back, it swears" in overruled(workspace, SECOND)
    assert overruled(workspace, THIRD) == ""
    assert "rolled back by me" in withdrawn(workspace, "models/m-2")
    write(workspace, line("promoted", 2, SECOND, 1, by="hand"))
    assert withdrawn(workspace, "models/m-2") == ""


def test_gate_of_a_decided_night_keeps_its_question_after_a_decision_by_hand(workspace):
    write(workspace, line("promoted", 1), line("promoted", 2, SECOND, 1))
    before = champion_to_beat(workspace, "models/m-7", SECOND)
    write(workspace, line("rolled back", 1, SECOND, 2, by="hand"))
    assert champion_to_beat(workspace, "models/m-7", SECOND) == before
    assert champion_to_beat(workspace, "models/m-7", THIRD).version == "1"


@given(st.lists(st.integers(0, 4), max_size=12))
def test_reign_ends_with_the_champion_after_any_promotions_and_rollbacks(tmp_path_factory, moves):
    """0: roll back, if there is something before; else: promote that model."""
    workspace = Workspace(tmp_path_factory.mktemp("reign"))
    stack: list[int] = []
    for move in moves:
        if move and (not stack or move != stack[-1]):
            write(workspace, line("promoted", move, before=stack[-1] if stack else 0))
            stack.append(move)
        elif not move and len(stack) > 1 and stack[-2] not in stack[:-2]:
            gone = stack.pop()
            write(workspace, line("rolled back", stack[-1], before=gone))
    assert [entry.champion_version for entry in line_of_reign(workspace)] == [str(n) for n in stack]
    assert (crowned(workspace).version if stack else "") == (str(stack[-1]) if stack else "")


def test_awaiting_ends_with_any_answer_and_outlives_a_kept_candidate(workspace):
    write(workspace, line("promoted", 1), waits(2, 1, SECOND))
    assert awaiting(workspace).candidate_version == "2"
    write(workspace, line("kept", 1, THIRD, candidate="models/m-3"))
    assert awaiting(workspace).candidate_version == "2"
    write(workspace, line("rejected", 1, SECOND, candidate="models/m-2", by="hand"))
    assert awaiting(workspace) is None


def test_gate_decision_repeated_after_a_kill_is_written_once_and_one_by_hand_each_time(workspace):
    assert write_decision(workspace, line("promoted", 1))
    assert not write_decision(workspace, line("promoted", 1))
    assert write_decision(workspace, line("promoted", 1, by="hand"))
    assert write_decision(workspace, line("promoted", 1, by="hand"))


def test_decision_moves_alias_and_pointer_with_its_fence(workspace, registered):
    with deciding(workspace) as fence:
        decide(fence, line("promoted", 1))
    with deciding(workspace) as fence:
        decide(fence, line("promoted", 2, SECOND, 1))
    assert registry.aliases_of(registered, "demo") == {"champion": "2"}
    pointer = read_pointer(workspace.root)
    assert (pointer.version, pointer.fence, pointer.night) == ("2", 2, SECOND)
    assert json.loads((workspace.root / "champion.json").read_text())["address"] == "models/m-2"


def test_waiting_candidate_has_an_alias_until_it_is_answered(workspace, registered):
    with deciding(workspace) as fence:
        decide(fence, line("promoted", 1))
    with deciding(workspace) as fence:
        decide(fence, waits(2, 1, SECOND))
    assert registry.aliases_of(registered, "demo") == {"champion": "1", "candidate": "2"}
    with deciding(workspace) as fence:
        decide(fence, line("expired", 1, SECOND, candidate="models/m-2"))
    assert registry.aliases_of(registered, "demo") == {"champion": "1"}


def test_writer_whose_lock_was_taken_over_moves_nothing(workspace, registered):
    """The first one sleeps (a stopped machine) until its lock looks dead; the second decides; the first wakes up."""
    with deciding(workspace) as sleeper:
        lock = workspace.lock("champion")
        owner = json.loads(lock.read_text()) | {"host": "elsewhere"}
        lock.write_text(json.dumps(owner))
        os.utime(lock, (0, 0))
        with deciding(workspace) as other:
            decide(other, line("promoted", 2))
        with pytest.raises(StepBusy, match=r"another run took over \(fence 2, ours 1\); nothing was moved"):
            decide(sleeper, line("promoted", 1))
    assert champion_now(workspace).version == read_pointer(workspace.root).version == "2"
    assert registry.aliases_of(registered, "demo") == {"champion": "2"}


def test_aliases_written_from_an_old_reading_are_written_again(workspace, registered, monkeypatch):
    """Between a slow writer's reading of the ledger and its alias, another one decides."""
    real = registry.set_aliases
    write(workspace, line("promoted", 1, fence=1))

    def slow(name: str, wanted: dict[str, str | None]) -> list[str]:
        if len(read_ledger(workspace)) == 1:
            write(workspace, line("promoted", 3, SECOND, 1, fence=2))
            real(name, {"champion": "3"})
        return real(name, wanted)

    monkeypatch.setattr(registry, "set_aliases", slow)
    follow_ledger(workspace)
    assert registry.aliases_of(registered, "demo") == {"champion": "3"}
    assert read_pointer(workspace.root).version == "3"


def test_fences_begun_at_once_are_all_different(workspace):
    numbers: list[int] = []
    begin = threading.Barrier(4)

    def work() -> None:
        begin.wait()
        with deciding(workspace) as fence:
            numbers.append(fence.number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers == [1, 2, 3, 4]


def test_alias_and_pointer_moved_by_others_are_mended_from_the_ledger(workspace, registered):
    with deciding(workspace) as fence:
        decide(fence, line("promoted", 1))
    registered.set_registered_model_alias("demo", "champion", "3")
    registered.set_registered_model_alias("demo", "candidate", "2")
    (workspace.root / "champion.json").unlink()
    assert differences(workspace) == ["champion.json says nothing, the ledger version 1"]
    assert follow_ledger(workspace) == [
        "champion.json says nothing, the ledger version 1",
        "alias champion: 3 -> 1",
        "alias candidate: 2 -> none",
    ]
    assert follow_ledger(workspace) == []


def test_damaged_pointer_is_named_and_mended(workspace, registered):
    with deciding(workspace) as fence:
        decide(fence, line("promoted", 1))
    (workspace.root / "champion.json").write_text('{"address": "models/m-1"}')
    with pytest.raises(DataError, match=r"champion\.json: not a pointer to a champion"):
        read_pointer(workspace.root)
    follow_ledger(workspace)
    assert read_pointer(workspace.root).version == "1"


def test_pointer_moves_also_where_the_registry_does_not(workspace):
    """Servers follow the pointer: a rollback must not wait for MLflow."""
    registry.registry_client()  # an empty registry: it has no model of that name
    with (
        pytest.raises(NightmillError, match=r"champion\.json are right and servers follow them"),
        deciding(workspace) as f,
    ):
        decide(f, line("promoted", 1))
    assert read_pointer(workspace.root).version == "1"
