"""The job `label`: splits, copies, leaks, refusals; on small written sets and on the real ones of ../shared/data."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from spark_jobs import minhash
from spark_jobs.errors import DataError
from spark_jobs.label_spec import LabelJobSpec, LabelSpec
from spark_jobs.labelled import balance_counts
from spark_jobs.labelled_files import with_digests
from spark_jobs.manifests import LabelledSet
from tests.spark_jobs.workspace import Workspace, digest_of, read_rows, write_jsonl

REAL = Path(__file__).parents[3] / "shared/data/labelled"
needs_data = pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/data/labelled")
COLUMNS = {"text": "q", "labels": "y", "split": "s", "group": "g"}

Row = dict[str, Any]


def spec_of(
    path: Path, columns: dict[str, str] | None = None, task: Any = "classification", **fields: Any
) -> LabelSpec:
    source = {"kind": "jsonl", "path": str(path), "columns": columns or COLUMNS}
    return LabelSpec(task=task, sources=[source], **({"validation_share": 0.0} | fields))  # type: ignore[list-item]


def label(workspace: Workspace, spec: LabelSpec, night: str = "n1") -> LabelledSet:
    handle = workspace.run(LabelledSet, "label", with_digests(spec), night)
    assert isinstance(handle, LabelledSet)
    assert handle.num_train + handle.num_validation + handle.num_test == handle.num_rows
    return handle


def sentence(seed: int, words: int = 14) -> str:
    draw = random.Random(seed)
    return " ".join(f"w{draw.randrange(10_000)}" for _ in range(words))


LONG = [sentence(n) for n in range(20)]
NEAR = LONG[0] + " changed"
PLANTED: list[tuple[Row, str | None, str]] = [  # (row, reason, what the reject says)
    ({"q": LONG[0], "y": "a", "s": "test"}, None, ""),
    ({"q": LONG[1], "y": "b", "s": "test"}, None, ""),
    ({"q": LONG[2], "y": "a", "s": "validation"}, None, ""),
    ({"q": NEAR, "y": "a", "s": "train"}, "leak", "copies "),
    ({"q": LONG[1].upper(), "y": "a", "s": "train"}, "leak", "copies "),  # the same to minhash.normalised, another class
    ({"q": LONG[0] + " altered", "y": "b", "s": "validation"}, "leak", "copies "),
    ({"q": LONG[2], "y": "a", "s": "train"}, "leak", "of validation: jsonl rows.jsonl@"),  # the same content
    ({"q": LONG[3], "y": "b", "s": "train"}, None, ""),
    ({"q": LONG[3], "y": "b", "s": "train"}, "exact_duplicate", "of train: jsonl rows.jsonl@"),
    ({"q": LONG[3] + " twice", "y": "b", "s": "train"}, None, ""),  # a near copy inside its split is no leak
    ({"q": "yes", "y": "a", "s": "test"}, None, ""),
    ({"q": "Yes", "y": "b", "s": "train"}, "leak", "copies "),  # too short for shingles: compared as a whole
    ({"q": "yes yes", "y": "b", "s": "train"}, None, ""),
    ({"q": LONG[4], "y": "c", "s": "test"}, "class_not_in_train", "train has no c"),
    ({"q": LONG[5], "y": "a", "s": "test", "g": "book"}, None, ""),
    ({"q": LONG[6], "y": "a", "s": "train", "g": "book"}, "leak_group", "the group of "),
    ({"q": LONG[7], "y": "a", "s": "train"}, None, ""),
    ({"q": LONG[8], "y": "a", "s": "train"}, None, ""),  # conflict with the next, kept and counted
    ({"q": LONG[8], "y": "b", "s": "train"}, None, ""),
    ({"q": LONG[9], "y": "a|b", "s": "dev"}, "class_not_in_train", "a|b"),
    ({"q": "", "y": "a"}, "empty_text", ""),
    ({"y": "a", "s": "never"}, "bad_field", "split"),
]  # fmt: skip


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "in" / "rows.jsonl", [row for row, _, _ in PLANTED])


def by_origin(handle: LabelledSet) -> dict[int, Row]:
    """Number of the row -> its reject."""
    starts, place = {}, 0
    for number, line in enumerate(Path(handle.spec["sources"][0]["path"]).read_bytes().splitlines(keepends=True)):
        starts[place] = number
        place += len(line)
    return {starts[int(row["origin"].split("@")[1])]: row for row in read_rows(handle.uri, "rejects")}


def test_each_row_is_kept_or_refused_for_its_own_reason(workspace: Workspace, planted: Path) -> None:
    handle = label(workspace, spec_of(planted))
    rejects = by_origin(handle)
    assert {number: row["reason"] for number, row in rejects.items()} == {
        number: reason for number, (_, reason, _) in enumerate(PLANTED) if reason
    }
    for number, row in rejects.items():
        assert PLANTED[number][2] in row["detail"]
    kept = {row["id"]: row for row in read_rows(handle.uri, "data")}
    assert list(kept) == sorted(kept)
    for number in (3, 4, 5, 11):  # the text that is named is one that stays, in another split
        other = kept[rejects[number]["detail"].removeprefix("copies ")]
        assert other["split"] == "test"
        assert rejects[number]["value"] >= rejects[number]["threshold"] == 0.7
    assert (handle.task, handle.label_set) == ("classification", ("a", "b"))
    assert (handle.num_train, handle.num_validation, handle.num_test) == (6, 1, 4)
    assert handle.counts["conflict"] == 6  # also those that then leak
    assert handle.counts["leak"] == 6
    assert {name: count for name, count in handle.counts.items() if name.startswith("label.")} == {
        "label.train.a": 2, "label.train.b": 4, "label.validation.a": 1, "label.validation.b": 0,
        "label.test.a": 3, "label.test.b": 1,
    }  # fmt: skip


def test_options_report_leaks_and_drop_conflicts(workspace: Workspace, planted: Path) -> None:
    spec = spec_of(planted, leak={"action": "report"}, conflicts="drop")
    handle = label(workspace, spec)
    reasons = {number: row["reason"] for number, row in by_origin(handle).items()}
    assert {number for number, reason in reasons.items() if reason == "conflict"} == {1, 4, 10, 11, 17, 18}
    assert "leak" not in reasons.values()
    assert handle.counts["leak"] == 4  # near copies, group, same content; rows in conflict are gone before
    assert reasons[6] == "exact_duplicate"  # two rows cannot have one id


def test_bytes_depend_on_the_rows_alone(workspace: Workspace, planted: Path) -> None:
    columns = {"text": "q", "labels": "y"}
    shares = {"test_share": 0.3, "validation_share": 0.3}
    spec = spec_of(planted, columns, **shares)
    first = label(workspace, spec)
    before = digest_of(first.uri)
    workspace.spark.conf.set("spark.sql.shuffle.partitions", "5")
    try:
        assert digest_of(label(workspace, spec, "n2").uri) == before
    finally:
        workspace.spark.conf.set("spark.sql.shuffle.partitions", "2")
    for number, (row, _, _) in enumerate(reversed(PLANTED)):  # other files in another order
        write_jsonl(planted.parent / "many" / f"{number}.jsonl", [row])
    other = digest_of(label(workspace, spec_of(planted.parent / "many", columns, **shares), "n3").uri)
    assert other["data/part-00000.parquet"] == before["data/part-00000.parquet"]


def rows_of(*rows: tuple[Any, ...]) -> list[Row]:
    return [dict(zip(("q", "y", "s"), row, strict=True)) for row in rows]


TWO = rows_of((LONG[0], "a", "train"), (LONG[1], "b", "train"))


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        (rows_of((LONG[0], "a", "train"), (LONG[1], "a", "train")), {}, r"all 2 rows of train have the same classes, \['a'\]"),
        (rows_of((LONG[0], "a", "test"), (LONG[1], "b", "test")), {}, r"no row of train is left of 2 \(rejects: none\)"),
        (rows_of(("", "a", "train"), (" ", "b", "train")), {}, r"no row of train is left of 2 \(rejects: empty_text 2\)"),
        ([*TWO, *rows_of(("", "a", "train"), ("\n", "a", "train"))], {"max_reject_share": 0.4}, "2 of 4 rows are rejected, more than"),
        ([*TWO, *rows_of((LONG[2], "z", "train"))], {"label_set": ("a", "b")}, "1 of 3 rows have a class outside label_set.*'z' 1 times"),
        ([*TWO, *rows_of((LONG[2], "z", "test"))], {"unseen": "refuse"}, r"train has no row of class 'z' \(1 rows of test\)"),
        ([*TWO, *rows_of((NEAR, "a", "test"))], {"leak": {"action": "refuse"}}, "1 rows leak between splits"),
        ([*TWO, *rows_of((LONG[0], "a", "test"))], {"leak": {"action": "refuse"}}, "1 rows leak between splits"),
    ],
)  # fmt: skip
def test_a_set_that_cannot_be_trained_on_is_refused_with_what_is_wrong(
    workspace: Workspace, tmp_path: Path, rows: list[Row], fields: Row, message: str
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=message):
        label(workspace, spec_of(path, {"text": "q", "labels": "y", "split": "s"}, **fields))


@pytest.mark.parametrize(
    ("task", "columns", "rows", "message"),
    [
        ("tagging", {"tokens": "w", "tags": "t"}, [{"w": "a b", "t": "O O"}], "none of the 1 rows of train has an entity"),
        ("regression", {"text": "q", "value": "v"}, [{"q": "a", "v": 1}, {"q": "b", "v": True}], r"value is 1\.0 in all 2 rows"),
    ],
)  # fmt: skip
def test_rows_with_one_answer_teach_nothing(
    workspace: Workspace, tmp_path: Path, task: str, columns: dict[str, str], rows: list[Row], message: str
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=message):
        label(workspace, spec_of(path, columns, task))


def test_a_file_that_changed_since_the_step_was_named_is_refused(workspace: Workspace, planted: Path) -> None:
    spec = LabelJobSpec(**spec_of(planted).model_dump(), digests={"0": "0" * 64})
    with pytest.raises(DataError, match="its files changed while the step waited"):
        workspace.run(LabelledSet, "label", spec)


def test_near_copies_across_splits_are_those_that_comparing_all_pairs_finds(
    workspace: Workspace, tmp_path: Path
) -> None:
    draw = random.Random(7)
    words = [f"w{n}" for n in range(3000)]
    test = [" ".join(draw.choices(words, k=draw.randrange(15, 60))) for _ in range(150)]
    edited = [_edited(text, draw, words) for text in test]
    train = [*edited, *(" ".join(draw.choices(words, k=20)) for _ in range(50))]
    rows = [{"q": text, "y": "ab"[n % 2], "s": "test"} for n, text in enumerate(test)]
    rows += [{"q": text, "y": "ab"[n % 2], "s": "train"} for n, text in enumerate(train)]
    handle = label(
        workspace, spec_of(write_jsonl(tmp_path / "rows.jsonl", rows), {"text": "q", "labels": "y", "split": "s"})
    )
    found = {number - len(test): row["value"] for number, row in by_origin(handle).items() if row["reason"] == "leak"}
    expected = {n: best for n, text in enumerate(train) if (best := max(jaccard(text, other) for other in test)) >= 0.7}
    assert found == pytest.approx(expected)
    assert 30 < len(expected) < 150


def _edited(text: str, draw: random.Random, words: list[str]) -> str:
    changed = text.split()
    for _ in range(draw.randrange(1, 4)):
        changed[draw.randrange(len(changed))] = draw.choice(words)
    return " ".join(changed)


def jaccard(left: str, right: str) -> float:
    shingles, ends = minhash.shingle_sets(pa.array([minhash.normalised(left), minhash.normalised(right)]), 3)
    one, two = set(shingles[: ends[1]].tolist()), set(shingles[ends[1] :].tolist())
    return len(one & two) / len(one | two)


def test_candidates_of_a_query_stay_together_and_the_query_is_their_group(workspace: Workspace, tmp_path: Path) -> None:
    rows = [{"q": f"query {n}", "c": f"item {n} {m}", "v": m == 0} for n in range(40) for m in range(3)]
    columns = {"text": "q", "pair": "c", "value": "v"}
    handle = label(workspace, spec_of(write_jsonl(tmp_path / "r.jsonl", rows), columns, "ranking", test_share=0.3))
    kept = read_rows(handle.uri, "data")
    assert all(row["group"] == row["text"] for row in kept)
    assert {row["value"] for row in kept} == {0.0, 1.0}
    assert len({(row["group"], row["split"]) for row in kept}) == 40
    assert 0 < handle.num_test < 120


def test_classes_whose_names_look_alike_to_a_tracking_server_are_counted_apart() -> None:
    counts = balance_counts({"train": {"好": 3, "坏": 2, "x y": 1}}, ("x y", "坏", "好"))
    assert counts == {"label.train.x_y": 1, "label.train.__1": 2, "label.train.__2": 3}


REAL_SETS: dict[str, dict[str, Any]] = {
    "polarity": {
        "task": "classification",
        "sources": [{"kind": "lines", "path": str(REAL / "sentence_polarity"),
                     "classes": {"rt-polarity.pos": "positive", "rt-polarity.neg": "negative"}}],
    },
    "semeval": {
        "task": "relation",
        "sources": [
            {"kind": "semeval-relations", "path": str(REAL / "semeval2010_task8/SemEval2010_task8_training/TRAIN_FILE.TXT")},
            {"kind": "semeval-relations", "split": "test",
             "path": str(REAL / "semeval2010_task8/SemEval2010_task8_testing_keys/TEST_FILE_FULL.TXT")},
        ],
    },
    "xquad": {"task": "question_answering", "test_share": 0.2, "sources": [{"kind": "squad", "path": str(REAL / "xquad.zh.json")}]},
    "chatterbot": {"task": "dialogue", "test_share": 0.1, "sources": [{"kind": "dialogues", "path": str(REAL / "chatterbot_corpus/english")}]},
    "packages": {"task": "multi_label", "test_share": 0.2, "max_reject_share": 0.9, "sources": [{"kind": "package-topics"}]},
}  # fmt: skip


@needs_data
@pytest.mark.parametrize("name", REAL_SETS)
def test_real_sets_are_read_split_and_checked(workspace: Workspace, name: str) -> None:
    spec = LabelSpec.model_validate(REAL_SETS[name])
    handle = label(workspace, spec)
    kept = read_rows(handle.uri, "data")
    assert min(handle.num_train, handle.num_validation) > 0
    groups = {(row["group"], row["split"]) for row in kept if row["group"]}
    assert len(groups) == len({group for group, _ in groups})
    rejects = {row["reason"] for row in read_rows(handle.uri, "rejects")}
    assert rejects <= {"leak", "leak_group", "exact_duplicate", "bad_messages", "no_label", "class_not_in_train"}
    if name == "polarity":
        assert handle.num_rows == 10_662
    if name == "semeval":
        assert len(handle.label_set) == 19
        assert handle.num_test == 2717  # only train and validation give way
        assert handle.counts["reject.leak"] > 10  # the published set has sentences of its test in train
