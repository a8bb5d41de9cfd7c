"""What maintenance keeps and removes, on workspaces made by hand from real manifests."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from spark_jobs.errors import RequestError, StepBusy
from spark_jobs.manifests import MANIFEST, FileEntry, Handle, Parent, file_sha256
from tasks.ledger import LedgerLine, read_ledger
from tasks.locks import held
from tasks.retention import plan_retention, remove
from tasks.retention_spec import RetentionSpec
from tasks.workspace import Workspace, append_line
from training.manifests import Checkpoint, Evidence, ModelFolder, Verdict

OLD_S = 30 * 86400.0
NIGHTS = [f"2026-01-{day:02d}" for day in range(1, 7)]
SPEC = RetentionSpec(keep_nights=2, keep_champions=1, keep_hours=24)


def publish(
    workspace: Workspace, kind: type[Handle], name: str, night: str, parents: dict[str, Handle], **fields: Any
) -> Any:
    folder = workspace.at(f"{kind.kind}/{name}")
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "bytes").write_bytes(name.encode() * 100)
    files = (FileEntry(path="data/bytes", size_bytes=len(name) * 100, sha256=file_sha256(folder / "data" / "bytes")),)
    step, _, key = name.rpartition("-")
    base = {"format": "text", "num_rows": 1, "spec": {}, "code": {}, "libraries": {}, "files": files}
    named = tuple(Parent(role=role, address=h.address, digest=h.digest) for role, h in parents.items())
    handle = kind(step=step, key=key, night=night, parents=named, **(base | fields))
    (folder / MANIFEST).write_text(handle.canonical())
    past = time.time() - OLD_S
    os.utime(folder / MANIFEST, (past, past))
    return kind.load(folder)


CHECKPOINT = {"model_type": "llama", "num_parameters": 1, "num_steps": 1, "num_tokens": 1, "final_loss": 1.0}
MODEL = {"scheme": "dense", "num_parameters": 1, "weight_bytes": 1, "effective_bits": 32.0}


def night_of(workspace: Workspace, night: str, before: ModelFolder | None, promoted: bool) -> ModelFolder:
    """A checkpoint trained on from `before`, its export, and the verdict on it; a line in the ledger."""
    key = night.replace("-", "")
    from_where = {"champion": before} if before else {}
    checkpoint = publish(workspace, Checkpoint, f"train-{key}", night, from_where, **CHECKPOINT)
    model = publish(workspace, ModelFolder, f"export-{key}", night, {"checkpoint": checkpoint}, **MODEL)
    verdict = publish(
        workspace, Verdict, f"gate-{key}", night, {}, decision="promote" if promoted else "keep", reason="", candidate=model.address,
        champion=before.address if before else "",
    )  # fmt: skip
    for step, handle in (("train", checkpoint), ("export", model), ("gate", verdict)):
        workspace.remember(night, step, handle)
    champion = model if promoted else before
    fields = {
        "night": night, "decision": "promoted" if promoted else "kept", "why": "", "who": "test", "candidate": model.address,
        "candidate_digest": model.digest, "champion": champion.address if champion else "",
        "champion_digest": champion.digest if champion else "", "champion_version": "1", "evidence": verdict.address,
        "evidence_digest": verdict.digest,
    }  # fmt: skip
    append_line(workspace.ledger, LedgerLine.model_validate(fields).model_dump(mode="json"))
    return model


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Six nights, of which the first and the third made a champion."""
    made = Workspace(tmp_path / "pipeline")
    champion = None
    for night in NIGHTS:
        promoted = night in (NIGHTS[0], NIGHTS[2])
        model = night_of(made, night, champion, promoted)
        champion = model if promoted else champion
    return made


def folders(workspace: Workspace, kind: str) -> set[str]:
    return {path.name[-2:] for path in (workspace.root / kind).iterdir()}


def test_retention_keeps_the_newest_nights_and_the_champion_with_what_made_it(workspace: Workspace) -> None:
    remove(workspace, SPEC)

    assert folders(workspace, "checkpoints") == {"03", "05", "06"}  # of the champion, and of the last two nights
    assert folders(workspace, "verdicts") == {"03", "05", "06"}
    assert len(read_ledger(workspace)) == len(NIGHTS)


def test_retention_keeps_a_model_that_the_champion_was_trained_on_from_but_not_its_checkpoint(
    workspace: Workspace,
) -> None:
    remove(workspace, SPEC)

    assert folders(workspace, "models") == {"01", "03", "05", "06"}
    assert "01" not in folders(workspace, "checkpoints")


def test_evidence_bundle_stays_without_holding_what_it_describes(workspace: Workspace) -> None:
    model = ModelFolder.load(workspace.at(f"models/export-{NIGHTS[1].replace('-', '')}"))
    checkpoint = Checkpoint.load(workspace.at(f"checkpoints/train-{NIGHTS[1].replace('-', '')}"))
    bundled = {"candidate": model, "checkpoint": checkpoint}
    publish(workspace, Evidence, "evidence-02", NIGHTS[1], bundled, decision="keep")

    remove(workspace, SPEC)

    assert folders(workspace, "evidence") == {"02"}
    assert "02" not in folders(workspace, "checkpoints")


def test_retention_keeps_everything_young(workspace: Workspace) -> None:
    young = RetentionSpec(keep_nights=1, keep_champions=1, keep_hours=24 * 31)

    assert plan_retention(workspace, young).removed == ()


def test_retention_of_a_pipeline_whose_newest_nights_have_no_corpus_keeps_the_night_that_has_one(
    tmp_path: Path,
) -> None:
    made = Workspace(tmp_path / "pipeline")
    model = night_of(made, NIGHTS[0], None, promoted=False)
    made.remember(NIGHTS[0], "corpus", model)  # any output will do: only its name is looked at
    for night in NIGHTS[1:]:
        night_of(made, night, None, promoted=False)

    remove(made, SPEC)

    assert "01" in folders(made, "models")


def test_removal_is_what_the_plan_says_and_a_second_one_finds_nothing(workspace: Workspace) -> None:
    planned = plan_retention(workspace, SPEC)
    before = sum(p.stat().st_size for p in workspace.root.rglob("*") if p.is_file())

    done = remove(workspace, SPEC)

    after = sum(p.stat().st_size for p in workspace.root.rglob("*") if p.is_file())
    assert done.removed == planned.removed
    assert before - after == pytest.approx(done.freed_bytes, abs=4000)  # records of nights are rewritten
    assert remove(workspace, SPEC).removed == ()


def test_output_that_was_removed_is_told_so_and_made_anew_by_its_night(workspace: Workspace) -> None:
    remove(workspace, SPEC)

    with pytest.raises(RequestError, match="maintenance has removed the output of step train"):
        workspace.output(NIGHTS[1], "train", Checkpoint, "train-model")
    workspace.remember(NIGHTS[1], "train", workspace.output(NIGHTS[5], "train", Checkpoint, "train-model"))
    assert workspace.record(NIGHTS[1]).retired == ("export", "gate")


def test_maintenance_touches_nothing_while_a_step_runs(workspace: Workspace) -> None:
    before = sorted(workspace.root.rglob("*"))

    with held(workspace.lock("train-0123")), pytest.raises(StepBusy, match="train-0123 of pipeline is running"):
        remove(workspace, SPEC)

    after = {path for path in workspace.root.rglob("*") if "locks" not in path.parts}
    assert set(before) <= after


def test_maintenance_killed_while_it_removes_is_finished_by_the_next(workspace: Workspace) -> None:
    grave = workspace.root / "attempts" / ".removed" / "0"
    grave.parent.mkdir(parents=True)
    (workspace.root / "checkpoints" / f"train-{NIGHTS[1].replace('-', '')}").rename(grave)

    remove(workspace, SPEC)

    assert not grave.parent.exists()
    assert folders(workspace, "checkpoints") == {"03", "05", "06"}


def test_attempt_of_a_dead_run_goes_when_it_is_old(workspace: Workspace) -> None:
    for name, age_s in (("train-old", OLD_S), ("train-new", 60.0)):
        folder = workspace.attempt(name)
        folder.mkdir(parents=True)
        (folder / "half").write_text("written")
        past = time.time() - age_s
        for path in (folder / "half", folder):
            os.utime(path, (past, past))

    remove(workspace, SPEC)

    assert [path.name for path in (workspace.root / "attempts").iterdir()] == ["train-new"]
