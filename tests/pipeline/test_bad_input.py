"""Bad input: one clear message each, champion and earlier outputs untouched."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spark_jobs.errors import DataError, DiskFull, QualityError, RequestError, TrainingError
from tasks.engine import Engine
from tasks.ledger import read_ledger

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    return folder


def document(words: int = 80) -> str:
    return json.dumps({"text": "the quick brown fox and that lazy dog have to be of note " * (words // 13 + 1)})


def test_missing_folder_is_named(pipeline: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=rf"{tmp_path}/nowhere"):
        replace(pipeline, texts=tmp_path / "nowhere").run(night="2026-01-01")


def test_folder_without_documents_is_named(pipeline: Any, texts: Path) -> None:
    with pytest.raises((RequestError, DataError), match=str(texts)):
        replace(pipeline, texts=texts).run(night="2026-01-02")


def test_archive_nobody_can_read_gives_rejects_and_then_a_clear_end(pipeline: Any, texts: Path) -> None:
    (texts / "bad.jsonl.gz").write_bytes(b"this is no gzip file")
    with pytest.raises((RequestError, DataError), match=r"no document in .*texts \(\d+ \w+"):
        replace(pipeline, texts=texts).run(night="2026-01-03")


def test_archive_cut_short_keeps_what_can_be_read(pipeline: Any, texts: Path) -> None:
    whole = gzip.compress("\n".join(document(60 + n) for n in range(400)).encode(), mtime=0)
    (texts / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        (DataError, QualityError)
    ):  # few documents are left after deduplication: some later step says so
        replace(pipeline, texts=texts).run(night="2026-01-04")
    record = pipeline.workspace.record("2026-01-04")
    assert "ingest" in record.outputs


def test_corpus_of_one_document_says_what_training_wants(pipeline: Any, texts: Path) -> None:
    (texts / "one.jsonl").write_text(document() + "\n")
    with pytest.raises((DataError, RequestError), match="sequences") as caught:
        replace(pipeline, texts=texts).run("tokenize.heldout_share=0.0", night="2026-01-05")
    assert len(str(caught.value).splitlines()) <= 3


def test_every_document_rejected_fails_the_check_by_name(pipeline: Any, texts: Path) -> None:
    (texts / "short.jsonl").write_text("\n".join(json.dumps({"text": f"too short {n}"}) for n in range(5)))
    with pytest.raises((QualityError, DataError), match=r"clean|dedup|check|row"):
        replace(pipeline, texts=texts).run(night="2026-01-06")


def test_learning_rate_of_a_billion_stops_with_step_loss_and_advice(pipeline: Any) -> None:
    with pytest.raises(TrainingError, match=r"step \d+.*(learning_rate|learning rate)"):
        pipeline.run("train.optimizer.learning_rate=1e9", "train.optimizer.clip_norm=1e9", night="2026-01-07")
    assert "train" not in pipeline.workspace.record("2026-01-07").outputs


def test_champion_and_ledger_are_untouched_by_all_of_it(pipeline: Any) -> None:
    assert read_ledger(pipeline.workspace) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_is_named_and_earlier_outputs_stay(
    pipeline: Any, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTMILL_HOME", str(small_disk))
    monkeypatch.setattr("tasks.forecast.MIN_FREE_BYTES", 0)  # or the night would be refused before it fills the disk
    with pytest.raises(DiskFull, match=r"no space left"):
        pipeline.run(
            "tokenizer.vocab_size=4000", "train.model.hidden_size=512", "train.model.num_heads=8", night="2026-01-08"
        )
    outputs = pipeline.workspace.record("2026-01-08").outputs
    assert "ingest" in outputs
    Engine(pipeline.workspace, "2026-01-08").close()


def test_disk_without_room_is_refused_before_anything_runs(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks import machine

    with pytest.raises(DiskFull, match="wanted at least"):
        machine.require_free_disk(own_home, wanted_bytes=2**60)
