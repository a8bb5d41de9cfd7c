"""The page of cases names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path


def test_every_test_named_on_the_page_of_cases_exists() -> None:
    root = Path(__file__).parents[3]
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (root / "docs/compression-cases.md").read_text())
    assert len(named) > 30
    missing = []
    for file, test in named:
        path = root / file if "/" in file else Path(__file__).parent / file
        if not path.is_file() or f"def {test}(" not in path.read_text():
            missing.append(f"{file}::{test}")
    assert missing == []
