import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import xxhash
from pyarrow import parquet

from spark_jobs.errors import DataError, RequestError
from spark_jobs.key_index import IndexFile
from spark_jobs.manifests import Corpus, Documents, Handle, NightData, Parent, TokenShards
from spark_jobs.minhash import normalised
from spark_jobs.schemas import DOCUMENTS
from spark_jobs.specs import DedupSpec
from tests.spark_jobs.test_minhash import shingles_of
from tests.spark_jobs.workspace import Workspace, digest_of, files_of, read_rows

SURE = DedupSpec(bands=40, rows=3)  # finds every pair these tests make, so that verification alone decides


def words(first: int, last: int) -> str:
    return " ".join(f"w{number}" for number in range(first, last + 1))


def doc_id(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())


def ingested(workspace: Workspace, texts: list[str], night: str = "n1", source: str = "s") -> Documents:
    """What ingest publishes, written without Spark; the origin is the place in the list."""
    return publish_documents(
        workspace, "ingest", night,
        [
            {"doc_id": doc_id(text), "text": text, "source": source, "origin": f"a@{number}", "priority": 10}
            for number, text in enumerate(texts)
        ],
    )  # fmt: skip


def publish_documents(workspace: Workspace, step: str, night: str, rows: list[dict[str, object]]) -> Documents:
    out = workspace.root / f"documents/{step}-{night}"
    shutil.rmtree(out, ignore_errors=True)
    (out / "data").mkdir(parents=True)
    rows = sorted(rows, key=lambda row: (row["doc_id"], row["priority"], row["source"], row["origin"]))
    kinds = {"string": pa.string(), "int": pa.int32(), "double": pa.float64()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in DOCUMENTS.items()])
    defaults = {"language": "", "language_score": 0.0}
    table = pa.Table.from_pylist([defaults | row for row in rows], schema=schema)
    parquet.write_table(table, out / "data/part-00000.parquet")
    documents = Documents(
        step=step, key=night, night=night, format="parquet", num_rows=len(rows), files=files_of(out), spec={}, code={}, libraries={}
    )  # fmt: skip
    (out / "_manifest.json").write_text(documents.canonical())
    return Documents.load(out)


def unique(
    workspace: Workspace, texts: list[str], spec: DedupSpec = SURE, night: str = "n1", **history: Handle
) -> Documents:
    documents = ingested(workspace, texts, night)
    result: Documents = workspace.run(Documents, "dedup", spec, night, documents=documents, **history)
    return result


def kept(documents: Documents) -> list[str]:
    return sorted(row["text"] for row in read_rows(documents.uri, "data"))


def rejects(documents: Documents) -> dict[str, dict[str, object]]:
    return {row["origin"]: row for row in read_rows(documents.uri, "rejects")}


def history_of(workspace: Workspace, *nights: Documents) -> Corpus:
    """A corpus snapshot of these outputs (only what ingest and dedup read of it is real)."""
    data = []
    for documents in nights:
        unique_at = Parent(role="unique", address=documents.address, digest=documents.digest)
        ingested = Parent(role="ingested", address=f"{Documents.kind}/ingest-{documents.night}", digest="")
        tokens = Parent(role="tokens", address=f"{TokenShards.kind}/tokenize-{documents.night}", digest="")
        data.append(
            NightData(
                night=documents.night,
                ingested=ingested,
                unique=unique_at,
                tokens=tokens,
                num_sequences=0,
                num_tokens=0,
                num_heldout=0,
            )
        )
    corpus = Corpus(
        step="corpus", key=nights[-1].night, night=nights[-1].night, format="addresses", num_rows=0, files=(), spec={}, code={},
        libraries={}, nights=tuple(data), tokenizer=Parent(role="tokenizer", address="", digest=""), seq_len=8, vocab_size=300,
    )  # fmt: skip
    out = workspace.root / corpus.address
    out.mkdir(parents=True, exist_ok=True)
    (out / "_manifest.json").write_text(corpus.canonical())
    return Corpus.load(out)


def test_dedup_of_a_mixed_batch_keeps_one_of_each(workspace: Workspace) -> None:
    long = words(1, 100)
    chinese = ["今天天气很好，我们去公园散步", "明天可能下雨，记得带上雨伞"]
    texts = [
        "cat",
        "dog",
        "cat",
        "a b",
        "",
        long,
        long.upper(),
        words(500, 600),
        "हिन्दी विकिपीडिया",
        "हन्द वकपडय",
        *chinese,
    ]
    documents = unique(workspace, texts)
    assert len(kept(documents)) == len(texts) - 2
    assert {"cat", "dog", "a b", "", words(500, 600), *chinese} < set(kept(documents))
    assert documents.counts["reject.exact_duplicate"] == 2
    assert all(row["detail"].startswith("kept ") for row in rejects(documents).values())


def test_dedup_does_not_chain_likeness(workspace: Workspace) -> None:
    chain = [words(1, 100), words(13, 112), words(25, 124)]  # neighbours share .778 of their shingles, the ends .60
    documents = unique(workspace, chain)
    ids = {doc_id(text): text for text in chain}
    assert documents.counts.get("reject.near_duplicate", 0) >= 1
    for row in read_rows(documents.uri, "rejects"):
        keeper = row["detail"].removeprefix("kept ")
        assert ids[keeper] in kept(documents)
        left, right = shingles_of(ids[row["doc_id"]]), shingles_of(ids[keeper])
        assert row["value"] == pytest.approx(len(left & right) / len(left | right))
        assert row["value"] >= row["threshold"] == SURE.min_jaccard


def test_dedup_removals_all_resemble_a_kept_document_and_no_kept_pair_is_alike(workspace: Workspace) -> None:
    texts = [words(shift, shift + 60) for shift in range(0, 120, 3)] + [words(1000, 1080)] * 3
    documents = unique(workspace, texts)
    ids = {doc_id(text): text for text in texts}
    stay = kept(documents)
    for row in read_rows(documents.uri, "rejects"):
        keeper = ids[row["detail"].removeprefix("kept ")]
        assert keeper in stay
        left, right = shingles_of(ids[row["doc_id"]]), shingles_of(keeper)
        assert normalised(ids[row["doc_id"]]) == normalised(keeper) or len(left & right) / len(left | right) >= 0.7
    for number, one in enumerate(stay):
        for other in stay[number + 1 :]:
            left, right = shingles_of(one), shingles_of(other)
            assert len(left & right) / len(left | right) < 0.7


def test_dedup_keeps_the_lower_priority(workspace: Workspace) -> None:
    rows = [
        {
            "doc_id": doc_id("the very same"),
            "text": "the very same",
            "source": name,
            "origin": "a",
            "priority": priority,
        }
        for name, priority in (("poor", 9), ("good", 1))
    ]
    documents = publish_documents(workspace, "ingest", "n1", rows)
    result = workspace.run(Documents, "dedup", SURE, documents=documents)
    assert [row["source"] for row in read_rows(result.uri, "data")] == ["good"]


def test_dedup_over_three_nights_removes_every_copy_and_names_its_night(workspace: Workspace) -> None:
    old, later = words(1, 100), words(300, 400)
    nights = [unique(workspace, [old, "short", ""])]
    history = history_of(workspace, *nights)
    near, fresh = words(2, 101), words(700, 800)
    nights.append(unique(workspace, [old, old.upper(), near, "SHORT", fresh, later], night="n2", history=history))
    second = nights[-1]
    assert kept(second) == sorted([fresh, later])
    assert second.counts["reject.exact_duplicate_of_history"] == 3
    assert second.counts["reject.near_duplicate_of_history"] == 1
    assert second.counts["index.bytes_read"] > 0
    details = {row["detail"] for row in read_rows(second.uri, "rejects")}
    assert details == {f"kept {doc_id(old)} of night n1", f"kept {doc_id('short')} of night n1"}
    clusters = {(row["doc_id"], row["night"]): row for row in read_rows(second.uri, "clusters")}
    assert clusters[doc_id(old), "n1"] | {"least_jaccard": 0} == {
        "doc_id": doc_id(old), "night": "n1", "num_exact": 2, "num_near": 1, "least_jaccard": 0,
    }  # fmt: skip

    before = digest_of(second.uri)
    again = workspace.run(
        Documents,
        "dedup",
        SURE,
        "n2",
        documents=Documents.load(workspace.root / "documents/ingest-n2"),
        history=history,
    )
    assert digest_of(again.uri) == before

    runs = IndexFile.load(Path(second.uri) / "index").runs
    assert [(run.first, run.last, run.folder) for run in runs] == [(0, 1, "")]  # took in the smaller run before it
    third = unique(
        workspace, ["x y z", words(3, 102), words(301, 401)], night="n3", history=history_of(workspace, *nights)
    )
    assert kept(third) == ["x y z"]
    assert {row["detail"] for row in read_rows(third.uri, "rejects")} == {
        f"kept {doc_id(old)} of night n1", f"kept {doc_id(later)} of night n2",
    }  # fmt: skip
    runs = IndexFile.load(Path(third.uri) / "index").runs
    assert [(run.first, run.last, run.folder) for run in runs] == [(0, 1, f"{second.address}/index/run"), (2, 2, "")]


def test_dedup_of_an_empty_night_leaves_an_index_that_later_nights_can_use(workspace: Workspace) -> None:
    nights = [unique(workspace, ["cat", words(1, 60)])]
    nights.append(unique(workspace, [], night="n2", history=history_of(workspace, *nights)))
    assert nights[-1].counts["in"] == 0
    third = unique(workspace, ["cat", "dog"], night="n3", history=history_of(workspace, *nights))
    assert kept(third) == ["dog"]


def test_dedup_refuses_an_index_made_with_another_seed(workspace: Workspace) -> None:
    first = unique(workspace, ["one", "two"])
    other = SURE.model_copy(update={"seed": 2})
    with pytest.raises(RequestError, match=r"dedup\.seed=2: the index of night n1 was made with 1"):
        unique(workspace, ["three"], other, night="n2", history=history_of(workspace, first))


def test_dedup_gives_the_same_bytes_for_one_and_seven_partitions(
    make_workspace: Callable[[str], Workspace],
) -> None:
    texts = [words(shift, shift + 60) for shift in range(0, 90, 3)] + ["cat", "cat", "dog"]
    first = unique(make_workspace("one"), texts)
    workspace = make_workspace("seven")
    workspace.spark.conf.set("spark.sql.shuffle.partitions", "7")
    workspace.spark.conf.set("spark.sql.adaptive.enabled", "false")
    try:
        second = unique(workspace, list(reversed(texts)))
    finally:
        workspace.spark.conf.set("spark.sql.shuffle.partitions", "2")
        workspace.spark.conf.set("spark.sql.adaptive.enabled", "true")
    assert kept(first) == kept(second)
    for part in (
        "index/run/00000.keys",
        "index/run/00000.places",
        "index/documents-00000.bin",
        "clusters/part-00000.parquet",
    ):
        assert digest_of(first.uri)[part] == digest_of(second.uri)[part]


def test_dedup_stops_when_a_source_is_nearly_wiped_out(workspace: Workspace) -> None:
    template = [f"{words(1, 200)} n{number}" for number in range(25)]
    with pytest.raises(DataError, match="24 of 25 documents of source 's' are near copies"):
        unique(workspace, template)
