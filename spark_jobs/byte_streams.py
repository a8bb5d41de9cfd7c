"""Files as streams of bytes and of lines, decompressed, from any byte on, within bounded memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import zstandard

COMPRESSED = (".gz", ".zst")
READ_BYTES = {".gz": 1 << 16, ".zst": 1 << 12}  # bounds what one read can expand to: gzip 1:1032, zstd 1:32768
BLOCK_BYTES = 1 << 20


def decompressed(file: Path, first: int = 0) -> Iterator[bytes]:
    """The file's bytes from `first` on in blocks, decompressed by suffix (several members or frames in a row are one stream).

    Raises: EOFError if the archive ends too early, after yielding what came before; zlib.error, ZstdError, OSError.
    """
    with file.open("rb") as stream:
        if file.suffix not in COMPRESSED:
            stream.seek(first)
            while block := stream.read(BLOCK_BYTES):
                yield block
            return
        opener: Any = _gzip_member if file.suffix == ".gz" else zstandard.ZstdDecompressor().decompressobj
        member, begun = opener(), False
        while block := stream.read(READ_BYTES[file.suffix]):
            while block:
                if member.eof:
                    block = block.lstrip(b"\0")  # gzip allows padding between members
                    if not block:
                        break
                    member = opener()
                begun = True
                if out := member.decompress(block):
                    yield out
                block = member.unused_data if member.eof else b""
        if not (begun and member.eof):
            raise EOFError("the archive ends before its end mark; what came before is kept")


def _gzip_member() -> Any:
    return zlib.decompressobj(wbits=31)


def lines(blocks: Iterable[bytes], first: int, stop: int, limit: int) -> Iterator[tuple[int, bytes | None]]:
    """(offset, line without LF) of each line that starts in [first, stop); None for a line longer than `limit`.

    `blocks` start at byte `first`. A caller who cuts a file must cut it at the starts of lines (see `line_start`).
    """
    offset, size = first, 0
    held: list[bytes] = []
    for block in blocks:
        begin = 0
        while (end := block.find(b"\n", begin)) >= 0:
            size += end - begin
            yield offset, b"".join((*held, block[begin:end])) if size <= limit else None
            offset, held, size, begin = offset + size + 1, [], 0, end + 1
            if offset >= stop:
                return
        size += len(block) - begin
        held = [*held, block[begin:]] if size <= limit else []
    if size:
        yield offset, b"".join(held) if size <= limit else None


def line_start(file: Path, near: int) -> int:
    """The first start of a line at or after byte `near` of an uncompressed file (its size if there is none)."""
    if near == 0:
        return 0
    with file.open("rb") as stream:
        stream.seek(near - 1)
        place = near - 1
        while block := stream.read(BLOCK_BYTES):
            found = block.find(b"\n")
            if found >= 0:
                return place + found + 1
            place += len(block)
    return place


def head(file: Path, size: int) -> bytes:
    """The first `size` decompressed bytes, fewer if the file is shorter or damaged."""
    found = b""
    try:
        for block in decompressed(file):
            found += block
            if len(found) >= size:
                break
    except (EOFError, OSError, zlib.error, zstandard.ZstdError):
        pass
    return found[:size]


def whole(file: Path, limit: int) -> bytes:
    """All decompressed bytes, or the first of them, more than `limit`, if there are more. Raises: like decompressed."""
    held: list[bytes] = []
    size = 0
    for block in decompressed(file):
        held.append(block)
        size += len(block)
        if size > limit:
            break
    return b"".join(held)
