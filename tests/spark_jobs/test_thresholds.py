import numpy as np
import pyarrow as pa
import pytest

from spark_jobs.manifests import Documents
from spark_jobs.quality_model import QualityModel
from spark_jobs.quality_rules import RULES
from spark_jobs.specs import ClassifierSpec, CleanSpec
from spark_jobs.thresholds import CANDIDATES, candidates_of, count_batch
from tests.spark_jobs.test_dedup import ingested
from tests.spark_jobs.workspace import Workspace, read_rows

SPEC = CleanSpec(identify_language=False)
TEXTS = ["the word " * 10, "the word " * 20, "ha " * 60, ""]


def counts(texts: list[str]) -> dict[tuple[str, float], dict[str, object]]:
    rows = count_batch(pa.array(texts, pa.string()), SPEC, candidates_of(SPEC)).to_pylist()
    return {(row["rule"], row["threshold"]): row for row in rows}


def test_candidates_cover_every_rule_and_hold_the_threshold_of_the_spec() -> None:
    candidates = candidates_of(SPEC)
    asked = [rule for rule in RULES if rule.reason != "low_quality"]  # nothing to ask without two folders
    assert {rule.reason for rule, _, _, _ in candidates} == {rule.reason for rule in asked}
    assert sum(is_chosen for _, _, is_chosen, _ in candidates) == len(asked)
    assert len({(rule.reason, limit) for rule, limit, _, _ in candidates}) == len(candidates)
    assert not any(is_on for rule, _, _, is_on in candidates if "." in rule.setting)


@pytest.mark.parametrize(("limit", "documents", "size"), [(12.5, 1, 0), (25.0, 2, 89), (50.0, 3, 268)])
def test_counts_are_those_of_each_threshold_alone(limit: float, documents: int, size: int) -> None:
    row = counts(TEXTS)["too_few_words", limit]
    assert (row["num_documents"], row["num_bytes"], row["of_documents"], row["is_chosen"]) == (
        documents,
        size,
        4,
        limit == 50.0,
    )


def test_counts_do_not_fall_as_a_rule_gets_stricter() -> None:
    found = counts(TEXTS)
    for rule in RULES:
        rows = sorted((limit, row) for (reason, limit), row in found.items() if reason == rule.reason)
        numbers = [row["num_documents"] for _, row in rows]
        assert numbers == sorted(numbers, reverse=rule.bound == "at most")


def test_candidates_of_a_classifier_are_tenths_of_its_score() -> None:
    spec = SPEC.model_copy(update={"classifier": ClassifierSpec(good="g", bad="b", min_score=0.35)})
    candidates = candidates_of(spec)
    limits = {limit: is_chosen for rule, limit, is_chosen, _ in candidates if rule.reason == "low_quality"}
    assert limits == dict.fromkeys([tenth / 10 for tenth in range(1, 10)], False) | {0.35: True}
    weights = np.zeros(1024, np.float32)
    rows = count_batch(pa.array(TEXTS, pa.string()), spec, candidates, QualityModel(weights, 0.0, 1)).to_pylist()
    removed = {row["threshold"]: row["num_documents"] for row in rows if row["rule"] == "low_quality"}
    assert [removed[limit] for limit in (0.1, 0.5, 0.6)] == [0, 0, 4]  # all score 0.5


def test_thresholds_job_sums_over_all_documents(workspace: Workspace) -> None:
    documents = ingested(workspace, TEXTS)
    result = workspace.run(Documents, "thresholds", SPEC, documents=documents)
    rows = read_rows(result.uri, "data")
    assert list(rows[0]) == list(CANDIDATES)
    expected = counts(TEXTS)
    assert len(rows) == len(expected)
    assert all(row == expected[row["rule"], row["threshold"]] for row in rows)
