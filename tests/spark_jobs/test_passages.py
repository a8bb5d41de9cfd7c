import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_jobs.manifests import Documents
from spark_jobs.passages import WINDOWS, cut, mark_copies, windows
from spark_jobs.specs import DedupSpec
from spark_jobs.words import words_of
from tests.spark_jobs.test_dedup import ingested, kept, rejects, words
from tests.spark_jobs.workspace import Workspace


def hashes_of(text: str, n: int) -> list[int]:
    return windows(pa.array([text], pa.string()), n)[0].tolist()


def cut_all(texts: list[str], n: int, size: int = 1000) -> list[str]:
    """The whole step without Spark, on documents in their order of survival."""
    schema = pa.schema([("hash", pa.int64()), ("priority", pa.int32()), ("doc_id", pa.string()), ("place", pa.int32())])
    assert schema.names == list(WINDOWS)
    rows = [
        {"hash": h - (1 << 64) if h >= 1 << 63 else h, "priority": 1, "doc_id": f"{doc:03d}", "place": place}
        for doc, text in enumerate(texts)
        for place, h in enumerate(hashes_of(text, n))
    ]
    rows.sort(key=lambda row: (row["hash"], row["doc_id"], row["place"]))
    batches = [pa.RecordBatch.from_pylist(rows[at : at + size], schema=schema) for at in range(0, len(rows), size)]
    found = [row for batch in mark_copies(iter(batches)) for row in batch.to_pylist()]
    result = []
    for doc, text in enumerate(texts):
        marks = [
            -1 - row["place"] if row["is_first"] else row["place"] for row in found if row["doc_id"] == f"{doc:03d}"
        ]
        result.append(cut(text, np.array(marks, np.int64), n) if any(mark >= 0 for mark in marks) else text)
    return result


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    ("texts", "n", "left"),
    [
        (["P Q R x", "P Q R y"], 3, ["P Q R x", " y"]),
        (["x a b c d e f y", "z a b c d e f z"], 4, ["x a b c d e f y", "z   z"]),  # overlapping windows are one span
        (["p q r", "s t u", "q r s t"], 4, ["p q r", "s t u", "q r s t"]),  # nothing spans two documents
        (["a b c a b c d"], 3, ["a b c   d"]),
        (["ha " * 10], 3, ["ha ha ha"]),  # windows that overlap their own first copy leave it whole
        (["Привет, мир! а б", "э Привет, мир! а"], 3, ["Привет, мир! а б", "э "]),
        (["今天天气很好", "他说今天天气好"], 4, ["今天天气很好", "他说 好"]),
        (["a b c", "a b c", "a b c"], 3, ["a b c", "", ""]),
        (["A b c", "a b c"], 3, ["A b c", "a b c"]),  # the text as it stands
        (["", "a"], 3, ["", "a"]),
    ],
)  # fmt: skip
def test_first_copies_stay_and_later_ones_are_cut(texts: list[str], n: int, left: list[str], size: int) -> None:
    assert [text.strip() for text in cut_all(texts, n, size)] == [text.strip() for text in left]


@given(st.lists(st.text(st.sampled_from("ab天é ."), max_size=25), max_size=4), st.integers(2, 4))
@settings(deadline=None, max_examples=150)
def test_every_repeated_passage_survives_somewhere_and_texts_stay_valid(texts: list[str], n: int) -> None:
    left = cut_all(texts, n)
    windows_before = [h for text in texts for h in hashes_of(text, n)]
    before = {h for h in windows_before if windows_before.count(h) > 1}
    after = {h for text in left for h in hashes_of(text, n)}
    assert before <= after
    for old, new in zip(texts, left, strict=True):
        assert len(new.encode()) <= len(old.encode())
        assert "\ufffd" not in new
        kept_words = words_of(new)[0].tolist()
        remaining = iter(words_of(old)[0].tolist())
        assert all(word in remaining for word in kept_words)  # in the old order


def test_dedup_cuts_repeated_passages_if_asked(workspace: Workspace) -> None:
    shared = words(1, 60)
    texts = [f"{words(1000 + 500 * n, 1400 + 500 * n)} {shared} end{n}" for n in range(3)] + [shared]
    documents = ingested(workspace, texts)
    spec = DedupSpec(passages=True)
    result = workspace.run(Documents, "dedup", spec, documents=documents)
    left = kept(result)
    assert sum(text.count(shared) for text in left) == 1
    assert " ".join(left).count("w30 ") == 1
    assert result.counts["passages.cut_bytes"] > 0
    assert all(row["reason"] == "repeated_passages" for row in rejects(result).values())
