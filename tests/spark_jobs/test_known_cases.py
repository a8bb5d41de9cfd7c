"""Faults that others have met and that no test beside a module covers; docs/cases.md lists all of them by number."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import orc, parquet

from spark_jobs import ingest
from spark_jobs.expectations import rows_lost
from spark_jobs.history import texts_at
from spark_jobs.manifests import Documents, TokenShards
from spark_jobs.readers import Unit, read_unit
from spark_jobs.specs import CleanSpec, DedupSpec, IngestSpec, SourceSpec
from tests.spark_jobs.test_read_pages import record, response
from tests.spark_jobs.workspace import Workspace, digest_of, read_rows, write_jsonl

PROSE = "The cat sat on the mat and looked out of the window, because it had to be fed with something that it liked."


def jsonl(*folders: Path, **fields: object) -> IngestSpec:
    return IngestSpec(
        sources=tuple(SourceSpec(kind="jsonl", path=str(folder), name=folder.name, **fields) for folder in folders)
    )


def test_empty_file_among_others_changes_no_byte(make_workspace: Callable[[str], Workspace], tmp_path: Path) -> None:
    """A8: files of 3, 0 and 2 documents."""
    for name, count in (("a", 3), ("c", 2)):
        write_jsonl(tmp_path / f"in/{name}.jsonl", [{"text": f"{name} {n}"} for n in range(count)])
    without = make_workspace("without").run(Documents, "ingest", jsonl(tmp_path / "in"))
    write_jsonl(tmp_path / "in/b.jsonl", [])
    with_it = make_workspace("with").run(Documents, "ingest", jsonl(tmp_path / "in"))
    assert with_it.num_rows == 5
    for part in ("data/part-00000.parquet", "rejects/part-00000.parquet"):
        assert digest_of(with_it.uri)[part] == digest_of(without.uri)[part]


def test_three_files_of_one_document_are_three_documents(workspace: Workspace, tmp_path: Path) -> None:
    """B12. The files have one name in three folders: C13."""
    for number in range(3):
        write_jsonl(tmp_path / f"in/{number}/a.jsonl", [{"text": f"text {number}"}])
    documents = workspace.run(Documents, "ingest", jsonl(tmp_path / "in"))
    assert (documents.num_rows, documents.counts["in"], documents.counts["files"]) == (3, 3, 3)
    assert {row["origin"] for row in read_rows(documents.uri, "data")} == {f"{n}/a.jsonl@0" for n in range(3)}


def test_one_id_in_two_sources_is_two_documents(workspace: Workspace, tmp_path: Path) -> None:
    """C12: what identifies a document is its text, whatever its source calls it."""
    for name in ("one", "two"):
        write_jsonl(tmp_path / f"{name}/a.jsonl", [{"id": "1", "text": f"of {name}"}, {"id": "2", "text": "of both"}])
    documents = workspace.run(Documents, "ingest", jsonl(tmp_path / "one", tmp_path / "two", columns=("id",)))
    rows = read_rows(documents.uri, "data")
    assert len(rows) == 4
    assert len({row["doc_id"] for row in rows}) == 3
    assert {row["source"] for row in rows if row["text"] == "of both"} == {"one", "two"}
    unique = workspace.run(Documents, "dedup", DedupSpec(), documents=documents)
    assert sorted(row["text"] for row in read_rows(unique.uri, "data")) == ["of both", "of one", "of two"]


def test_equal_documents_are_found_whatever_the_least_length(workspace: Workspace, tmp_path: Path) -> None:
    """B17: a lower bound on words must not lead around the search for copies."""
    write_jsonl(tmp_path / "in/a.jsonl", [{"text": PROSE}, {"text": PROSE}])
    raw = workspace.run(Documents, "ingest", jsonl(tmp_path / "in"))
    cleaned = workspace.run(Documents, "clean", CleanSpec(min_words=1), documents=raw)
    unique = workspace.run(Documents, "dedup", DedupSpec(), documents=cleaned)
    assert (cleaned.num_rows, unique.num_rows, unique.counts["reject.exact_duplicate"]) == (2, 1, 1)


def test_batches_are_cut_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C11: a column holds at most 2 GB of text; the limit is 10 bytes here."""
    monkeypatch.setattr(ingest, "BATCH_BYTES", 10)
    file = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in ("x" * 9, "y" * 9, "z" * 30, "w")])
    batches = list(ingest._read_piece(jsonl(file), 0, **Unit("")._asdict()))
    assert [batch.column("text").to_pylist() for batch in batches] == [["x" * 9, "y" * 9], ["z" * 30], ["w"]]


def test_page_that_never_ends_is_a_reject_and_the_next_page_is_read(tmp_path: Path) -> None:
    """B19: 5 MB of nested elements in an archive and in a file of its own."""
    page = "<div>" * 1_000_000 + "deep"
    (tmp_path / "a.warc").write_bytes(response(page) + response("<p>next"))
    source = SourceSpec(kind="warc", path=str(tmp_path / "a.warc"), html_timeout_s=1.0)
    found = list(read_unit(source, Unit(""), 2_000_000))
    assert [one.reason or one.text for one in found] == ["html_timeout", "next"]
    assert (found[0].threshold, found[0].detail) == (1.0, "no text after 1 s")


@pytest.mark.parametrize("counts", [{}, {"in": 1}, {"out": 1}, {"documents": 3, "trained": 2}])
def test_count_that_is_missing_is_a_row_lost(counts: dict[str, int]) -> None:
    """B16: nothing stands in for it."""
    fields = {"step": "s", "key": "k", "night": "n", "format": "parquet", "num_rows": 1, "files": (), "spec": {},
              "code": {}, "libraries": {}}  # fmt: skip
    handles = [Documents.model_construct(**fields, counts=counts), TokenShards.model_construct(**fields, counts=counts)]
    assert [rows_lost(handle, 0) for handle in handles] == [-1, -1]
    whole = {"in": 5, "out": 3, "documents": 3, "trained": 2, "heldout": 1}
    assert rows_lost(Documents.model_construct(**fields, counts=whole), 2) == 0
    assert rows_lost(TokenShards.model_construct(**fields, counts=whole), 0) == 0


COLD = """
import json, sys
import numpy as np, pyarrow as pa
from spark_jobs.language import identify
from spark_jobs.minhash import band_keys
texts = pa.array(json.load(sys.stdin), pa.string())
print(json.dumps([identify(texts)[0], band_keys(np.arange(9, dtype=np.uint64), np.array([0, 9]), 2, 2, 1).tolist()]))
"""


def test_processes_that_start_cold_at_once_load_all_of_what_they_share(tmp_path: Path) -> None:
    """B13: the language model, and machine code that is compiled into an empty folder by both."""
    command = ["env", f"NUMBA_CACHE_DIR={tmp_path}", sys.executable, "-c", COLD]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    texts = json.dumps([PROSE, "Die Katze saß auf der Matte und sah aus dem Fenster.", "今天天气很好。"])
    ends = [process.communicate(texts, timeout=120) for process in started]
    first, second = (json.loads(out) for out, _ in ends)
    assert first == second
    assert first[0] == ["en", "de", "zh"]


@pytest.mark.parametrize("suffix", ["parquet", "orc"])
def test_texts_at_any_rows_are_those_of_the_file(tmp_path: Path, suffix: str) -> None:
    texts = [f"{n} {pow(7919, n, 10**60)}" for n in range(1, 3001)]
    file = tmp_path / f"a.{suffix}"
    table = pa.table({"doc_id": [f"{n:032x}" for n in range(3000)], "text": texts})
    if suffix == "orc":
        orc.write_table(table, file, stripe_size=16 << 10, batch_size=64)
        assert orc.ORCFile(file).nstripes > 3
    else:
        parquet.write_table(table, file, row_group_size=97)
    rows = np.random.default_rng(1).integers(0, 3000, 200).tolist()
    for asked in (rows, [2999, 0, 0], [1500], []):
        assert texts_at(file, asked) == [texts[row] for row in asked]


def test_record_of_a_damaged_archive_costs_only_itself_and_the_next_file_is_read(
    workspace: Workspace, tmp_path: Path
) -> None:
    """C5: a length that is too big."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.warc").write_bytes(record("aaa") + record("bbb", length=50_000) + record("ccc"))
    (tmp_path / "in/b.warc").write_bytes(record("ddd"))
    source = SourceSpec(kind="warc", path=str(tmp_path / "in"))
    documents = workspace.run(Documents, "ingest", IngestSpec(sources=(source,)))
    assert {row["text"] for row in read_rows(documents.uri, "data")} == {"aaa", "ccc", "ddd"}
    assert documents.counts["reject.bad_record"] == 1


def test_every_test_that_the_list_of_cases_names_exists() -> None:
    root = Path(__file__).parents[2]
    named = re.findall(r"`((?:tests/)?[\w/]+\.py)(?:::(\w+))?`", (root / "docs/cases.md").read_text())
    assert len(named) > 60
    for file, test in named:
        path = root / file if file.startswith("tests/") else root / "tests/spark_jobs" / file
        assert path.is_file(), file
        assert not test or re.search(rf"^def {test}\(", path.read_text(), re.MULTILINE), f"{file}::{test}"
