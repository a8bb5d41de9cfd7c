"""Two nights of all data jobs: the same rows from Parquet and ORC, and the same bytes when workers are killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING, Any

import psutil
import pyarrow as pa
import pytest
from pyarrow import orc, parquet

from spark_jobs.manifests import Documents, Handle, TokenizerFiles, TokenShards
from spark_jobs.specs import (
    CleanSpec,
    DecontaminateSpec,
    DedupSpec,
    EvaluationSet,
    IngestSpec,
    SourceSpec,
    TokenizerSpec,
    TokenizeSpec,
)
from tests.spark_jobs.killer import WorkerKiller
from tests.spark_jobs.test_dedup import history_of
from tests.spark_jobs.workspace import Workspace, digest_of, read_rows

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

TOPICS = [text for _, text in sorted(topics.items()) if 60 <= len(text.split()) < 2000]
TABLES = ("data", "rejects", "clusters", "heldout")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def texts_of(night: int) -> list[str | None]:
    """Some 40 texts a night: some of it copies and near copies, of this night and of the one before, some of it no text."""
    own = TOPICS[night * 30 : night * 30 + 30]
    return [
        *own,
        None,
        "too short",
        own[0],
        f"{own[1]} changed",
        f"{own[2]}\x00\r\n",
        f"{TOPICS[3]} tonight {night}",
        TOPICS[4],
    ]


def write_night(folder: Path, kind: str, night: int) -> SourceSpec:
    """A file without a suffix, so that `origin` is the same for both formats."""
    file = folder / kind / f"night-{night}"
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"n": list(range(len(texts_of(night)))), "text": texts_of(night)})
    parquet.write_table(table, file, row_group_size=7) if kind == "parquet" else orc.write_table(table, file)
    return SourceSpec(kind=kind, path=str(file), name="topics")


Chain = Callable[..., dict[str, Handle]]


@pytest.fixture(scope="module")
def run_chain(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Run all data jobs of two nights; returns each output by step and night."""
    inputs = tmp_path_factory.mktemp("inputs")
    (inputs / "quiz.jsonl").write_text(json.dumps({"q": " ".join(TOPICS[35].split()[:40])}) + "\n")
    quiz = DecontaminateSpec(sets=(EvaluationSet(name="quiz", path=str(inputs / "quiz.jsonl"), fields=("q",)),))

    def run_chain(root: str, kind: str = "parquet", run: Callable[..., Any] = Workspace.run) -> dict[str, Handle]:
        workspace = Workspace(spark, tmp_path_factory.mktemp(root))
        made: dict[str, Handle] = {}

        def step(handle: type[Handle], job: str, spec: Any, night: str, **roles: Handle) -> Any:
            made[f"{job}-{night}"] = run(workspace, handle, job, spec, night, **roles)
            return made[f"{job}-{night}"]

        history: dict[str, Handle] = {}
        for number in range(2):
            night = f"n{number}"
            spec = IngestSpec(sources=(write_night(inputs, kind, number),), format=kind)
            raw = step(Documents, "ingest", spec, night, **history)
            cleaned = step(Documents, "clean", CleanSpec(), night, documents=raw)
            unique = step(Documents, "dedup", DedupSpec(), night, documents=cleaned, **history)
            history = {"history": history_of(workspace, unique)}
        documents = step(Documents, "decontaminate", quiz, night, documents=unique)
        files = step(TokenizerFiles, "tokenizer", TokenizerSpec(vocab_size=500), night, documents=documents)
        shards = TokenizeSpec(seq_len=64, heldout_share=0.2, format=kind)
        step(TokenShards, "tokenize", shards, night, documents=documents, tokenizer=files)
        return made

    return run_chain


@pytest.fixture(scope="module")
def undisturbed(run_chain: Chain) -> dict[str, Handle]:
    return run_chain("undisturbed")


def test_chain_rejects_something_in_every_step_that_can(undisturbed: dict[str, Handle]) -> None:
    counts = {name: handle.counts for name, handle in undisturbed.items() if isinstance(handle, Documents)}
    assert counts["ingest-n1"]["reject.no_text"] == 1
    assert counts["clean-n1"]["reject.too_few_words"] == 1
    reasons = ("exact_duplicate", "near_duplicate", "exact_duplicate_of_history", "near_duplicate_of_history")
    assert all(counts["dedup-n1"].get(f"reject.{reason}") for reason in reasons), str(counts["dedup-n1"])
    assert counts["decontaminate-n1"]["reject.contaminated"] == 1


def test_orc_in_and_out_gives_the_rows_of_parquet_in_every_step(
    run_chain: Chain, undisturbed: dict[str, Handle]
) -> None:
    for name, handle in run_chain("orc", "orc").items():
        other = undisturbed[name]
        assert handle.counts == other.counts, name
        assert handle.format == {"parquet": "orc"}.get(other.format, other.format)
        parts = {path.name for path in Path(other.uri).iterdir()} if other.format == "parquet" else set()
        for part in parts & set(TABLES):
            assert read_rows(handle.uri, part) == read_rows(other.uri, part), f"{name}/{part}"
        rest = {
            path: digest for path, digest in digest_of(other.uri).items() if path.startswith(("index/", "tokenizer"))
        }
        assert {path: digest_of(handle.uri)[path] for path in rest} == rest


def test_worker_killed_in_a_task_of_every_job_changes_no_byte(
    run_chain: Chain, undisturbed: dict[str, Handle], spark: SparkSession
) -> None:
    """On the session as the product starts it: on one machine a lost task is run again too."""
    losses: list[int] = []

    def failed_tasks() -> int:
        return int(spark._jsc.sc().statusStore().executorList(False).head().failedTasks())

    def run_and_kill(workspace: Workspace, *asked: Any, **roles: Handle) -> Any:
        before = failed_tasks()
        killer = WorkerKiller(lambda: [psutil.Process()], lambda: failed_tasks() > before)
        killer.start()
        try:
            return workspace.run(*asked, **roles)
        finally:
            killer.stop()
            losses.append(failed_tasks() - before)

    killed = run_chain("killed", run=run_and_kill)
    for name, handle in killed.items():
        assert digest_of(handle.uri) == digest_of(undisturbed[name].uri), name
        assert handle.counts == undisturbed[name].counts, name
    assert sum(loss > 0 for loss in losses) >= 2, losses  # a job may be over before a worker of it is found busy
