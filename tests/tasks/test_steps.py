"""Keys, reasons, publishing and the engine, with real files and a step that works in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spark_jobs.errors import DataError, DiskFull, StepBusy
from spark_jobs.manifests import MANIFEST, Documents
from spark_jobs.requests import Outcome
from spark_jobs.specs import CleanSpec
from tasks import fingerprints
from tasks.engine import Engine
from tasks.publishing import publish
from tasks.steps import Step, find, why_run
from tasks.usage import Usage
from tasks.workspace import Workspace
from training.specs import TrainSpec

NIGHT = "2026-11-25"
DEFAULTS = CleanSpec()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspaces" / "demo")


@pytest.fixture
def engine(workspace: Workspace) -> Iterator[Engine]:
    engine = Engine(workspace, NIGHT)
    yield engine
    engine.close()


class Writer:
    """Work of a step: writes one file and counts how often it was called."""

    def __init__(self, text: str = "hello", counts: dict[str, int] | None = None) -> None:
        self.text = text
        self.counts = counts or {"in": 3, "out": 1, "reject.too_short": 2}
        self.calls = 0

    def __call__(self, attempt: Path) -> Outcome:
        self.calls += 1
        (attempt / "data").mkdir()
        (attempt / "data" / "part-00000.txt").write_text(self.text)
        return Outcome(num_rows=1, format="text", counts=self.counts)


def clean_step(writer: Writer, spec: CleanSpec = DEFAULTS, night: str = NIGHT, **inputs: Documents) -> Step[Documents]:
    return Step(
        name="clean", handle=Documents, entry="spark_jobs.specs", spec=spec, night=night, inputs=dict(inputs),
        libraries=("pydantic",), work=writer, dated=True,
    )  # fmt: skip


def test_step_run_twice_is_a_hit_the_second_time(engine: Engine) -> None:
    writer = Writer()
    first = engine.run(clean_step(writer))
    second = engine.run(clean_step(writer))
    assert writer.calls == 1
    assert first == second
    assert [r.state for r in engine.results] == ["ran", "cached"]
    assert engine.results[0].why == "first run"


def test_step_that_ran_leaves_no_attempt_and_no_lock(engine: Engine, workspace: Workspace) -> None:
    engine.run(clean_step(Writer()))
    assert list((workspace.root / "attempts").iterdir()) == []
    assert list((workspace.root / "locks").iterdir()) == []


def test_two_honest_runs_give_equal_manifests(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        engine = Engine(Workspace(tmp_path / name), NIGHT)
        digests.add(engine.run(clean_step(Writer())).digest)
        engine.close()
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (clean_step(Writer(), CleanSpec(min_words=40)), "spec min_words 50 -> 40"),
        (clean_step(Writer(), night="2026-11-26"), "night 2026-11-25 -> 2026-11-26"),
    ],
)
def test_step_with_a_change_says_what_changed(
    engine: Engine, workspace: Workspace, changed: Step[Documents], why: str
) -> None:
    engine.run(clean_step(Writer()))
    assert why_run(changed, workspace) == why


def test_step_with_another_input_names_the_role(engine: Engine, workspace: Workspace) -> None:
    source = engine.run(clean_step(Writer()))
    engine.run(clean_step(Writer(), CleanSpec(min_words=1), documents=source))
    other = engine.run(clean_step(Writer("other"), CleanSpec(min_words=2)))
    step = clean_step(Writer(), CleanSpec(min_words=2), documents=other)
    assert "input documents" in why_run(step, workspace)


def test_step_after_a_code_edit_names_the_module(
    engine: Engine, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.run(clean_step(Writer()))
    real = fingerprints._read_module
    monkeypatch.setattr(
        fingerprints, "_read_module", lambda m: ("edited", real(m)[1]) if m == "spark_jobs.manifests" else real(m)
    )
    assert why_run(clean_step(Writer()), workspace) == "code spark_jobs.manifests"


def test_code_digest_ignores_comments_and_docstrings_but_not_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "kernel.py"
    monkeypatch.setattr(fingerprints, "_source_of", lambda name: module if name == "kernel" else None)

    def digest(text: str) -> str:
        module.write_text(text)
        fingerprints._read_module.cache_clear()
        return fingerprints.code_digests("kernel")["kernel"]

    base = digest('"""Doc."""\nX = 1\n')
    assert digest('"""Other."""\n# why\nX = 1\n') == base
    assert digest("X = 2\n") != base
    fingerprints._read_module.cache_clear()


def test_code_digest_follows_imports_of_our_packages() -> None:
    assert {"spark_jobs.specs", "spark_jobs.manifests", "spark_jobs.errors"} <= fingerprints.code_digests(
        "spark_jobs.specs"
    ).keys()


def test_a_trace_that_is_asked_for_changes_no_key() -> None:
    """It changes no byte either: tests/training/test_replica_jobs.py."""

    def key(**fields: Any) -> str:
        spec = TrainSpec.model_validate(fields)
        return Step(name="train", handle=Documents, entry="spark_jobs.specs", spec=spec, night=NIGHT).key()

    assert key(profile={"first_step": 2}) == key(profile={"num_steps": 1}) == key()
    assert key(seed=1) != key()


def test_output_whose_file_was_cut_is_made_again(engine: Engine, workspace: Workspace) -> None:
    writer = Writer()
    handle = engine.run(clean_step(writer))
    (Path(handle.uri) / "data" / "part-00000.txt").write_text("hel")
    assert "damaged" in find(clean_step(writer), workspace)[1]
    again = engine.run(clean_step(writer))
    assert again == handle
    assert writer.calls == 2


def test_input_edited_by_one_byte_is_refused_before_the_job(engine: Engine) -> None:
    source = engine.run(clean_step(Writer()))
    (Path(source.uri) / "data" / "part-00000.txt").write_text("hellp")
    with pytest.raises(DataError, match=r"part-00000\.txt: changed since it was published"):
        engine.run(clean_step(Writer(), CleanSpec(min_words=2), documents=source))


def test_manifest_cut_in_half_is_never_half_read(engine: Engine, workspace: Workspace) -> None:
    handle = engine.run(clean_step(Writer()))
    path = Path(handle.uri) / MANIFEST
    path.write_text(path.read_text()[:200])
    with pytest.raises(DataError, match="not a manifest"):
        Documents.load(handle.uri)


def test_folder_without_manifest_is_not_an_output(workspace: Workspace) -> None:
    with pytest.raises(DataError, match="never finished"):
        Documents.load(workspace.at("documents/clean-0"))


def test_success_marker_of_whatever_run_makes_no_output(workspace: Workspace) -> None:
    """Spark leaves the marker of an earlier write where it stands, also when the write over it dies (SPARK-44884)."""
    data = workspace.at("documents/clean-0") / "data"
    data.mkdir(parents=True)
    (data / "part-00000.parquet").write_bytes(b"half")
    (data / "_SUCCESS").touch()
    with pytest.raises(DataError, match="never finished"):
        Documents.load(workspace.at("documents/clean-0"))


def test_job_that_lost_rows_is_not_published(engine: Engine, workspace: Workspace) -> None:
    with pytest.raises(DataError, match="3 rows in, 1 out, 1 rejected"):
        engine.run(clean_step(Writer(counts={"in": 3, "out": 1, "reject.empty": 1})))
    assert not workspace.at("documents").exists()
    assert engine.results[-1].state == "failed"


def test_failed_step_leaves_earlier_outputs_and_lets_go_of_the_lock(engine: Engine, workspace: Workspace) -> None:
    good = engine.run(clean_step(Writer()))

    def explode(_attempt: Path) -> Outcome:
        raise DataError("no")

    bad = clean_step(Writer(), CleanSpec(min_words=3))
    with pytest.raises(DataError):
        engine.run(Step(**{**bad.__dict__, "work": explode}))
    assert Documents.load(good.uri) == good
    assert list((workspace.root / "locks").iterdir()) == []


def test_lost_lock_forbids_publishing(engine: Engine, workspace: Workspace, tmp_path: Path) -> None:
    step, attempt = clean_step(Writer()), tmp_path / "attempt"
    attempt.mkdir()
    outcome = Writer()(attempt)

    class Lost:
        def still_mine(self) -> bool:
            return False

    with pytest.raises(StepBusy):
        publish(step, workspace, attempt, outcome, Usage(), Lost())  # type: ignore[arg-type]
    assert not workspace.at(step.address()).exists()


def test_full_disk_names_the_folder(engine: Engine) -> None:
    def full(_attempt: Path) -> Outcome:
        raise OSError(28, "No space left on device", "/somewhere/part-0")

    step = clean_step(Writer())
    with pytest.raises(DiskFull, match=str(engine.workspace.root)):
        engine.run(Step(**{**step.__dict__, "work": full}))


def test_report_is_beside_the_manifest_and_not_in_its_digest(engine: Engine) -> None:
    handle = engine.run(clean_step(Writer()))
    report = json.loads((Path(handle.uri) / "_report.json").read_text())
    assert report["seconds"] >= 0
    assert "seconds" not in handle.canonical()


def test_scratch_survives_a_failed_attempt_and_is_gone_after_publishing(engine: Engine, workspace: Workspace) -> None:
    seen = []

    def work(attempt: Path) -> Outcome:
        seen.append(sorted(p.name for p in attempt.iterdir()))
        (attempt / "scratch").mkdir(exist_ok=True)
        (attempt / "half").write_text("x")
        if len(seen) == 1:
            raise DataError("first time fails")
        (attempt / "half").unlink()
        return Outcome(num_rows=0, format="text")

    step = Step(**{**clean_step(Writer()).__dict__, "work": work})
    with pytest.raises(DataError):
        engine.run(step)
    handle = engine.run(step)
    assert seen == [[], ["scratch"]]
    assert sorted(path.name for path in Path(handle.uri).iterdir()) == ["_manifest.json", "_report.json"]


def test_curves_outlive_the_scratch_folder(engine: Engine, workspace: Workspace) -> None:
    def work(attempt: Path) -> Outcome:
        (attempt / "scratch" / "tensorboard").mkdir(parents=True)
        (attempt / "scratch" / "tensorboard" / "events").write_text("curve")
        return Outcome(num_rows=0, format="text")

    handle = engine.run(Step(**{**clean_step(Writer()).__dict__, "work": work}))
    assert handle.files == ()
    [kept] = (workspace.root / "logs" / NIGHT / "tensorboard").glob("clean-*/events")
    assert kept.read_text() == "curve"


def test_plan_touches_nothing_and_names_what_waits(workspace: Workspace) -> None:
    engine = Engine(workspace, NIGHT, planning=True)
    raw = engine.run(clean_step(Writer()))
    engine.run(Step(**{**clean_step(Writer(), CleanSpec(min_words=2), documents=raw).__dict__, "name": "dedup"}))
    assert [(r.step, r.state, r.why) for r in engine.results] == [
        ("clean", "would run", "first run"),
        ("dedup", "would run", "after clean"),
    ]
    assert not workspace.root.exists()
