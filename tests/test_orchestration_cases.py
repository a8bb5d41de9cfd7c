"""docs/orchestration-cases.md has every case and names tests that exist; and the two cases that a look at our source answers."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from prefect.cache_policies import NO_CACHE

from tasks.search_dask import IN_WORKER

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "orchestration-cases.md"
NEVER_GIVEN = {4, 6, 8, 14, 34, 47, 48, 52}
NO_TESTS = ("flows", "tasks", "training", "spark_jobs")


def calls() -> Iterator[tuple[Path, str, ast.Call]]:
    """File, dotted name and call, of everything that the product calls."""
    for folder in NO_TESTS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield path, ast.unparse(node.func), node


def test_every_case_is_there_once() -> None:
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \|", PAGE.read_text(), re.MULTILINE)]
    assert sorted(numbers) == [number for number in range(1, 57) if number not in NEVER_GIVEN]


def test_every_case_names_tests_that_exist() -> None:
    texts = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    rows = [line for line in PAGE.read_text().splitlines() if re.match(r"\| \d+ \|", line)]
    named = [re.findall(r"`(test_\w+\.py)::(\w+)`", row) for row in rows]
    assert all(named), "a case without any test"
    assert [one for row in named for one in row if f"def {one[1]}(" not in texts.get(one[0], "")] == []


def test_prefect_keeps_and_skips_nothing_by_itself() -> None:
    """A task whose results Prefect keeps is not run again for equal inputs, whatever it does (cases 7, 9, 10)."""
    found = [(path, call) for path, name, call in calls() if name == "task" and "prefect" in path.read_text()]
    assert found
    for path, call in found:
        told = {entry.arg: ast.unparse(entry.value) for entry in call.keywords}
        if told.pop(None, "") == "IN_WORKER":
            told |= {name: str(value) for name, value in IN_WORKER.items()} | {
                "cache_policy": type(IN_WORKER["cache_policy"]).__name__
            }
        assert told.get("cache_policy") in ("NO_CACHE", type(NO_CACHE).__name__), path
        assert told.get("persist_result") == "False", path


def test_no_run_of_mlflow_is_the_active_one() -> None:
    """MLflow's functions without a run id speak of the active run, which threads and nested runs take from each other."""
    fluent = re.compile(r"mlflow\.(start_run|end_run|active_run|log_\w+|set_tags?|autolog)$")
    assert [(path.name, name) for path, name, _ in calls() if fluent.fullmatch(name)] == []
