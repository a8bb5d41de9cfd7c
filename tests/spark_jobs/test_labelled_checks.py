"""What is mended and what is refused, row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spark_jobs.label_spec import REQUIRED, LabelSpec
from spark_jobs.labelled_checks import checked, mended
from spark_jobs.labelled_reading import READ_ARROW

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Row = dict[str, Any]
Check = Callable[..., list[Row]]


def spec_of(task: Any, **fields: Any) -> LabelSpec:
    columns = {field: field for field in ("text", *REQUIRED[task])}
    return LabelSpec(task=task, sources=[{"kind": "jsonl", "path": "x", "columns": columns}], **fields)  # type: ignore[list-item]


@pytest.fixture
def check(spark: SparkSession) -> Check:
    """Rows in their order, with what was mended and the reason."""

    def run(task: str, rows: list[Row], **fields: Any) -> list[Row]:
        numbered = [row | {"source_index": number} for number, row in enumerate(rows)]
        table = spark.createDataFrame(pa.Table.from_pylist(numbered, schema=READ_ARROW)).coalesce(1)
        spec = spec_of(task, **fields)
        found = [row.asDict(recursive=True) for row in checked(mended(table, spec), spec).collect()]
        return sorted(found, key=lambda row: int(row["source_index"]))

    return run


def turns(*pairs: tuple[str, str]) -> Row:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


def arguments(first: tuple[int, int], second: tuple[int, int], names: tuple[str, str] = ("e1", "e2")) -> list[Row]:
    return [{"start": s, "end": e, "label": name} for (s, e), name in zip((first, second), names, strict=True)]


CASES: dict[str, list[tuple[Row, str | None]]] = {
    "classification": [
        ({"text": "a", "labels": ["x"]}, None),
        ({"text": "a", "labels": ["z"]}, "label_outside"),
        ({"text": "a", "labels": ["x", "y"]}, "several_labels"),
        ({"text": "a", "labels": []}, "no_label"),
        ({"text": "a"}, "no_label"),
        ({"text": "", "labels": ["x"]}, "empty_text"),
        ({"labels": ["x"]}, "empty_text"),
        ({"text": " \t\u00a0\u200b\ufeff\u2003\x00", "labels": ["x"]}, "empty_text"),
        ({"text": "?", "labels": ["x"]}, None),
        ({"text": "", "labels": ["x"], "reason": "bad_json"}, "bad_json"),  # a reader's own reason stays
    ],
    "multi_label": [
        ({"text": "a", "labels": []}, None),  # none of the classes is an answer
        ({"text": "a", "labels": ["x", "y"]}, None),
        ({"text": "a", "labels": ["x", "z"]}, "label_outside"),
        ({"text": "a"}, "no_label"),
    ],
    "tagging": [
        ({"tokens": ["a", "b"], "tags": ["B-x", "I-x"]}, None),
        ({"tokens": ["a", "b"], "tags": ["O"]}, "tags_not_as_tokens"),
        ({"tokens": ["a"]}, "tags_not_as_tokens"),
        ({"tokens": [], "tags": []}, "empty_text"),
        ({"tags": ["O"]}, "empty_text"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "empty_token"),
        ({"tokens": ["a", "b"], "tags": ["O", "S-x"]}, "bad_tag"),
        ({"tokens": ["a"], "tags": ["B-"]}, "bad_tag"),
        ({"tokens": ["a"], "tags": ["B-z"]}, "label_outside"),
        ({"tokens": ["a", "b"], "tags": ["O", "I-x"]}, None),  # mended
    ],
    "relation": [
        ({"text": "abcd", "labels": ["x"], "spans": arguments((0, 1), (2, 4))}, None),
        ({"text": "abcd", "labels": ["x"], "spans": arguments((2, 4), (0, 1), ("e2", "e1"))}, None),
        ({"text": "abcd", "labels": ["x"], "spans": arguments((0, 1), (2, 5))}, "bad_spans"),
        ({"text": "abcd", "labels": ["x"], "spans": arguments((0, 1), (2, 2))}, "bad_spans"),
        ({"text": "abcd", "labels": ["x"], "spans": arguments((-1, 1), (2, 3))}, "bad_spans"),
        ({"text": "abcd", "labels": ["x"], "spans": arguments((0, 1), (0, 1))}, "bad_spans"),
        ({"text": "abcd", "labels": ["x"], "spans": arguments((0, 1), (2, 3), ("e1", "e1"))}, "bad_spans"),
        ({"text": "abcd", "labels": ["x"], "spans": arguments((0, 1), (2, 3))[:1]}, "bad_spans"),
        ({"text": "abcd", "labels": ["x"], "spans": []}, "bad_spans"),
        ({"text": "abcd", "labels": ["x"]}, "bad_spans"),
    ],
    "translation": [
        ({"text": "a", "target": "b"}, None),
        ({"text": "a", "target": " "}, "empty_target"),
        ({"text": "a"}, "empty_target"),
    ],
    "summarization": [({"text": "a", "target": "b"}, None), ({"text": "\n", "target": "b"}, "empty_text")],
    "dialogue": [
        (turns(("user", "a"), ("assistant", "b")), None),
        (turns(("system", "s"), ("user", "a"), ("assistant", "b")), None),
        (turns(("system", "s"), ("user", "a")), "bad_messages"),
        (turns(("user", "a")), "bad_messages"),
        (turns(("assistant", "b"), ("user", "a")), "bad_messages"),
        (turns(("user", "a"), ("assistant", "b"), ("user", "c")), "bad_messages"),
        (turns(("user", "a"), ("user", "b"), ("assistant", "c")), "bad_messages"),
        (turns(("user", "a"), ("bot", "b")), "bad_messages"),
        (turns(("user", "a"), ("assistant", " ")), "empty_text"),
        ({"messages": []}, "empty_text"),
        ({}, "empty_text"),
    ],
    "similarity": [
        ({"text": "a", "pair": "b", "value": 0.0}, None),
        ({"text": "a", "pair": "b"}, "no_value"),
        ({"text": "a", "value": 1.0}, "empty_pair"),
    ],
    "regression": [({"text": "a", "value": -2.5}, None), ({"text": "a"}, "no_value")],
    "ranking": [({"text": "a", "pair": "b", "value": 1.0}, None), ({"text": "a", "pair": " ", "value": 1.0}, "empty_pair")],
    "preference": [
        ({"text": "a", "chosen": "b", "rejected": "c"}, None),
        (turns(("user", "a")) | {"chosen": "b", "rejected": "c"}, None),
        (turns(("user", "a"), ("assistant", "b")) | {"chosen": "b", "rejected": "c"}, "bad_messages"),
        ({"text": "a", "chosen": "b", "rejected": "b"}, "same_answers"),
        ({"text": "a", "chosen": "b", "rejected": ""}, "empty_answer"),
        ({"chosen": "b", "rejected": "c"}, "empty_text"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("task", CASES)
def test_each_check_names_the_row_that_breaks_it(check: Check, task: str) -> None:
    labels = {"label_set": ("x", "y")} if task in ("classification", "multi_label", "relation", "tagging") else {}
    found = check(task, [row for row, _ in CASES[task]], **labels)
    assert [row["reason"] for row in found] == [reason for _, reason in CASES[task]]


def test_every_task_has_cases() -> None:
    assert {*CASES, "question_answering"} == set(REQUIRED)


CONTEXT = "Ann wrote it. Bob read it to Zoë 🎈 twice."


@pytest.mark.parametrize(
    ("spans", "reason", "starts"),
    [
        ([(0, 3, "Ann")], None, [0]),
        ([], None, []),
        (None, "no_answers", None),
        ([(5, 8, "Ann")], None, [0]),  # moved: it is there once
        ([(-7, -4, "Bob")], None, [14]),
        ([(32, 38, "twice")], None, [35]),  # after a character beyond the basic plane
        ([(1, 3, "it")], "answer_misplaced", [1]),  # there are two: which is meant is not known
        ([(0, 3, "Eve")], "answer_not_in_context", [0]),
        ([(0, 99, "Ann")], None, [0]),  # the text says where it ends
        ([(0, 3, "")], None, [0]),
        ([(9, 3, "")], "answer_misplaced", [9]),
        ([(0, 3, "Ann"), (0, 3, "Ann"), (14, 17, "Bob")], None, [0, 14]),
    ],
)
def test_an_answer_is_where_its_text_is_or_its_row_goes(
    check: Check, spans: list[tuple[int, int, str]] | None, reason: str | None, starts: list[int] | None
) -> None:
    given_spans = None if spans is None else [dict(zip(("start", "end", "label"), span, strict=True)) for span in spans]
    (row,) = check("question_answering", [{"text": "Who?", "pair": CONTEXT, "spans": given_spans}])
    assert row["reason"] == reason
    assert (None if row["spans"] is None else [span["start"] for span in row["spans"]]) == starts
    if reason is None:
        assert all(CONTEXT[span["start"] : span["end"]] == span["label"] != "" for span in row["spans"])
        moved = any(CONTEXT[start : start + len(label)] != label or start < 0 for start, _, label in spans or [])
        assert row["mended"] == (["answer_moved"] if moved else [])


def test_options_refuse_what_would_be_mended(check: Check) -> None:
    answer = {"text": "Who?", "pair": CONTEXT, "spans": [{"start": 5, "end": 8, "label": "Ann"}]}
    (row,) = check("question_answering", [answer], misplaced_answers="reject")
    assert (row["reason"], row["detail"]) == ("answer_misplaced", "Ann")
    (row,) = check("tagging", [{"tokens": ["a", "b"], "tags": ["O", "I-x"]}], invalid_tags="reject")
    assert (row["reason"], row["measured"], row["allowed"]) == ("invalid_bio", 1.0, 0.0)


def test_classes_outside_the_set_are_removed_where_the_spec_says_so(check: Check) -> None:
    labels = {"label_set": ("x", "y"), "outside": "remove"}
    several = check("multi_label", [{"text": "a", "labels": ["x", "z"]}, {"text": "b", "labels": ["z"]}], **labels)
    assert [(row["labels"], row["reason"], row["mended"]) for row in several] == [
        (["x"], None, ["class_removed"]), ([], None, ["class_removed"]),
    ]  # fmt: skip
    one = check("classification", [{"text": "b", "labels": ["z"]}, {"text": "c", "labels": ["x", "z"]}], **labels)
    assert [(row["reason"], row["detail"]) for row in one] == [("label_outside", "not in label_set: z"), (None, None)]
    (row,) = check("tagging", [{"tokens": ["a", "b", "c"], "tags": ["B-z", "I-z", "B-x"]}], **labels)
    assert (row["tags"], row["classes"], row["mended"]) == (["O", "O", "B-x"], ["x"], ["class_removed"])


def strict_bio(tags: list[str]) -> bool:
    return all(
        not tag.startswith("I-") or (place > 0 and tags[place - 1] in (tag, f"B-{tag[2:]}"))
        for place, tag in enumerate(tags)
    )


def spans_of(tags: list[str]) -> list[tuple[int, str]]:
    """(place, type) at which an entity begins, as conlleval reads any tags."""
    found, before = [], "O"
    for place, tag in enumerate(tags):
        if tag != "O" and (tag[0] == "B" or before[2:] != tag[2:] or before == "O"):
            found.append((place, tag[2:]))
        before = tag
    return found


@given(
    st.lists(
        st.lists(st.sampled_from(["O", "B-x", "I-x", "B-y", "I-y"]), min_size=1, max_size=8), min_size=40, max_size=80
    )
)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_mended_tags_are_valid_and_have_the_same_entities(spark: SparkSession, many: list[list[str]]) -> None:
    rows = [{"tokens": ["w"] * len(tags), "tags": tags, "source_index": number} for number, tags in enumerate(many)]
    table = spark.createDataFrame(pa.Table.from_pylist(rows, schema=READ_ARROW)).coalesce(1)
    spec = spec_of("tagging")
    for row in checked(mended(table, spec), spec).collect():
        before = many[row["source_index"]]
        assert row["reason"] is None
        assert strict_bio(row["tags"])
        assert spans_of(row["tags"]) == spans_of(before)
        assert (row["tags"] == before) == strict_bio(before) == (row["mended"] == [])


@given(
    st.lists(
        st.tuples(st.text("ab 🎈", min_size=1, max_size=8), st.text("ab", min_size=1, max_size=2), st.integers(-3, 9)),
        min_size=60,
    )
)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_answers_move_only_where_their_text_is_once(spark: SparkSession, many: list[tuple[str, str, int]]) -> None:
    rows = [
        {"text": "q", "pair": f"c{context}", "source_index": number,
         "spans": [{"start": start, "end": start + len(answer), "label": answer}]}
        for number, (context, answer, start) in enumerate(many)
    ]  # fmt: skip
    table = spark.createDataFrame(pa.Table.from_pylist(rows, schema=READ_ARROW)).coalesce(1)
    spec = spec_of("question_answering")
    for row in checked(mended(table, spec), spec).collect():
        _, answer, start = many[row["source_index"]]
        context = row["pair"]
        places = [place for place in range(len(context)) if context.startswith(answer, place)]
        if start in places:
            expected = (None, start)
        elif len(places) == 1:
            expected = (None, places[0])
        else:
            expected = ("answer_misplaced" if places else "answer_not_in_context", start)
        assert (row["reason"], row["spans"][0]["start"]) == expected
