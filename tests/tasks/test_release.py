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
from flows.trace_command import decisions_on
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

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def world(decided: ModuleType, own_home: Path, torch_application: Application) -> Callable[..., Workspace]:
    """A pipeline of that name with nights that have models; the first `num_released` of them are released."""

    def make(name: str, count: int, num_released: int) -> Workspace:
        workspace = decided.make_nights(name, count)
        for night in decided.NIGHTS[:num_released]:
            assert decided.released(workspace, night, torch_application).decision == "promoted"
        return workspace

    return make


@pytest.fixture(scope="module")
def three(world: Callable[..., Workspace]) -> Workspace:
    """Three nights, three champions. For tests that move nothing."""
    return world("three", 3, 3)


def versions(workspace: Workspace) -> tuple[str, str, dict[str, str]]:
    """Champion of the ledger, of the pointer, and the aliases."""
    champion, pointer = champion_now(workspace), read_pointer(workspace.root)
    assert champion is not None
    assert pointer is not None
    return champion.version, pointer.version, registry.aliases_of(registry.registry_client(), workspace.name)


def test_release_links_what_was_judged_in_ledger_registry_and_bundle(three):
    line = read_ledger(three)[1]
    assert (line.decision, line.by, line.fence, line.candidate_version) == ("promoted", "gate", 2, "2")
    assert (line.previous_version, line.champion_version) == ("1", "2")
    evidence = Evidence.load(three.at(line.bundle))
    evidence.check_bytes()
    assert evidence.digest == line.bundle_digest
    index = json.loads((Path(evidence.folder()) / "index.json").read_text())
    assert {"candidate", "verdict", "corpus", "verdict.candidate", "verdict.champion"} <= set(index)
    for role, told in index.items():
        assert file_sha256(Path(evidence.folder()) / f"{role}.json") == told["sha256"], role
    assert json.loads((Path(evidence.folder()) / "verdict" / "verdict.json").read_text())["decision"] == "promote"
    tags = registry.registry_client().get_model_version("three", "2").tags
    assert tags["nightmill.evidence"] == line.bundle
    assert tags["nightmill.evidence_sha256"] == line.bundle_digest
    assert tags["nightmill.verdict_sha256"] == line.evidence_digest


def test_card_of_a_registered_model_has_measured_facts_and_lies_beside_it(three):
    client = registry.registry_client()
    version = client.get_model_version("three", "1")
    logged = client.get_logged_model(version.source.removeprefix("models:/"))
    card = (Path(logged.artifact_location.removeprefix("file://")) / "README.md").read_text()
    assert version.description == card
    line = read_ledger(three)[0]
    model, verdict = ModelFolder.load(three.at(line.candidate)), Verdict.load(three.at(line.evidence))
    scored = json.loads(three.at(verdict.parent("candidate").address).joinpath("_manifest.json").read_text())
    assert f"| parameters | {model.num_parameters:,} |" in card
    assert f"| candidate | {scored['bits_per_byte']:.4f} |" in card
    assert f"`{model.digest}`" in card
    assert "LlamaForCausalLM" in card


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("9", r"version 9 was not champion .* Earlier champions: 2 \(2026-01-02\), 1 \(2026-01-01\)"),
        ("3", r"version 3 was not champion before the present one"),
    ],
)
def test_rollback_to_no_earlier_champion_names_those_there_are(three, torch_application, version, message):
    with pytest.raises(RequestError, match=message):
        roll_back(three, version, "x", SPEC, torch_application)


def test_rollback_to_a_model_whose_bytes_changed_moves_nothing(three, torch_application):
    config = three.at(read_ledger(three)[1].champion) / "data" / "config.json"
    before = config.read_text()
    config.write_text(before.replace("259", "258", 1))
    with pytest.raises(DataError, match=r"config\.json: changed since it was published"):
        roll_back(three, "", "worse", SPEC, torch_application)
    config.write_text(before)
    assert versions(three) == ("3", "3", {"champion": "3"})


def test_rollback_to_a_model_that_maintenance_removed_says_so_and_moves_nothing(three, torch_application):
    folder = three.at(read_ledger(three)[0].champion)
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(RequestError, match=r"version 1: its folder .* is gone; maintenance keeps the newest champions"):
        roll_back(three, "1", "worse", SPEC, torch_application)
    folder.with_name("elsewhere").rename(folder)
    assert versions(three) == ("3", "3", {"champion": "3"})


def test_rollback_restores_the_champion_and_no_rerun_brings_the_other_one_back(world, decided, torch_application):
    workspace = world("back", 3, 2)
    line = roll_back(workspace, "", "it swears", SPEC, torch_application)
    assert (line.decision, line.by, line.why, line.previous_version) == ("rolled back", "hand", "it swears", "2")
    assert line == read_ledger(workspace)[-1]
    assert versions(workspace) == ("1", "1", {"champion": "1"})
    assert champion_before(workspace, N3).version == "1"
    told = decisions_on(Lineage(workspace), line.candidate)
    assert [(entry["decision"], entry["by"]) for entry in told] == [("promoted", "gate"), ("rolled back", "hand")]

    shutil.rmtree(workspace.at(workspace.record(N2).outputs["release"].address))
    registry.registry_client().set_registered_model_alias("back", "champion", "2")  # somebody did, by hand
    (workspace.root / "champion.json").unlink()
    assert decided.released(workspace, N2, torch_application).decision == "kept"
    assert "it swears" in read_ledger(workspace)[-1].why
    assert versions(workspace) == ("1", "1", {"champion": "1"}), "the release also mends alias and pointer"

    with pytest.raises(RequestError, match=r"version 2 .* is not promoted: rolled back by .*it swears.*--force"):
        promote(workspace, find_target(workspace, version="2"), "again", False, SPEC, torch_application)
    third = decided.released(workspace, N3, torch_application)
    assert (third.decision, read_ledger(workspace)[-1].previous_version) == ("promoted", "1")

    forced = promote(
        workspace, find_target(workspace, version="2"), "the prompt's fault", True, SPEC, torch_application
    )
    assert (forced.previous_version, forced.champion_version) == ("3", "2")
    assert versions(workspace) == ("2", "2", {"champion": "2"})
    assert promote(workspace, find_target(workspace, version="2"), "twice", False, SPEC, torch_application) is None


def test_candidate_that_the_gate_kept_back_is_promoted_by_force_only(world, decided, torch_application):
    workspace = world("kept", 2, 1)
    kept = decided.released(workspace, N2, torch_application, "gate.min_documents=999")
    assert (kept.decision, kept.model_version) == ("kept", "2")
    with pytest.raises(RequestError, match=r"its gate said keep: only 24 documents"):
        promote(workspace, find_target(workspace, night=N2), "I like it", False, SPEC, torch_application)
    promote(workspace, find_target(workspace, night=N2), "I like it", True, SPEC, torch_application)
    assert versions(workspace) == ("2", "2", {"champion": "2"})


def test_candidate_awaits_approval_is_promoted_or_rejected_and_a_rerun_changes_neither(
    world, decided, torch_application
):
    workspace = world("asks", 3, 1)
    assert decided.released(workspace, N2, torch_application, *HUMAN).decision == "awaiting"
    assert versions(workspace) == ("1", "1", {"champion": "1", "candidate": "2"})
    promote(workspace, find_target(workspace), "read its answers", False, SPEC, torch_application, "Ada")
    assert read_ledger(workspace)[-1].who == "Ada"
    assert versions(workspace) == ("2", "2", {"champion": "2"})

    assert decided.released(workspace, N3, torch_application, *HUMAN).decision == "awaiting"
    reject(workspace, "too rude", "Ada")
    assert versions(workspace) == ("2", "2", {"champion": "2"})
    again = decided.released(workspace, N3, torch_application, "release.smoke_tokens=4")
    assert again.decision == "kept"
    assert "rejected by Ada" in read_ledger(workspace)[-1].why


def test_newer_candidate_takes_the_place_of_one_that_waits_and_time_out_keeps_the_champion(
    world, decided, torch_application
):
    workspace = world("waits", 3, 1)
    decided.released(workspace, N2, torch_application, *HUMAN)
    decided.released(workspace, N3, torch_application, "release.approval=human", "release.approval_hours=0.000001")
    assert [line.decision for line in read_ledger(workspace)] == ["promoted", "awaiting", "expired", "awaiting"]
    assert awaiting(workspace).candidate_version == "3"
    with pytest.raises(RequestError, match="which is over; the champion stays"):
        find_target(workspace)
    expire_overdue(workspace)
    last = read_ledger(workspace)[-1]
    assert (last.decision, last.champion_version) == ("expired", "1")
    assert versions(workspace) == ("1", "1", {"champion": "1"})
    with pytest.raises(RequestError, match="its time to be approved is over"):
        promote(workspace, find_target(workspace, version="3"), "late", False, SPEC, torch_application)


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
    workspace = world("two-gates", 3, 1)
    for night in (N2, N3):
        decided.judged(workspace, night, torch_application)
    first = {n: workspace.output(n, "gate", Verdict, "evaluate-model") for n in (N2, N3)}
    assert {verdict.champion for verdict in first.values()} == {read_ledger(workspace)[0].champion}
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
    assert [line.fence for line in lines] == sorted({line.fence for line in lines})
    assert by_night[N3].decision == "promoted"
    judged = Verdict.load(workspace.at(by_night[N3].evidence))
    if lines[0].night == N2:  # then night 3 had to ask again
        assert by_night[N2].decision == "promoted"
        assert judged.champion == by_night[N2].candidate != first[N3].champion
    else:
        assert by_night[N2].decision == "kept"
        assert "night 2026-01-03 has decided since" in by_night[N2].why
    assert champion_now(workspace).night == N3


def test_gate_overtaken_by_another_night_is_asked_again_against_the_new_champion(world, decided, torch_application):
    workspace = world("overtaken", 3, 1)
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
        ran = [step.step for step in third.engine.results if step.state == "ran"]
        assert ran == ["evaluate-champion", "gate", "report-evaluation", "release"]
    after = workspace.output(N3, "gate", Verdict, "evaluate-model")
    assert before.champion == read_ledger(workspace)[0].champion
    assert after.champion == read_ledger(workspace)[1].champion
    assert read_ledger(workspace)[2].previous_champion == after.champion


def test_release_killed_between_register_and_alias_is_repaired_by_the_next_run(world, decided, torch_application):
    """The same release is killed after the model was registered, then after the ledger's line, then left to end."""
    workspace = world("killed", 2, 1)
    decided.judged(workspace, N2, torch_application)
    for point, decisions, found in (
        ("registered", ["promoted"], ("1", "1", {"champion": "1"})),
        ("decided", ["promoted", "promoted"], ("2", "2", {"champion": "1"})),
    ):
        done = subprocess.run(
            [sys.executable, decided.__file__, "killed", N2, point], env=os.environ | {"PYTHONPATH": str(Path.cwd())},
            capture_output=True, text=True, check=False, timeout=400,
        )  # fmt: skip
        assert done.returncode == -9, done.stderr[-3000:]
        assert [line.decision for line in read_ledger(workspace)] == decisions
        assert versions(workspace) == found
        assert "2" in {str(v.version) for v in registry.registry_client().search_model_versions("name = 'killed'")}
    assert decided.released(workspace, N2, torch_application).decision == "promoted"
    assert [line.decision for line in read_ledger(workspace)] == ["promoted", "promoted"]
    assert versions(workspace) == ("2", "2", {"champion": "2"})
    assert not list(workspace.root.glob("locks/*"))
    assert not list(workspace.root.glob("attempts/*"))


def test_rollback_command_is_one_line_and_refusals_are_exit_code_two(world, torch_application, tmp_path, capsys):
    from flows.cli import main

    workspace = world("command", 2, 2)
    preset = tmp_path / "pipeline.yaml"
    preset.write_text("name: command\nrelease: {smoke_tokens: 3}\n")
    for arguments, message in (
        (("rollback", str(preset)), "--why is empty"),
        (("promote", str(preset), "--why", "x"), "no candidate awaits approval"),
        (("promote", str(preset), "--version", "7", "--why", "x"), "has no version 7"),
        (("promote", str(preset), "--night", N4, "--why", "x"), "has no output of step release"),
        (("promote", str(preset), "--reject", "--night", N2, "--why", "x"), "leave out --night and --version"),
        (("rollback", "topics.yaml", "--why", "x"), "neither one of"),
    ):
        assert main(list(arguments)) == 2
        said = capsys.readouterr()
        assert message in said.err
        assert said.out == ""
    assert main(["rollback", str(preset), "--why", "it swears", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["decision"], told["champion"]["version"], told["line"]["why"]) == ("rolled back", "1", "it swears")
    assert versions(workspace) == ("1", "1", {"champion": "1"})
    (workspace.root / "champion.json").unlink()
    assert main(["promote", str(preset), "--repair", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"mended": ["champion.json says nothing, the ledger version 1"]}
