"""Releases, promotions, rollbacks and approvals of tiny models through the real flows, engine, torch process, gate and MLflow."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flows.night import open_night
from flows.release_model import released
from spark_jobs.errors import DataError, RequestError
from spark_jobs.manifests import file_sha256
from tasks import registry
from tasks.application import Application
from tasks.approval import expire_overdue, reject
from tasks.ledger import awaiting, champion_before, champion_now, read_ledger
from tasks.lineage import Lineage
from tasks.promotion import find_target, promote, roll_back
from tasks.specs import ReleaseSpec
from tasks.workspace import Workspace
from training.champion_pointer import read_pointer
from training.manifests import Evidence, ModelFolder, Verdict

N1, N2, N3, N4 = "2026-01-01", "2026-01-02", "2026-01-03", "2026-01-04"
SPEC = ReleaseSpec(smoke_tokens=3)
HUMAN = ("release.approval=human", "release.approval_hours=5")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def world(
    decided: ModuleType, release_home: Path, torch_application: Application, request: pytest.FixtureRequest
) -> Callable[..., Workspace]:
    """A pipeline named after the test, with nights that have models; the first `num_released` of them are released."""

    def make(count: int, num_released: int) -> Workspace:
        workspace = decided.make_nights(request.node.name.replace("_", "-")[-60:].strip("-"), count)
        for night in decided.NIGHTS[:num_released]:
            assert decided.released(workspace, night, torch_application).decision == "promoted"
        return workspace

    return make


def versions(workspace: Workspace) -> tuple[str, str, dict[str, str]]:
    """Champion of the ledger, of the pointer, and the aliases."""
    pointer = read_pointer(workspace.root)
    return (
        champion_now(workspace).version,
        pointer.version,
        registry.aliases_of(registry.registry_client(), workspace.name),
    )


def test_release_links_what_was_judged_in_ledger_registry_and_bundle(world):
    workspace = world(2, 2)
    line = read_ledger(workspace)[-1]
    assert (line.decision, line.by, line.fence, line.candidate_version) == ("promoted", "gate", 2, "2")
    assert (line.previous_version, line.champion_version) == ("1", "2")
    evidence = Evidence.load(workspace.at(line.bundle))
    evidence.check_bytes()
    assert evidence.digest == line.bundle_digest
    index = json.loads((Path(evidence.folder()) / "index.json").read_text())
    assert {"candidate", "verdict", "corpus", "verdict.candidate", "verdict.champion"} <= set(index)
    for role, told in index.items():
        assert file_sha256(Path(evidence.folder()) / f"{role}.json") == told["sha256"], role
    assert json.loads((Path(evidence.folder()) / "verdict" / "verdict.json").read_text())["decision"] == "promote"
    tags = registry.registry_client().get_model_version(workspace.name, "2").tags
    assert tags["nightmill.evidence"] == line.bundle
    assert tags["nightmill.evidence_sha256"] == line.bundle_digest
    assert tags["nightmill.verdict_sha256"] == line.evidence_digest


def test_card_of_a_registered_model_has_measured_facts_and_lies_beside_it(world):
    workspace = world(1, 1)
    client = registry.registry_client()
    version = client.get_model_version(workspace.name, "1")
    logged = client.get_logged_model(version.source.removeprefix("models:/"))
    card = (Path(logged.artifact_location.removeprefix("file://")) / "README.md").read_text()
    assert version.description == card
    model = ModelFolder.load(workspace.at(champion_now(workspace).address))
    verdict = Verdict.load(workspace.at(read_ledger(workspace)[0].evidence))
    scored = json.loads(workspace.at(verdict.parent("candidate").address).joinpath("_manifest.json").read_text())
    assert f"| parameters | {model.num_parameters:,} |" in card
    assert f"| candidate | {scored['bits_per_byte']:.4f} |" in card
    assert f"`{model.digest}`" in card
    assert "LlamaForCausalLM" in card


def test_rollback_restores_the_champion_and_the_night_run_again_does_not_promote(world, decided, torch_application):
    workspace = world(3, 2)
    line = roll_back(workspace, "", "it swears", SPEC, torch_application)
    assert (line.decision, line.by, line.why, line.previous_version) == ("rolled back", "hand", "it swears", "2")
    assert versions(workspace) == ("1", "1", {"champion": "1"})
    assert champion_before(workspace, N3).version == "1"
    shutil.rmtree(workspace.at(workspace.record(N2).outputs["release"].address))
    assert decided.released(workspace, N2, torch_application).decision == "kept"
    assert versions(workspace) == ("1", "1", {"champion": "1"})
    assert "it swears" in read_ledger(workspace)[-1].why
    third = decided.released(workspace, N3, torch_application)
    assert (third.decision, read_ledger(workspace)[-1].previous_version) == ("promoted", "1")


def test_rolled_back_model_comes_back_only_by_force(world, torch_application):
    workspace = world(2, 2)
    roll_back(workspace, "", "it swears", SPEC, torch_application)
    target = find_target(workspace, version="2")
    with pytest.raises(RequestError, match=r"version 2 .* is not promoted: rolled back by .*it swears.*--force"):
        promote(workspace, target, "again", False, SPEC, torch_application)
    line = promote(workspace, target, "it was the prompt", True, SPEC, torch_application)
    assert (line.previous_version, line.champion_version) == ("1", "2")
    assert versions(workspace) == ("2", "2", {"champion": "2"})
    assert promote(workspace, target, "twice", False, SPEC, torch_application) is None


def test_rollback_to_a_model_whose_bytes_changed_moves_nothing(world, torch_application):
    workspace = world(2, 2)
    first = workspace.at(read_ledger(workspace)[0].champion) / "data" / "config.json"
    first.write_text(first.read_text().replace('"silu"', '"gelu"'))
    with pytest.raises(DataError, match=r"config\.json: changed since it was published"):
        roll_back(workspace, "", "worse", SPEC, torch_application)
    assert versions(workspace) == ("2", "2", {"champion": "2"})


def test_rollback_goes_back_over_several_champions_and_says_which_there_are(world, torch_application):
    workspace = world(3, 3)
    with pytest.raises(RequestError, match=r"version 9 was not champion .* Earlier champions: 2 \(2026-01-02\), 1"):
        roll_back(workspace, "9", "x", SPEC, torch_application)
    roll_back(workspace, "1", "all of it", SPEC, torch_application)
    assert versions(workspace) == ("1", "1", {"champion": "1"})
    with pytest.raises(RequestError, match="it is the first champion"):
        roll_back(workspace, "", "more", SPEC, torch_application)


def test_rollback_to_a_model_that_maintenance_removed_says_so_and_moves_nothing(world, torch_application):
    workspace = world(2, 2)
    shutil.rmtree(workspace.at(read_ledger(workspace)[0].champion))
    with pytest.raises(RequestError, match=r"version 1: its folder .* is gone; maintenance keeps the newest champions"):
        roll_back(workspace, "", "worse", SPEC, torch_application)
    assert versions(workspace) == ("2", "2", {"champion": "2"})


def test_candidate_that_the_gate_kept_back_is_promoted_by_force_only(world, decided, torch_application):
    workspace = world(2, 1)
    kept = decided.released(workspace, N2, torch_application, "gate.min_documents=999")
    assert (kept.decision, kept.model_version) == ("kept", "2")
    with pytest.raises(RequestError, match=r"its gate said keep: only 24 documents"):
        promote(workspace, find_target(workspace, night=N2), "I like it", False, SPEC, torch_application)
    promote(workspace, find_target(workspace, night=N2), "I like it", True, SPEC, torch_application)
    assert versions(workspace) == ("2", "2", {"champion": "2"})


def test_candidate_awaits_approval_and_is_promoted_by_a_person(world, decided, torch_application):
    workspace = world(2, 1)
    waiting = decided.released(workspace, N2, torch_application, *HUMAN)
    assert waiting.decision == "awaiting"
    assert versions(workspace) == ("1", "1", {"champion": "1", "candidate": "2"})
    promote(workspace, find_target(workspace), "read its answers", False, SPEC, torch_application, "Ada")
    assert read_ledger(workspace)[-1].who == "Ada"
    assert versions(workspace) == ("2", "2", {"champion": "2"})


def test_rejected_candidate_is_not_promoted_by_running_its_night_again(world, decided, torch_application):
    workspace = world(2, 1)
    decided.released(workspace, N2, torch_application, *HUMAN)
    reject(workspace, "too rude", "Ada")
    assert versions(workspace) == ("1", "1", {"champion": "1"})
    again = decided.released(workspace, N2, torch_application, "release.smoke_tokens=4")
    assert again.decision == "kept"
    assert "rejected by Ada" in read_ledger(workspace)[-1].why


def test_time_out_of_an_approval_keeps_the_champion(world, decided, torch_application):
    workspace = world(2, 1)
    decided.released(workspace, N2, torch_application, "release.approval=human", "release.approval_hours=0.000001")
    with pytest.raises(RequestError, match="which is over; the champion stays"):
        find_target(workspace)
    expire_overdue(workspace)
    last = read_ledger(workspace)[-1]
    assert (last.decision, last.champion_version) == ("expired", "1")
    assert versions(workspace) == ("1", "1", {"champion": "1"})
    with pytest.raises(RequestError, match="its time to be approved is over"):
        promote(workspace, find_target(workspace, version="2"), "late", False, SPEC, torch_application)


def test_newer_candidate_takes_the_place_of_one_that_waits(world, decided, torch_application):
    workspace = world(3, 1)
    decided.released(workspace, N2, torch_application, *HUMAN)
    decided.released(workspace, N3, torch_application, *HUMAN)
    assert [line.decision for line in read_ledger(workspace)] == ["promoted", "awaiting", "expired", "awaiting"]
    assert awaiting(workspace).candidate_version == "3"
    assert versions(workspace) == ("1", "1", {"champion": "1", "candidate": "3"})


def test_next_release_mends_an_alias_and_a_pointer_that_somebody_moved(world, decided, torch_application):
    workspace = world(3, 2)
    registry.registry_client().set_registered_model_alias(workspace.name, "champion", "1")
    (workspace.root / "champion.json").unlink()
    kept = decided.released(workspace, N3, torch_application, "gate.min_documents=999")
    assert kept.decision == "kept"
    assert versions(workspace) == ("2", "2", {"champion": "2"})


class Shared(Application):
    """One torch process for two threads."""

    def __init__(self, inner: Application) -> None:
        self.inner, self.turn = inner, threading.Lock()

    def ask(self, *arguments: Any) -> Any:
        with self.turn:
            return self.inner.ask(*arguments)

    def family(self) -> list[Any]:
        return self.inner.family()


def test_of_two_gates_at_once_one_promotes_and_the_other_asks_again(world, decided, torch_application):
    """Two nights were judged against the same champion and are released at the same moment."""
    workspace = world(3, 1)
    for night in (N2, N3):
        decided.judged(workspace, night, torch_application)
    first_verdicts = {n: workspace.output(n, "gate", Verdict, "evaluate-model") for n in (N2, N3)}
    assert {v.champion for v in first_verdicts.values()} == {read_ledger(workspace)[0].champion}
    begin, shared = threading.Barrier(2), Shared(torch_application)

    def work(night: str) -> None:
        with decided.night_open(workspace, night, shared):
            begin.wait()
            with open_night(decided.spec_of(workspace.name), night) as tonight:
                released(tonight)

    threads = [threading.Thread(target=work, args=(night,)) for night in (N2, N3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = read_ledger(workspace)[1:]
    by_night = {line.night: line for line in lines}
    assert set(by_night) == {N2, N3}
    assert by_night[N3].decision == "promoted"
    judged = Verdict.load(workspace.at(by_night[N3].evidence))
    if lines[0].night == N2:
        assert by_night[N2].decision == "promoted"
        assert judged.champion == by_night[N2].candidate != first_verdicts[N3].champion
    else:
        assert by_night[N2].decision == "kept"
        assert "night 2026-01-03 has decided since" in by_night[N2].why
    assert versions(workspace)[:2] == ("3", "3") or champion_now(workspace).night == N3
    assert lines[0].fence < lines[1].fence


def test_gate_overtaken_by_another_night_is_asked_again_against_the_new_champion(world, decided, torch_application):
    workspace = world(3, 1)
    for night in (N2, N3):
        decided.judged(workspace, night, torch_application)
    before = workspace.output(N3, "gate", Verdict, "evaluate-model")
    with (
        decided.night_open(workspace, N2, torch_application),
        open_night(decided.spec_of(workspace.name), N2) as second,
    ):
        assert released(second).decision == "promoted"
    with decided.night_open(workspace, N3, torch_application), open_night(decided.spec_of(workspace.name), N3) as third:
        assert released(third).decision == "promoted"
        ran = [s.step for s in third.engine.results if s.state == "ran"]
        assert ran == ["evaluate-champion", "gate", "report-evaluation", "release"]
    after = workspace.output(N3, "gate", Verdict, "evaluate-model")
    assert before.champion == read_ledger(workspace)[0].champion
    assert after.champion == read_ledger(workspace)[1].champion
    assert read_ledger(workspace)[2].previous_champion == after.champion


@pytest.mark.parametrize(
    ("point", "after_kill"),
    [
        ("registered", {"decisions": ["promoted"], "pointer": "1", "aliases": {"champion": "1"}}),
        ("decided", {"decisions": ["promoted", "promoted"], "pointer": "2", "aliases": {"champion": "1"}}),
    ],
)
def test_release_killed_between_register_and_alias_is_repaired_by_the_next_run(tmp_path, decided, point, after_kill):
    done = subprocess.run(
        [sys.executable, decided.__file__, "killed", point],
        env=os.environ | {"NIGHTMILL_HOME": str(tmp_path), "PYTHONPATH": str(Path.cwd())},
        capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["status"] == [0, 9, 0], done.stderr[-3000:]
    assert told["after_kill"] == after_kill
    assert told["after_rerun"] == {"decisions": ["promoted", "promoted"], "pointer": "2", "aliases": {"champion": "2"}}


def test_rollback_command_is_one_line_and_refusals_are_exit_code_two(world, torch_application, tmp_path):
    workspace = world(2, 2)
    preset = tmp_path / "pipeline.yaml"
    preset.write_text(f"name: {workspace.name}\nrelease: {{smoke_tokens: 3}}\n")

    def nightmill(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flows", *arguments], capture_output=True, text=True, check=False, timeout=300
        )

    done = nightmill("rollback", str(preset), "--why", "it swears", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["decision"], told["champion"]["version"], told["line"]["why"]) == ("rolled back", "1", "it swears")
    assert versions(workspace) == ("1", "1", {"champion": "1"})
    for arguments, message in (
        (("rollback", str(preset)), "--why is empty"),
        (("promote", str(preset), "--why", "x"), "no candidate awaits approval"),
        (("promote", str(preset), "--version", "7", "--why", "x"), "has no version 7"),
        (("promote", str(preset), "--night", N4, "--why", "x"), "has no output of step release"),
    ):
        refused = nightmill(*arguments)
        assert (refused.returncode, refused.stdout) == (2, ""), refused.stderr
        assert message in refused.stderr
    (workspace.root / "champion.json").unlink()
    assert json.loads(nightmill("promote", str(preset), "--repair", "--json").stdout)["mended"] == [
        "champion.json says nothing, the ledger version 1"
    ]


def test_trace_of_a_model_tells_the_decisions_on_it(world, torch_application):
    workspace = world(2, 2)
    roll_back(workspace, "", "it swears", SPEC, torch_application)
    from flows.trace_command import decisions_on

    told = decisions_on(Lineage(workspace), read_ledger(workspace)[1].candidate)
    assert [entry["decision"] for entry in told] == ["promoted", "rolled back"]
    assert told[1]["why"] == "it swears"
