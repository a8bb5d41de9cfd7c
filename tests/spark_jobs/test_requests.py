"""What a failed job tells its parent."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from spark_jobs.errors import DataError
from spark_jobs.requests import failure_of

FULL_DISKS = {
    "the system's error": OSError(errno.ENOSPC, "No space left on device", "/disk/part-0"),
    "a quota": OSError(errno.EDQUOT, "Disk quota exceeded", "/disk/part-0"),
    "words quoted by Java": RuntimeError("java.io.IOException: No space left on device"),
    "a short write seen by torch": RuntimeError(
        "[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"
    ),
    "a failed write seen by torch": RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
}


@pytest.mark.parametrize("error", FULL_DISKS.values(), ids=FULL_DISKS.keys())
def test_full_disk_is_named_whoever_noticed_it(error: Exception) -> None:
    failure = failure_of(error)
    assert failure.error == "DiskFull"
    assert "NIGHTMILL_HOME" in failure.message
    assert failure.traceback == ""


def test_full_disk_behind_another_error_is_named() -> None:
    error = RuntimeError("could not write the shard")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert failure_of(error).error == "DiskFull"


def test_other_errors_keep_their_class_and_place(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "missing").read_text()
    failure = failure_of(caught.value)
    assert failure.error == "FileNotFoundError"
    assert "missing" in failure.message
    assert "read_text" in failure.traceback
    assert failure_of(DataError("no document")).traceback == ""
