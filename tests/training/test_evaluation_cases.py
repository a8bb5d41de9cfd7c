"""docs/evaluation-cases.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_case_of_evaluation_names_tests_that_exist() -> None:
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", (ROOT / "docs/evaluation-cases.md").read_text())
    texts = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}

    assert len(named) > 40
    assert [(file, test) for file, test in named if f"def {test}(" not in texts.get(file, "")] == []
