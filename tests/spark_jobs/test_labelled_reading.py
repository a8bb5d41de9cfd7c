"""Sources of labelled sets, read without Spark: what each kind gives, and what becomes a reject."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import orc, parquet
from pydantic import ValidationError

from spark_jobs.errors import RequestError
from spark_jobs.label_spec import GIVES, MAPPED, REQUIRED, LabelSource, LabelSpec
from spark_jobs.labelled_files import digest_of, units_of, with_digests
from spark_jobs.labelled_packages import topics_of
from spark_jobs.labelled_reading import read_unit
from spark_jobs.readers import Unit

PAGE = Path(__file__).parents[2] / "docs/labelled.md"
REAL = Path(__file__).parents[3] / "shared/data/labelled"
needs_data = pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/data/labelled")
SEMEVAL = REAL / "semeval2010_task8"

Row = dict[str, Any]


def read(task: str, **source: Any) -> list[Row]:
    spec = LabelSpec(task=task, sources=[source])  # type: ignore[arg-type]
    return [row for unit in units_of(spec.sources[0]) for row in read_unit(0, spec.sources[0], Unit(unit), spec)]


def read_text(tmp_path: Path, name: str, content: str | bytes, task: str, **source: Any) -> list[Row]:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return read(task, path=str(tmp_path / name), **source)


def reasons(rows: list[Row]) -> Counter[str | None]:
    return Counter(row.get("reason") for row in rows)


@needs_data
@pytest.mark.parametrize(
    ("folder", "classes", "num_rows"),
    [
        ("sentence_polarity", {"rt-polarity.pos": "positive", "rt-polarity.neg": "negative"}, 10_662),
        ("subjectivity", {"quote.tok.gt9.5000": "subjective", "plot.tok.gt9.5000": "objective"}, 10_000),
    ],
)
def test_lines_give_a_sentence_each_with_the_class_of_its_file(
    folder: str, classes: dict[str, str], num_rows: int
) -> None:
    rows = read("classification", kind="lines", path=str(REAL / folder), classes=classes)
    assert Counter(row["labels"][0] for row in rows) == dict.fromkeys(classes.values(), num_rows // 2)
    assert all(row["text"] == row["text"].strip() != "" for row in rows)


@needs_data
def test_relations_of_semeval_keep_their_arguments_and_lose_their_marks() -> None:
    train = read("relation", kind="semeval-relations", path=str(SEMEVAL / "SemEval2010_task8_training/TRAIN_FILE.TXT"))
    test = read(
        "relation", kind="semeval-relations", path=str(SEMEVAL / "SemEval2010_task8_testing_keys/TEST_FILE_FULL.TXT")
    )
    assert (reasons(train), reasons(test)) == ({None: 8000}, {None: 2717})
    assert len({row["labels"][0] for row in train}) == 19
    first = train[0]
    assert [first["text"][span["start"] : span["end"]] for span in first["spans"]] == ["configuration", "elements"]
    assert not any("<e" in row["text"] or "</e" in row["text"] for row in train + test)


@needs_data
def test_sentences_without_a_relation_take_it_from_the_keys() -> None:
    keys = SEMEVAL / "SemEval2010_task8_testing_keys/TEST_FILE_KEY.TXT"
    path = SEMEVAL / "SemEval2010_task8_testing/TEST_FILE.txt"
    rows = read("relation", kind="semeval-relations", path=str(path), key_file=str(keys))
    full = SEMEVAL / "SemEval2010_task8_testing_keys/TEST_FILE_FULL.TXT"
    same = read("relation", kind="semeval-relations", path=str(full), directed=False)
    assert [row["labels"] for row in rows] == [row["labels"] for row in same]
    assert [row["spans"] for row in rows] == [row["spans"] for row in same]
    assert reasons(read("relation", kind="semeval-relations", path=str(path))) == {"no_label": 2717}


@needs_data
@pytest.mark.parametrize("language", ["en", "de", "ar", "zh", "hi"])
def test_answers_of_xquad_stand_where_they_are_said_to(language: str) -> None:
    rows = read("question_answering", kind="squad", path=str(REAL / f"xquad.{language}.json"))
    assert len(rows) == 1190
    assert len({row["group"] for row in rows}) == 240
    assert all(row["pair"][s["start"] : s["end"]] == s["label"] == row["target"] for row in rows for s in row["spans"])


@needs_data
@pytest.mark.parametrize(("translate", "num_rows"), [("questions", 1190), ("contexts", 240), ("both", 1430)])
def test_two_languages_of_xquad_are_pairs_to_translate(translate: str, num_rows: int) -> None:
    rows = read(
        "translation", kind="squad", path=str(REAL / "xquad.en.json"), translations=str(REAL / "xquad.de.json"),
        translate=translate,
    )  # fmt: skip
    assert len(rows) == num_rows
    questions = {row["text"]: row["target"] for row in rows}
    if translate != "contexts":
        assert questions["How many points did the Panthers defense surrender?"].startswith("Wie viele Punkte")


@needs_data
def test_dialogues_of_28_languages_are_read_and_alternate() -> None:
    rows = read("dialogue", kind="dialogues", path=str(REAL / "chatterbot_corpus"))
    found = reasons(rows)
    assert found[None] > 7_000
    assert set(found) <= {None, "bad_messages", "bad_dialogues"}
    assert sum(found.values()) - found[None] < 0.02 * found[None]
    for row in rows:
        if not row.get("reason"):
            roles = [message["role"] for message in row["messages"]]
            assert roles == ["user", "assistant"] * (len(roles) // 2) != []


def test_packages_of_this_installation_have_topics_and_summaries() -> None:
    topics = read("multi_label", kind="package-topics")
    labelled = [row for row in topics if not row.get("reason")]
    assert len(labelled) > 20
    assert "Scientific/Engineering" in {name for row in labelled for name in row["labels"]}
    summaries = {row["origin"]: row["target"] for row in read("summarization", kind="package-topics")}
    assert summaries["distribution/pyarrow"] == "Python library for Apache Arrow"


def test_topics_are_cut_to_a_depth_and_not_repeated() -> None:
    classifiers = [
        "Topic :: Text Processing :: Fonts",
        "Topic :: Text Processing",
        "License :: OSI",
        "Topic :: Utilities",
    ]
    source = LabelSource(kind="package-topics", topic_depth=1, classes={"Utilities": "tools"})
    assert topics_of(classifiers, source) == ["Text Processing", "tools"]
    deeper = LabelSource(kind="package-topics", topic_depth=2)
    assert topics_of(classifiers, deeper) == ["Text Processing", "Text Processing :: Fonts", "Utilities"]


CELLS = {
    "q": "Who wrote it?", "c": "Ann wrote it.", "y": ["b", "a", "b"], "v": 3, "w": ["New", "York"], "t": ["B-LOC", "I-LOC"],
    "s": [{"start": 0, "end": 3, "label": "Ann"}], "m": [{"role": "user", "content": "hi"}], "sp": "dev",
}  # fmt: skip
COLUMNS = {
    "text": "q", "pair": "c", "labels": "y", "value": "v", "tokens": "w", "tags": "t", "spans": "s", "messages": "m", "split": "sp",
}  # fmt: skip
PARSED = {
    "text": "Who wrote it?", "pair": "Ann wrote it.", "labels": ["a", "b"], "value": 3.0, "tokens": ["New", "York"],
    "tags": ["B-LOC", "I-LOC"], "spans": CELLS["s"], "messages": CELLS["m"], "split": "validation",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "parquet", "orc"])
def test_a_row_is_the_same_example_whatever_table_it_comes_in(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows.{kind}"
    if kind == "csv":
        texts = {name: cell if isinstance(cell, str) else json.dumps(cell) for name, cell in CELLS.items()}
        texts |= {"y": "b|a|b", "w": "New York", "t": "B-LOC I-LOC"}
        quoted = ['"' + text.replace('"', '""') + '"' for text in texts.values()]
        path.write_text(",".join(texts) + "\n" + ",".join(quoted) + "\n")
    elif kind in ("parquet", "orc"):
        (parquet if kind == "parquet" else orc).write_table(pa.Table.from_pylist([CELLS]), path)
    else:
        line = json.dumps(CELLS).encode() + b"\n"
        path.write_bytes(gzip.compress(line) if kind.endswith(".gz") else line)
    source = {"kind": kind.removesuffix(".gz"), "path": str(path), "columns": COLUMNS, "label_separator": "|"}
    (row,) = read("classification", **source)
    assert {name: row[name] for name in PARSED} == PARSED


@pytest.mark.parametrize(
    ("field", "cell", "reason"),
    [
        ("text", {"a": 1}, "bad_field"),
        ("text", "\ud800", "not_utf8"),
        ("value", "much", "bad_field"),
        ("value", float("inf"), "bad_field"),
        ("split", "holdout", "bad_field"),
        ("tokens", [1, 2], "bad_field"),
        ("spans", [{"start": "x", "end": 2}], "bad_field"),
        ("spans", [{"start": 2**40, "end": 2**40 + 1}], "bad_field"),
        ("spans", {"text": ["a"], "answer_start": []}, "bad_field"),
        ("messages", ["hi"], "bad_field"),
        ("text", "x" * 2000, "too_long"),
    ],
)
def test_a_cell_that_its_column_cannot_hold_rejects_its_row_alone(
    tmp_path: Path, field: str, cell: object, reason: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"q": "good"}) + "\n" + json.dumps({"q": "also", field: cell}) + "\n")
    columns = {"text": "q", "labels": "y"} | {field: field}
    spec = LabelSpec(
        task="classification", sources=[{"kind": "jsonl", "path": str(path), "columns": columns}], max_row_bytes=1000
    )
    rows = list(read_unit(0, spec.sources[0], Unit(""), spec))
    assert [row.get("reason") for row in rows] == [None, reason]
    assert field in rows[1]["detail"] or reason != "bad_field"


def test_lines_that_are_no_objects_are_rejects_with_their_place(tmp_path: Path) -> None:
    content = b'{"q": "a", "y": "x"}\n[1]\n{"q": \n\n\xff\xfe\n{"q": "b", "y": 7}'
    columns = {"text": "q", "labels": "y"}
    rows = read_text(tmp_path, "rows.jsonl", content, "classification", kind="jsonl", columns=columns)
    assert [row.get("reason") for row in rows] == [None, "not_an_object", "bad_json", "bad_encoding", None]
    assert [row["origin"] for row in rows][:2] == ["rows.jsonl@0", "rows.jsonl@21"]
    assert rows[-1]["labels"] == ["7"]


@pytest.mark.parametrize("kind", ["csv", "parquet", "orc"])
def test_a_table_without_a_mapped_column_is_one_reject_that_names_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows.{kind}"
    if kind == "csv":
        path.write_text("q,z\na,b\n")
    else:
        (parquet if kind == "parquet" else orc).write_table(pa.table({"q": ["a"], "z": ["b"]}), path)
    (row,) = read("classification", kind=kind, path=str(path), columns={"text": "q", "labels": "y"})
    assert row["reason"] == "no_column"
    assert "'y'" in row["detail"]


@pytest.mark.parametrize("kind", ["parquet", "orc"])
def test_a_damaged_table_is_a_reject(tmp_path: Path, kind: str) -> None:
    (row,) = read_text(
        tmp_path, f"x.{kind}", b"PAR1 no table", "classification", kind=kind, columns={"text": "q", "labels": "y"}
    )
    assert row["reason"] == "unreadable"


CONLL = (
    "-DOCSTART- -X- O O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\nPeter NNP B-NP B-PER\nBlackburn NNP I-NP I-PER\n"
)


def test_conll_sentences_end_at_empty_lines(tmp_path: Path) -> None:
    for content in (CONLL, CONLL.replace("\n", "\r\n"), CONLL.strip(), CONLL.replace(" ", "\t")):
        rows = read_text(tmp_path, "x.conll", content, "tagging", kind="conll")
        assert [(row["tokens"], row["tags"]) for row in rows] == [
            (["EU", "rejects"], ["B-ORG", "O"]),
            (["Peter", "Blackburn"], ["B-PER", "I-PER"]),
        ]
    other = read_text(tmp_path, "x.conll", CONLL, "tagging", kind="conll", tag_column=1)
    assert other[0]["tags"] == ["NNP", "VBZ"]


def test_a_conll_line_without_its_columns_rejects_its_sentence_alone(tmp_path: Path) -> None:
    rows = read_text(
        tmp_path, "x.conll", b"a X O\nb\nc X O\n\nd X O\n\n\xff\xfe X O\n", "tagging", kind="conll", tag_column=2,
        encoding="utf-8",
    )  # fmt: skip
    assert [row.get("reason") for row in rows] == ["bad_conll", None, "bad_conll"]
    assert rows[0]["detail"] == "the line at byte 6 has 1 columns"


@given(
    st.lists(
        st.lists(st.tuples(st.from_regex(r"[a-zé]{1,4}", fullmatch=True), st.sampled_from(["O", "B-x"])), min_size=1)
    )
)
@settings(max_examples=50, deadline=None)
def test_conll_written_and_read_is_the_same(tmp_path_factory: pytest.TempPathFactory, sentences: list[Any]) -> None:
    content = "\n".join("".join(f"{word} {tag}\n" for word, tag in sentence) for sentence in sentences)
    folder = tmp_path_factory.mktemp("conll")
    rows = read_text(folder, "x.conll", content, "tagging", kind="conll", encoding="utf-8")
    assert [list(zip(row["tokens"], row["tags"], strict=True)) for row in rows] == sentences


SQUAD_2 = {"data": [{"paragraphs": [{"context": "Ann wrote it.", "qas": [
    {"id": "1", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}, {"text": "Ann", "answer_start": 0}]},
    {"id": "2", "question": "Why?", "is_impossible": True, "answers": [], "plausible_answers": [{"text": "it", "answer_start": 10}]},
    {"id": "3", "question": "How?", "answers": [{"text": "", "answer_start": 0}]},
    {"id": "4", "answers": []},
]}]}]}  # fmt: skip


def test_questions_without_an_answer_have_no_spans_and_broken_ones_are_rejects(tmp_path: Path) -> None:
    rows = read_text(tmp_path, "x.json", json.dumps(SQUAD_2), "question_answering", kind="squad")
    assert [row.get("reason") for row in rows] == [None, None, "bad_field", "bad_field"]
    assert rows[1]["spans"] == []
    assert rows[0]["origin"] == "x.json#1"


@pytest.mark.parametrize(
    "content", ["", "{}", '{"data": [{"paragraphs": [{"context": 1, "qas": []}]}]}', "[" * 100_000, b"\xff"]
)
def test_a_file_that_is_no_squad_is_one_reject(tmp_path: Path, content: str | bytes) -> None:
    (row,) = read_text(tmp_path, "x.json", content, "question_answering", kind="squad")
    assert row["reason"] in ("bad_squad", "not_utf8")


def test_questions_without_their_translation_are_rejects(tmp_path: Path) -> None:
    other = {"data": [{"paragraphs": [{"context": "Ann schrieb es.", "qas": [{"id": "1", "question": "Wer?"}]}]}]}
    (tmp_path / "de.json").write_text(json.dumps(other))
    rows = read_text(
        tmp_path, "en.json", json.dumps(SQUAD_2), "translation", kind="squad", translations=str(tmp_path / "de.json")
    )
    assert [(row.get("text"), row.get("target")) for row in rows][:2] == [
        ("Who?", "Wer?"), ("Ann wrote it.", "Ann schrieb es."),
    ]  # fmt: skip
    assert reasons(rows) == {None: 2, "no_translation": 3}


@pytest.mark.parametrize(
    ("marked", "reason"),
    [
        ("a <e1>b</e1> c <e2>d</e2>", None),
        ("a <e2>b</e2> c <e1>d</e1>", None),
        ("a <e1>b <e2>c</e2></e1>", None),
        ("a <e1>b</e1> c", "bad_spans"),
        ("a <e1>b</e1> <e1>c</e1> <e2>d</e2>", "bad_spans"),
    ],
)
def test_a_sentence_needs_each_argument_once(tmp_path: Path, marked: str, reason: str | None) -> None:
    (row,) = read_text(tmp_path, "x.txt", f'1\t"{marked}"\nOther\nComment:\n', "relation", kind="semeval-relations")
    assert row.get("reason") == reason
    if reason is None:
        found = {span["label"]: row["text"][span["start"] : span["end"]] for span in row["spans"]}
        assert found == {name: marked.split(f"<{name}>")[1].split(f"</{name}>")[0].replace("<e2>", "").replace("</e2>", "")
                         for name in ("e1", "e2")}  # fmt: skip


def test_turns_that_are_no_text_and_monologues_are_rejects_and_an_open_end_is_cut(tmp_path: Path) -> None:
    content = "conversations:\n- - hi\n  - hello\n  - and?\n- - alone\n- - a\n  - b: c\n- - What year?\n  - 1963\n- - Is it?\n  - yes\n"
    rows = read_text(tmp_path, "x.yml", content, "dialogue", kind="dialogues")
    assert [row.get("reason") for row in rows] == [None, "bad_messages", "bad_messages", None, None]
    assert [message["content"] for message in rows[0]["messages"]] == ["hi", "hello"]
    assert [rows[n]["messages"][1]["content"] for n in (3, 4)] == ["1963", "yes"]
    for broken in ("conversations: 1", "a: [", "- b"):
        (row,) = read_text(tmp_path, "x.yml", broken, "dialogue", kind="dialogues")
        assert row["reason"] == "bad_dialogues"


def test_a_changed_file_changes_the_digest_and_a_missing_one_is_refused(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    source = {"kind": "lines", "path": str(tmp_path), "classes": {"a.txt": "a", "b.txt": "b"}}
    spec = LabelSpec(task="classification", sources=[source])
    before = with_digests(spec).digests
    (tmp_path / "b.txt").write_text("other")
    assert with_digests(spec).digests != before
    (tmp_path / "b.txt").unlink()
    with pytest.raises(RequestError, match=r"no file b\.txt"):
        digest_of(spec.sources[0])
    for kind, path in (("conll", tmp_path / "gone"), ("squad", tmp_path)):
        with pytest.raises(RequestError, match=r"does not exist|holds no"):
            units_of(LabelSource(kind=kind, path=str(path)))


@pytest.mark.parametrize(
    ("task", "source", "wanted"),
    [
        ("classification", {"kind": "jsonl", "path": "x", "columns": {"text": "a"}}, r"columns\.labels empty"),
        ("preference", {"kind": "jsonl", "path": "x", "columns": {"chosen": "a", "rejected": "b"}}, "or messages"),
        ("classification", {"kind": "jsonl"}, "path is empty"),
        ("classification", {"kind": "lines", "path": "x"}, "classes is empty"),
        ("tagging", {"kind": "squad", "path": "x"}, "squad has no tagging, only question_answering, translation"),
        ("translation", {"kind": "squad", "path": "x"}, "translations is empty"),
        ("relation", {"kind": "semeval-relations", "path": "x", "columns": {"text": "a"}}, "has its own form"),
    ],
)
def test_a_spec_that_cannot_work_is_refused_with_what_is_missing(task: Any, source: Any, wanted: str) -> None:
    with pytest.raises(ValidationError, match=wanted):
        LabelSpec(task=task, sources=[source])


@pytest.mark.parametrize("task", REQUIRED)
def test_every_task_can_be_had_from_a_table(task: Any) -> None:
    columns = {field: field for field in ("text", *REQUIRED[task])}
    for kind in MAPPED:
        assert LabelSpec(task=task, sources=[{"kind": kind, "path": "x", "columns": columns}]).task == task
    assert {name for names in GIVES.values() for name in names} <= set(REQUIRED)


def test_examples_of_the_page_are_specs() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    tasks = [LabelSpec.model_validate(yaml.safe_load(example)).task for example in examples]
    assert len(tasks) == len(examples) >= 9
    assert {"classification", "relation", "question_answering", "translation", "dialogue", "multi_label"} <= set(tasks)
