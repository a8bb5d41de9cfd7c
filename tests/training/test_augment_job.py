"""The augment job on published labelled sets: rows, counts, order, what is refused; and on real sentences."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_jobs.errors import DataError, RequestError
from spark_jobs.manifests import LabelledSet
from spark_jobs.requests import Request
from training.augment import sorted_rows
from training.augment.job import run
from training.augment.made import INPUTS, content_id
from training.augment.sorted_rows import SortedRuns

POLARITY = Path(__file__).parents[3] / "shared/data/labelled/sentence_polarity"
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "split", "source", "text", "pair")),
        ("labels", pa.list_(pa.string())),
        ("value", pa.float64()),
        ("tokens", pa.list_(pa.string())),
        ("tags", pa.list_(pa.string())),
        ("spans", pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32()), ("label", pa.string())]))),
        ("target", pa.string()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        *((name, pa.string()) for name in ("chosen", "rejected", "group", "made_by", "made_from")),
    ]
)
EMPTY = dict.fromkeys(SCHEMA.names)
VERBS = ["grinds", "sleeps", "sings", "turns", "waits", "creaks"]
NOISE = {"kind": "character_noise", "strength": 0.2}
CHEAP = [NOISE | {"copies": 2}, {"kind": "word_noise", "share": 0.5}, {"kind": "mixing", "how": "crossover"}]


def example(task: str, number: int) -> dict[str, Any]:
    """The columns of one example of the task."""
    text = f"The mill number {number} {VERBS[number % 6]} beside the river in the valley."
    spans = [{"start": 4, "end": 8, "label": "mill"}]
    columns: dict[str, dict[str, Any]] = {
        "classification": {"text": text, "labels": [["good", "bad"][number % 2]]},
        "tagging": {"tokens": text[:-1].split(), "tags": ["O", "B-THING", "I-THING", "I-THING", *["O"] * 7]},
        "relation": {
            "text": text,
            "labels": ["In(e1,e2)"],
            "spans": [
                {"start": 4, "end": 8, "label": "e1"},
                {"start": len(text) - 7, "end": len(text) - 1, "label": "e2"},
            ],
        },
        "question_answering": {"text": f"What number {number} is beside it?", "pair": text, "spans": spans},
        "translation": {"text": text, "target": f"Mühle {number}"},
        "summarization": {"text": text * 3, "target": f"Mill {number}"},
        "dialogue": {
            "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": f"Yes, {number}."}]
        },
        "similarity": {"text": text, "pair": f"A mill, {number}, runs.", "value": number / 100},
        "regression": {"text": text, "value": float(number)},
        "preference": {"text": text, "chosen": f"yes {number}", "rejected": "no"},
        "ranking": {
            "text": f"which mills are there of {number // 4}",
            "pair": text,
            "value": 1.0,
            "group": f"q{number // 4}",
        },
    }
    return columns["classification" if task == "multi_label" else task]


def write_set(
    make: SimpleNamespace, folder: Path, task: str, rows: list[dict[str, Any]], num_files: int = 1, group: int = 64
) -> LabelledSet:
    """Publish rows, sorted by id, as the job `label` would."""
    (folder / "data").mkdir(parents=True)
    rows = sorted(rows, key=lambda r: r["id"])
    size = -(-len(rows) // num_files)
    for number in range(num_files):
        table = pa.Table.from_pylist(rows[number * size : (number + 1) * size], SCHEMA)
        pq.write_table(table, folder / f"data/part-{number:05d}.parquet", row_group_size=group)
    splits = [r["split"] for r in rows]
    return make.publish(
        LabelledSet, folder, "2026-01-01", len(rows), task=task,
        label_set=tuple(sorted({label for r in rows for label in r["labels"] or ()})),
        num_train=splits.count("train"), num_validation=splits.count("validation"), num_test=splits.count("test"),
    )  # fmt: skip


def rows_of(task: str, count: int = 120) -> list[dict[str, Any]]:
    rows = []
    for number in range(count):
        row = EMPTY | {"source": "t", "made_by": "", "made_from": ""} | example(task, number)
        split = "test" if number % 10 == 0 else "validation" if number % 10 == 1 else "train"
        rows.append(row | {"id": hashlib.md5(f"{number}".encode()).hexdigest(), "split": split})
    return rows


def augment(labelled: LabelledSet, out: Path, methods: list[dict[str, Any]], seed: int = 0) -> Any:
    spec = {"seed": seed, "methods": methods}
    return run(Request(job="augment", spec=spec, inputs={"labelled": labelled.uri}, out=str(out), night="2026-01-01"))


def table_of(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "data").to_pylist()


def test_augment_originals_are_as_they_were_and_new_rows_are_for_training_only(
    make: SimpleNamespace, tmp_path: Path
) -> None:
    originals = rows_of("classification")
    labelled = write_set(make, tmp_path / "labelled/label-0", "classification", originals)
    outcome = augment(labelled, tmp_path / "labelled/augment-0", CHEAP)
    rows = table_of(tmp_path / "labelled/augment-0")
    assert [r["id"] for r in rows] == sorted({r["id"] for r in rows})
    assert [r for r in rows if not r["made_by"]] == sorted(originals, key=lambda r: r["id"])
    by_id = {r["id"]: r for r in originals}
    made = [r for r in rows if r["made_by"]]
    assert all(r["split"] == "train" == by_id[r["made_from"]]["split"] for r in made)
    assert all(r["labels"] == by_id[r["made_from"]]["labels"] and r["id"] == content_id(r) for r in made)
    handle = make.publish_outcome(
        LabelledSet, tmp_path / "labelled/augment-0", "2026-01-01", outcome, counts=outcome.counts
    )
    assert handle.num_rows == len(rows) == handle.counts["out"] == handle.counts["original"] + len(made)
    assert (handle.num_train, handle.num_validation, handle.num_test) == (96 + len(made), 12, 12)
    assert (handle.task, handle.label_set) == ("classification", ("bad", "good"))
    assert not (tmp_path / "labelled/augment-0/scratch").exists()


def test_augment_counts_tell_of_each_copy_what_became_of_it(make: SimpleNamespace, tmp_path: Path) -> None:
    labelled = write_set(make, tmp_path / "labelled/label-0", "classification", rows_of("classification"))
    counts = augment(labelled, tmp_path / "out", CHEAP).counts
    rows = table_of(tmp_path / "out")
    for kind, asked in (("character_noise", 192), ("mixing", 96)):
        assert counts[f"made.{kind}"] == sum(r["made_by"] == kind for r in rows)
        unused = sum(n for name, n in counts.items() if name.startswith(f"unused.{kind}."))
        assert counts[f"made.{kind}"] + unused == asked
    assert 20 < counts["made.word_noise"] < 70


@pytest.mark.parametrize("num_files", [1, 3])
def test_augment_other_files_and_row_groups_give_the_same_bytes(
    make: SimpleNamespace, tmp_path: Path, num_files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of("classification")
    first = write_set(make, tmp_path / "labelled/label-0", "classification", rows)
    augment(first, tmp_path / "one", CHEAP)
    for name, value in (("RUN_ROWS", 7), ("MERGE_FILES", 3), ("READ_ROWS", 2)):  # many runs, merged in several rounds
        monkeypatch.setattr(sorted_rows, name, value)
    other = write_set(make, tmp_path / "labelled/label-1", "classification", rows, num_files, group=11)
    augment(other, tmp_path / "two", CHEAP)
    assert table_of(tmp_path / "one") == table_of(tmp_path / "two")
    if num_files == 1:
        paths = [tmp_path / name / "data/part-00000.parquet" for name in ("one", "two")]
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_augment_same_seed_same_rows_other_seed_others(make: SimpleNamespace, tmp_path: Path) -> None:
    labelled = write_set(make, tmp_path / "labelled/label-0", "classification", rows_of("classification"))
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        augment(labelled, tmp_path / name, [NOISE], seed)
    made = {name: {r["id"] for r in table_of(tmp_path / name) if r["made_by"]} for name in "abc"}
    assert made["a"] == made["b"]
    assert len(made["a"] & made["c"]) < 10


def test_augment_a_method_does_not_change_what_another_makes(make: SimpleNamespace, tmp_path: Path) -> None:
    labelled = write_set(make, tmp_path / "labelled/label-0", "classification", rows_of("classification"))
    augment(labelled, tmp_path / "alone", [NOISE])
    augment(labelled, tmp_path / "both", [{"kind": "mixing"}, NOISE])
    alone, both = (
        [r for r in table_of(tmp_path / name) if r["made_by"] == "character_noise"] for name in ("alone", "both")
    )
    assert alone == both


@pytest.mark.parametrize(
    "task",
    [
        "classification", "multi_label", "tagging", "relation", "question_answering", "translation", "summarization",
        "dialogue", "similarity", "regression", "preference", "ranking",
    ],
)  # fmt: skip
def test_augment_character_noise_keeps_what_is_to_be_learned_of_each_task(
    make: SimpleNamespace, tmp_path: Path, task: str
) -> None:
    originals = {r["id"]: r for r in rows_of(task, 60)}
    labelled = write_set(make, tmp_path / "labelled/label-0", task, list(originals.values()))
    augment(labelled, tmp_path / "out", [NOISE])
    made = [r for r in table_of(tmp_path / "out") if r["made_by"]]
    assert len(made) > 40
    for row in made:
        before = originals[row["made_from"]]
        for name in ("labels", "value", "target", "chosen", "rejected", "source"):
            assert row[name] == before[name]
        column = {"relation": "text", "question_answering": "pair"}.get(task)
        if column:
            marked = [[r[column][s["start"] : s["end"]] for s in r["spans"]] for r in (row, before)]
            assert marked[0] == marked[1]
        if task == "tagging":
            assert row["tokens"][1:4] == before["tokens"][1:4]
            assert row["tags"] == before["tags"]


def test_augment_row_that_asks_what_a_test_row_asks_is_not_used(make: SimpleNamespace, tmp_path: Path) -> None:
    """One training row and, for the test, everything that leaving out one of its words can make of it."""
    row = EMPTY | {"source": "t", "made_by": "", "made_from": "", "labels": ["a"]}
    texts = {"one two three": "train", "two three": "test", "one three": "test", "one two": "validation"}
    rows = [row | {"id": hashlib.md5(t.encode()).hexdigest(), "text": t, "split": s} for t, s in texts.items()]
    labelled = write_set(make, tmp_path / "labelled/label-0", "classification", rows)
    outcome = augment(labelled, tmp_path / "out", [{"kind": "word_noise", "delete": 0.4, "swap": 0, "copies": 64}])
    made = [r for r in table_of(tmp_path / "out") if r["made_by"]]
    assert {r["text"] for r in made} <= {"one", "two", "three"}
    assert outcome.counts["unused.word_noise.equals_original"] > 10
    assert outcome.counts["unused.word_noise.duplicate"] > 1


@pytest.mark.parametrize(
    ("task", "methods", "message"),
    [
        (
            "question_answering",
            [NOISE, {"kind": "mixing"}],
            "method mixing cannot keep the labels of task question_answering",
        ),
        ("dialogue", [{"kind": "synonyms"}], "method synonyms cannot keep the labels of task dialogue"),
        ("classification", [NOISE | {"only_labels": ["sad"]}], r"only_labels \['sad'\] are not labels"),
        ("classification", [{"kind": "synonyms", "wordnet": "/nowhere"}], "/nowhere: no WordNet folder"),
        ("classification", [{"kind": "back_translation", "forward": "/no", "backward": "/no"}], "forward model '/no'"),
    ],
)
def test_augment_request_that_cannot_be_met_is_refused(
    make: SimpleNamespace, tmp_path: Path, task: str, methods: list[dict[str, Any]], message: str
) -> None:
    labelled = write_set(make, tmp_path / "labelled/label-0", task, rows_of(task, 20))
    with pytest.raises(RequestError, match=message):
        augment(labelled, tmp_path / "out", methods)


def test_augment_set_that_was_augmented_is_refused(make: SimpleNamespace, tmp_path: Path) -> None:
    labelled = write_set(make, tmp_path / "labelled/label-0", "classification", rows_of("classification"))
    outcome = augment(labelled, tmp_path / "labelled/augment-0", [NOISE])
    again = make.publish_outcome(LabelledSet, tmp_path / "labelled/augment-0", "2026-01-01", outcome)
    with pytest.raises(DataError, match=r"was made by character_noise: this set has been augmented"):
        augment(again, tmp_path / "out", [NOISE])


def test_augment_set_out_of_order_is_refused(make: SimpleNamespace, tmp_path: Path) -> None:
    rows = rows_of("classification", 20)
    labelled = write_set(make, tmp_path / "labelled/label-0", "classification", [rows[0]] * 2)
    with pytest.raises(DataError, match="a labelled set is sorted by id"):
        augment(labelled, tmp_path / "out", [NOISE])


def test_augment_nothing_made_is_an_error_that_says_why(make: SimpleNamespace, tmp_path: Path) -> None:
    rows = [r | {"labels": [str(i)]} for i, r in enumerate(rows_of("classification", 20))]
    labelled = write_set(make, tmp_path / "labelled/label-0", "classification", rows)
    with pytest.raises(DataError, match=r"no row was made of 16 training rows \({'unused.mixing.no_partner': 16}\)"):
        augment(labelled, tmp_path / "out", [{"kind": "mixing"}])


def test_sorted_runs_of_no_rows_are_empty(tmp_path: Path) -> None:
    assert list(SortedRuns(tmp_path, SCHEMA).in_order()) == []


def test_augment_as_a_job_of_the_engine(make: SimpleNamespace, tmp_path: Path, engine: Any) -> None:
    labelled = write_set(make, tmp_path / "labelled/label-0", "classification", rows_of("classification", 40))
    made = engine.run(
        LabelledSet, "augment", {"methods": [NOISE]}, tmp_path / "labelled/augment-0", labelled=labelled.uri
    )
    assert made.num_train > labelled.num_train
    assert (Path(made.uri) / "used/sources.json").read_text() == "{}\n"


@pytest.mark.skipif(not POLARITY.is_dir(), reason="no ../shared/data/labelled/sentence_polarity")
def test_augment_real_sentences_no_copy_of_any_row_and_classes_in_balance(
    make: SimpleNamespace, tmp_path: Path
) -> None:
    rows: dict[str, dict[str, Any]] = {}
    for label in ("neg", "pos"):
        for line in (POLARITY / f"rt-polarity.{label}").read_text("latin-1").splitlines()[:1500]:
            number = hashlib.md5(line.encode()).hexdigest()
            split = "test" if number < "2" else "train"
            rows[number] = EMPTY | {
                "id": number, "split": split, "source": "rt", "text": line.strip(), "labels": [label], "made_by": "", "made_from": "",
            }  # fmt: skip
    labelled = write_set(make, tmp_path / "labelled/label-0", "classification", list(rows.values()), group=500)
    outcome = augment(labelled, tmp_path / "out", CHEAP)
    made = [r for r in table_of(tmp_path / "out") if r["made_by"]]
    assert outcome.counts["made.mixing"] > 0.95 * labelled.num_train
    assert outcome.counts["made.character_noise"] > 1.9 * labelled.num_train
    asked = {tuple(str(r[name]) for name in INPUTS) for r in rows.values()}
    assert not asked & {tuple(str(r[name]) for name in INPUTS) for r in made}
    assert all(r["labels"] == rows[r["made_from"]]["labels"] for r in made)
    share = sum(r["labels"] == ["pos"] for r in made) / len(made)
    assert abs(share - 0.5) < 0.03
