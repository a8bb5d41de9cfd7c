"""Bill of materials, CycloneDX 1.6 as JSON: `python .ci/sbom.py [FILE]` (`make sbom`).

Every pin of constraints.txt that is installed here, with licence, home page and what it needs; what is installed has the last word on
versions (`2.13.0+cpu`). Pins of roles that are not installed are listed without those facts. No time is in it: same packages, same bytes.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
import uuid
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

ROOT = Path(__file__).parent.parent
NAMESPACE = uuid.UUID("2f3c1a52-0d0e-4f2e-8d2a-6d0d7f1f6a10")  # of serial numbers, any fixed one
WEBSITES = ("home", "homepage", "home-page")


def main(target: Path) -> int:
    bill = bill_of_materials(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(bill, indent=1, sort_keys=True) + "\n")
    installed = sum(1 for part in bill["components"] if "licenses" in part)
    print(f"{target}: {len(bill['components'])} packages, {installed} of them with a licence")  # noqa: T201
    return 0


def bill_of_materials(root: Path) -> dict[str, Any]:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    pins = dict(pin.split("==") for pin in _pins(root / "constraints.txt"))
    found = {name: installed(name) for name in pins}
    versions = {name: (there.version if there else pins[name]) for name, there in found.items()}
    references = {name: f"pkg:pypi/{name}@{versions[name].replace('+', '%2B')}" for name in pins}
    components = [_component(name, versions[name], references[name], found[name]) for name in sorted(pins)]
    own = f"pkg:pypi/{project['name']}@{project['version']}"
    wanted = [
        *project["dependencies"],
        *(need for extra in project["optional-dependencies"].values() for need in extra),
    ]
    links = [{"ref": own, "dependsOn": _references(wanted, references)}]
    links += [{"ref": references[name], "dependsOn": _references((there.requires or []) if there else [], references)}
              for name, there in sorted(found.items())]  # fmt: skip
    body = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application", "bom-ref": own, "name": project["name"], "version": project["version"],
                "description": project["description"], "licenses": [{"license": {"id": project["license"]}}], "purl": own,
            }
        },
        "components": components,
        "dependencies": links,
    }  # fmt: skip
    return body | {"serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, json.dumps(body, sort_keys=True))}"}


def installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except ModuleNotFoundError:  # PackageNotFoundError of either finder
        return None


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _pins(path: Path) -> list[str]:
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    return [f"{canonical(line.split('==')[0])}=={line.split('==')[1]}" for line in lines if "==" in line]


def _component(name: str, version: str, reference: str, there: Distribution | None) -> dict[str, Any]:
    part: dict[str, Any] = {
        "type": "library",
        "bom-ref": reference,
        "name": name,
        "version": version,
        "purl": reference,
    }
    if there is None:
        return part | {"scope": "optional"}
    # Read by `get`: importlib_metadata, once anybody imported it, answers here too, and its [] raises for what is not there.
    told = there.metadata
    if told.get("Summary"):
        part["description"] = told.get("Summary")
    licences = _licences(told)
    if licences:
        part["licenses"] = licences
    pages = [entry.split(",", 1) for entry in told.get_all("Project-URL") or []]
    home = dict(told.items()).get("Home-page") or next(
        (page.strip() for label, page in pages if label.strip().lower() in WEBSITES), ""
    )
    if home.startswith("http"):
        part["externalReferences"] = [{"type": "website", "url": home}]
    return part


def _licences(told: Any) -> list[dict[str, Any]]:
    """The expression, or else the classifiers, or else the first line of the field that packages fill with anything."""
    if told.get("License-Expression"):
        return [{"expression": told.get("License-Expression")}]
    classifiers = [
        line.split(" :: ")[-1] for line in told.get_all("Classifier") or [] if line.startswith("License :: ")
    ]
    named = classifiers or [line.strip() for line in (told.get("License") or "").splitlines()[:1] if line.strip()]
    return [{"license": {"name": name}} for name in dict.fromkeys(named)]


def _references(needs: list[str], references: dict[str, str]) -> list[str]:
    """Pinned packages among the requirements. Extras are taken as asked for: the pins are those of all roles."""
    names = set()
    for need in needs:
        try:
            names.add(canonical(Requirement(need).name))
        except InvalidRequirement:
            continue
    return sorted(references[name] for name in names if name in references)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "var" / "sbom.cdx.json"))
