"""The audit of dependencies, on answers in pip-audit's form, and the bill of materials of this installation."""

from __future__ import annotations

import importlib.util
import json
import sys
from datetime import date
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
TODAY = date(2026, 11, 27)
FOUND = {
    "id": "PYSEC-2026-1",
    "aliases": ["GHSA-aaaa-bbbb-cccc"],
    "fix_versions": ["2.0"],
    "description": "Runs code.\nMore.",
}
ALLOWED = {"id": "GHSA-aaaa-bbbb-cccc", "package": "plums", "reason": "never called", "until": date(2026, 12, 31)}
ANSWER = {
    "dependencies": [
        {"name": "plums", "version": "1.0", "vulns": [FOUND]},
        {"name": "pears", "version": "3.1", "vulns": []},
        {"name": "quinces", "skip_reason": "Dependency not found on PyPI and could not be audited: quinces (1)"},
    ]
}


def script(name: str) -> ModuleType:
    location = importlib.util.spec_from_file_location(f"ci_{name}", ROOT / ".ci" / f"{name}.py")
    assert location is not None
    assert location.loader is not None
    module = importlib.util.module_from_spec(location)
    sys.modules[module.__name__] = module  # its dataclass looks itself up
    location.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    return script("audit")


def test_a_vulnerability_nobody_allowed_is_bad(audit):
    told = audit.judge(ANSWER, [], TODAY)
    assert (told.pinned, told.audited) == (3, 2)
    assert told.bad == ["plums 1.0: PYSEC-2026-1, mended in 2.0: Runs code."]


def test_an_allowed_one_is_told_with_its_reason_by_any_of_its_names(audit):
    told = audit.judge(ANSWER, [ALLOWED], TODAY)
    assert told.bad == []
    assert told.good == ["plums 1.0: PYSEC-2026-1: allowed until 2026-12-31: never called"]


@pytest.mark.parametrize("other", [{"until": date(2026, 11, 26)}, {"package": "pears"}])
def test_allowing_ends_on_its_day_and_is_for_one_package(audit, other):
    assert len(audit.judge(ANSWER, [ALLOWED | other], TODAY).bad) == 1


def test_an_entry_without_a_reason_is_refused(audit):
    with pytest.raises(SystemExit, match="wanted id, package, reason and until"):
        audit.judge(ANSWER, [ALLOWED | {"reason": ""}], TODAY)


def test_where_nothing_could_be_looked_up_it_is_not_called_clean(audit, monkeypatch, capsys):
    nothing = {"dependencies": [{"name": "plums", "skip_reason": "Dependency not found on PyPI"}]}
    monkeypatch.setattr(audit, "ask", lambda _pins: nothing)
    assert audit.main() == 0
    assert "NOT DONE" in capsys.readouterr().out


def test_what_is_found_fails_the_command(audit, monkeypatch, capsys):
    monkeypatch.setattr(audit, "ask", lambda _pins: ANSWER)
    assert audit.main() == 1
    assert "2 of 3 pinned packages looked up, 1 not allowed" in capsys.readouterr().out


@pytest.mark.parametrize("finder", ["importlib.metadata", "importlib_metadata"])
def test_bill_names_every_pin_once_and_is_the_same_twice(finder, monkeypatch):
    """Whoever imports the package importlib_metadata replaces the finder of the standard library with a stricter one."""
    sbom = script("sbom")
    monkeypatch.setattr(sbom, "distribution", importlib.import_module(finder).distribution)
    bill = sbom.bill_of_materials(ROOT)
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line and line[0] != "#"]
    references = [part["bom-ref"] for part in bill["components"]]
    assert len(references) == len(set(references)) == len(pins)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert {link["ref"] for link in bill["dependencies"]} == {*references, bill["metadata"]["component"]["bom-ref"]}
    assert all(set(link["dependsOn"]) <= set(references) for link in bill["dependencies"])
    own = next(link for link in bill["dependencies"] if "nightmill" in link["ref"])
    assert any(reference.startswith("pkg:pypi/mlflow@") for reference in own["dependsOn"])
    assert json.dumps(sbom.bill_of_materials(ROOT)) == json.dumps(bill)
