import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from spark_jobs import python_environment
from spark_jobs.errors import DataError, RequestError
from spark_jobs.ingest import list_units
from spark_jobs.manifests import Documents
from spark_jobs.specs import IngestSpec, SourceSpec
from tests.spark_jobs.workspace import Workspace, digest_of, read_rows, write_jsonl


def spec_of(kind: str, path: Path, **fields: object) -> IngestSpec:
    return IngestSpec(sources=(SourceSpec(kind=kind, path=str(path), **fields),))


def test_ingest_turns_lines_into_documents_and_bad_ones_into_rejects(workspace: Workspace, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in/a.jsonl", [{"text": "one"}, b'{"text":"\xff"}', {"text": "two"}, b"null", b"[1]"])
    write_jsonl(tmp_path / "in/deep/b.jsonl", [{"text": "three"}])
    (tmp_path / "in/deep/c.jsonl.gz").write_bytes(b"not gzip")
    (tmp_path / "in/ignored.csv").write_text("a,b\n")
    documents = workspace.run(Documents, "ingest", spec_of("jsonl", tmp_path / "in", name="web", priority=3))
    assert documents.counts == {
        "in": 7, "out": 3, "reject.not_an_object": 2, "reject.not_utf8": 1, "reject.unreadable": 1, "files": 3, "files_new": 3,
    }  # fmt: skip
    rows = {row["text"]: row for row in read_rows(documents.uri, "data")}
    assert set(rows) == {"one", "two", "three"}
    assert rows["two"]["origin"] == "a.jsonl@29"
    assert rows["three"] == rows["three"] | {"source": "web", "origin": "deep/b.jsonl@0", "priority": 3}
    assert [row["doc_id"] for row in read_rows(documents.uri, "data")] == sorted(row["doc_id"] for row in rows.values())
    rejects = read_rows(documents.uri, "rejects")
    assert {(r["origin"], r["reason"]) for r in rejects} == {
        ("a.jsonl@16", "not_utf8"), ("a.jsonl@45", "not_an_object"), ("a.jsonl@50", "not_an_object"), ("deep/c.jsonl.gz", "unreadable"),
    }  # fmt: skip
    assert {(r["step"], r["source"]) for r in rejects} == {("ingest", "web")}


def test_file_with_other_bytes_under_the_same_path_is_another_file(workspace: Workspace, tmp_path: Path) -> None:
    """Neither its path nor its size and time say what a file holds (kubeflow/pipelines#8236)."""
    path = tmp_path / "in/a.jsonl"
    seen = []
    for text in ("one", "two"):
        write_jsonl(path, [{"text": text}])
        os.utime(path, (1, 1))
        documents = workspace.run(Documents, "ingest", spec_of("jsonl", tmp_path / "in"))
        seen.append({row["digest"] for row in read_rows(documents.uri, "seen")})
        assert [row["text"] for row in read_rows(documents.uri, "data")] == [text]
    assert seen[0].isdisjoint(seen[1])


def test_ingest_of_files_that_hold_nothing_is_no_error(workspace: Workspace, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in/a.jsonl", [])
    documents = workspace.run(Documents, "ingest", spec_of("jsonl", tmp_path / "in"))
    assert (documents.num_rows, documents.counts["in"], documents.counts["files_new"]) == (0, 0, 1)


def test_ingest_counts_new_columns_by_file_and_fails_where_the_source_says_so(
    workspace: Workspace, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "in/a.jsonl", [{"text": "one", "id": 1}, {"text": "two", "lang": "en"}] * 3)
    write_jsonl(tmp_path / "in/b.jsonl", [{"text": "three", "lang": "en", "url": "x"}])
    spec = spec_of("jsonl", tmp_path / "in", name="web", columns=("id",))
    documents = workspace.run(Documents, "ingest", spec)
    assert documents.counts == {
        "in": 7, "out": 7, "files": 2, "files_new": 2, "column.new.lang": 2, "column.new.url": 1,
    }  # fmt: skip
    spec = spec_of("jsonl", tmp_path / "in", name="web", columns=("id", "lang"), on_drift="fail")
    with pytest.raises(DataError, match=r"'web', b\.jsonl: new column 'url'"):
        workspace.run(Documents, "ingest", spec)


@pytest.mark.parametrize(
    ("kind", "path", "words"),
    [
        ("jsonl", "missing", "does not exist"),
        ("parquet", "in", "no readable .parquet file"),
        ("jsonl", "", "path is empty"),
    ],
)
def test_ingest_of_a_wrong_path_names_it(tmp_path: Path, kind: str, path: str, words: str) -> None:
    write_jsonl(tmp_path / "in/a.jsonl", [{"text": "one"}])
    source = SourceSpec(kind=kind, path=str(tmp_path / path) if path else "", name="web")
    with pytest.raises(RequestError, match=f"'web'.*{words}"):
        list_units(IngestSpec(sources=(source,)), 0)


def test_ingest_refuses_an_encoding_nobody_knows(tmp_path: Path) -> None:
    source = SourceSpec(kind="text", path=str(tmp_path), encoding="klingon")
    with pytest.raises(RequestError, match="encoding 'klingon' is unknown"):
        list_units(IngestSpec(sources=(source,)), 0)


def test_ingest_takes_the_same_bytes_from_any_layout_of_partitions(
    make_workspace: Callable[[str], Workspace], tmp_path: Path
) -> None:
    for number in range(12):
        write_jsonl(tmp_path / f"in/{number}.jsonl", [{"text": f"{number} {line}"} for line in range(20)] + [b"null"])
    spec = spec_of("jsonl", tmp_path / "in")
    first = make_workspace("one").run(Documents, "ingest", spec)
    copy = tmp_path / "copied"
    shutil.copytree(tmp_path / "in", copy)
    spark = make_workspace("two").spark
    spark.conf.set("spark.sql.shuffle.partitions", "7")
    try:
        second = make_workspace("two").run(Documents, "ingest", spec_of("jsonl", copy))
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", "2")
    assert digest_of(first.uri) == digest_of(second.uri)


def test_python_environment_grows_by_night_and_never_shrinks() -> None:
    nights = [set(python_environment.list_units(share)) for share in (0.3, 0.4, 1.0)]
    assert nights[0] < nights[1] < nights[2]
    assert {name.split("/")[0] for name in nights[0]} == {"distribution", "module", "topic"}
    assert len(nights[0]) / len(nights[2]) == pytest.approx(0.3, abs=0.06)


@pytest.mark.parametrize(
    ("unit", "words"),
    [("distribution/pydantic", "validation"), ("module/json/__init__.py", "JSON"), ("topic/lambda", "anonymous")],
)
def test_python_environment_unit_holds_its_documentation(unit: str, words: str) -> None:
    text = python_environment.read_text(unit)
    assert words in text
    assert not text.startswith("Metadata-Version")
    assert python_environment.read_bytes(unit)
