"""Small files on a full disk: whole or not at all, and nothing beside them."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.workspace import append_line, write_atomic

PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def two_pages(tmp_path: Path) -> Iterator[Path]:
    """A disk of two pages."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={2 * PAGE}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_file_that_finds_no_room_leaves_the_old_one_and_nothing_else(two_pages: Path) -> None:
    write_atomic(two_pages / "record.json", "old")
    with pytest.raises(OSError, match="No space left") as raised:
        write_atomic(two_pages / "record.json", "x" * 3 * PAGE)
    assert raised.value.errno == errno.ENOSPC
    assert {path.name: path.read_text() for path in two_pages.iterdir()} == {"record.json": "old"}


def test_line_that_fits_only_in_part_is_an_error_and_not_written(two_pages: Path) -> None:
    append_line(two_pages / "ledger.jsonl", {"night": "2026-11-25"})
    before = (two_pages / "ledger.jsonl").read_bytes()
    with pytest.raises(OSError, match="No space left"):
        append_line(two_pages / "ledger.jsonl", {"reason": "x" * 3 * PAGE})
    assert (two_pages / "ledger.jsonl").read_bytes() == before
