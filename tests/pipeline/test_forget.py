"""Two nights on real engines, with a document forgotten in between."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.cli import main
from spark_jobs.manifests import Corpus, Documents
from spark_jobs.snapshot import batches_of
from tasks.lineage import DocumentTrail, Lineage
from training.manifests import ModelFolder

TONIGHT, NEXT = "2026-11-25", "2026-11-26"
TINY = str(Path(__file__).parent.parent / "fixtures" / "tiny.yaml")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def forgotten(pipeline: Any) -> DocumentTrail:
    """After the first night: the trail of a document that its training drew."""
    pipeline.run(night=TONIGHT)
    lineage = Lineage(pipeline.workspace)
    drawn = (
        trail
        for seq_id in range(40)
        for piece in lineage.sequence(TONIGHT, seq_id)
        for trail in lineage.trails(piece.doc_id)
        if any(use.draws for use in trail.models)
    )
    trail = next(drawn)
    assert main(["forget", "--doc", trail.doc_id, "--why", "test", TINY]) == 0
    return trail


@pytest.fixture(scope="module")
def second(pipeline: Any, forgotten: DocumentTrail, write_topics: Callable[..., Path]) -> Corpus:
    """The next night brings a near copy of the forgotten document."""
    workspace = pipeline.workspace
    raw = Documents.load(workspace.at(workspace.record(TONIGHT).outputs["ingest"].address))
    rows = [row for batch in batches_of(raw, "data", ["doc_id", "text"]) for row in batch.to_pylist()]
    text = next(row["text"] for row in rows if row["doc_id"] == forgotten.doc_id)
    write_topics(pipeline.texts, nights=2)
    (pipeline.texts / "copy.jsonl").write_text(json.dumps({"text": text + "\nOne more sentence."}) + "\n")
    pipeline.run(night=NEXT)
    return Corpus.load(workspace.at(workspace.record(NEXT).outputs["corpus"].address))


def test_near_copy_of_a_forgotten_document_is_kept(pipeline: Any, second: Corpus) -> None:
    unique = Documents.load(second.at(second.nights[-1].unique.address))
    origins = [origin for batch in batches_of(unique, "data", ["origin"]) for origin in batch.column(0).to_pylist()]
    assert "copy.jsonl@0" in origins


def test_next_snapshot_lacks_the_forgotten_document(second: Corpus, forgotten: DocumentTrail) -> None:
    assert second.num_forgotten == 1
    told = [row for path in second.paths("sequences") for row in _rows(path)]
    assert {(row["night"], row["seq_id"]) for row in told} == {(p.night, p.seq_id) for p in forgotten.pieces}


def test_trace_says_which_models_saw_it_through_the_champion(
    pipeline: Any, second: Corpus, forgotten: DocumentTrail
) -> None:
    (trail,) = Lineage(pipeline.workspace).trails(forgotten.doc_id)
    assert trail.is_forgotten
    outputs = pipeline.workspace.record(NEXT).outputs
    export = ModelFolder.load(pipeline.workspace.at(outputs["export"].address))
    uses = {use.address: use for use in trail.models}
    assert uses[export.address].draws == max(use.draws or 0 for use in forgotten.models)  # none of its own


def test_page_of_each_night_lies_beside_its_record(pipeline: Any, second: Corpus, capsys: Any) -> None:
    for night in (TONIGHT, NEXT):
        page = (pipeline.workspace.root / "nights" / f"{night}.html").read_text()
        assert "What came in, what left, and why" in page
        assert "Promoted" in page or "Kept" in page
    assert main(["report", "night", TINY]) == 0
    assert capsys.readouterr().out.strip().endswith(f"nights/{NEXT}.html")
    assert main(["report", "night", TINY, "--night", "2020-01-01"]) == 2


def _rows(path: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()  # type: ignore[no-any-return]
