"""Known vulnerabilities of the pinned packages: `python .ci/audit.py` (`make audit`).

pip-audit asks PyPI's advisory database about every pin of constraints.txt. Found and not allowed: exit 1. Allowed are the ids in
.ci/audit-allow.toml, each with a reason and a last day. Where the database cannot be asked (no network, a mirror without it) nothing was
audited: that is said, with the reason, and is no failure. pip-audit itself calls it "No known vulnerabilities found" and ends with 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ALLOWED = ROOT / ".ci" / "audit-allow.toml"
TOOL = "pip-audit==2.10.1"
TIMEOUT_S = 300


@dataclass
class Told:
    """audited, pinned: numbers of packages. bad: lines of what is not allowed. good: lines of what is."""

    pinned: int
    audited: int = 0
    bad: list[str] = field(default_factory=list)
    good: list[str] = field(default_factory=list)
    reason: str = ""


def main() -> int:
    pins = pinned(ROOT / "constraints.txt")
    allowed = tomllib.loads(ALLOWED.read_text()).get("allow", [])
    try:
        told = judge(ask(pins), allowed, datetime.now(UTC).date())
    except (OSError, subprocess.SubprocessError, ValueError) as err:
        told = Told(
            pinned=len(pins), reason=str(err).strip().splitlines()[-1][:300] if str(err).strip() else type(err).__name__
        )
    for line in [*told.good, *told.bad]:
        print(line)  # noqa: T201
    if told.audited == 0 and not told.bad:
        print(f"audit: NOT DONE, none of {told.pinned} pinned packages could be looked up: {told.reason}")  # noqa: T201
        return 0
    print(  # noqa: T201
        f"audit: {told.audited} of {told.pinned} pinned packages looked up, {len(told.bad)} not allowed, {len(told.good)} allowed"
    )
    if told.reason:
        print(f"audit: the others were not: {told.reason}")  # noqa: T201
    return 1 if told.bad else 0


def pinned(path: Path) -> list[str]:
    """The lines `name==version`, without local parts: `2.13.0+cpu` has the advisories of 2.13.0."""
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    return [line.partition("+")[0] for line in lines if "==" in line]


def ask(pins: list[str]) -> dict[str, Any]:
    """What pip-audit says, as JSON. Raises: ValueError with the end of its messages if it says nothing."""
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text("\n".join(pins) + "\n")
        uv = str(Path(sys.executable).parent / "uv")
        command = [uv, "tool", "run", "--from", TOOL, "pip-audit", "-r", str(requirements), "--no-deps", "--disable-pip",
                   "--vulnerability-service", "pypi", "--format", "json", "--progress-spinner", "off"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError as err:
        raise ValueError(
            done.stderr.strip()[-2000:] or f"pip-audit ended with {done.returncode} and said nothing"
        ) from err
    return answer


def judge(answer: dict[str, Any], allowed: list[dict[str, Any]], today: date) -> Told:
    """Sort what was found by the allow file. Raises: ValueError if an entry there lacks something."""
    for entry in allowed:
        if (
            not {"id", "package", "reason", "until"} <= set(entry)
            or not isinstance(entry["until"], date)
            or not entry["reason"]
        ):
            raise SystemExit(f"{ALLOWED}: wanted id, package, reason and until (a date) in {entry}")
    told = Told(pinned=len(answer["dependencies"]))
    used: set[str] = set()
    for package in answer["dependencies"]:
        if "skip_reason" in package:
            told.reason = told.reason or package["skip_reason"]
            continue
        told.audited += 1
        for found in package.get("vulns", []):
            _sort(told, used, package, found, allowed, today)
    if told.audited:
        told.good += [
            f"allowed but not found any more, take it out: {e['id']} of {e['package']}"
            for e in allowed
            if e["id"] not in used
        ]
    return told


def _sort(
    told: Told,
    used: set[str],
    package: dict[str, Any],
    found: dict[str, Any],
    allowed: list[dict[str, Any]],
    today: date,
) -> None:
    ids = {found["id"], *found.get("aliases", [])}
    name = f"{package['name']} {package['version']}: {found['id']}"
    fixed = ", ".join(found.get("fix_versions", [])) or "none yet"
    entry = next((entry for entry in allowed if entry["id"] in ids and entry["package"] == package["name"]), None)
    if entry is None:
        told.bad.append(
            f"{name}, mended in {fixed}: {found.get('description', '').strip().splitlines()[0][:160] if found.get('description') else ''}"
        )
        return
    used.add(entry["id"])
    if entry["until"] < today:
        told.bad.append(f"{name}, mended in {fixed}: was allowed until {entry['until']}")
    else:
        told.good.append(f"{name}: allowed until {entry['until']}: {entry['reason']}")


if __name__ == "__main__":
    sys.exit(main())
