"""The records of a WARC file as bytes, with every way back after damage.

A record is its header, an empty line, Content-Length bytes, and two line ends (ISO 28500). One whose length is wrong, whose
header is no header or whose compressed member is damaged becomes one frame without data; reading goes on at the next line
that begins a record, or at the next gzip member. Memory holds one record.

A large archive is read in pieces: a pass that frames the records and looks into none finds where pieces may begin (see `cuts`).
"""

from __future__ import annotations

import re
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import zstandard

from spark_jobs.byte_streams import BLOCK_BYTES, COMPRESSED, decompressed

MAGIC = b"\x1f\x8b\x08"
READ_BYTES = 1 << 16
HEADER_BYTES = 1 << 16
HEADER_END = re.compile(rb"\r?\n\r?\n")
LENGTH = re.compile(rb"\nContent-Length:[ \t]*([0-9]{1,18})[ \t]*\r?\n", re.IGNORECASE)
NEXT = re.compile(rb"\nWARC/[01]\.[0-9]+\r?\n")
END = 1 << 62


class Frame(NamedTuple):
    """offset: of the decompressed stream. data: header and content, or None with a reason."""

    offset: int
    data: bytes | None
    reason: str = ""
    detail: str = ""


class Cut(NamedTuple):
    """Where a piece begins: at byte `first` of the decompressed stream, and at byte `place` of the file."""

    first: int
    place: int


def frames(file: Path, limit: int, first: int = 0, stop: int = END, place: int = 0) -> Iterator[Frame]:
    """The frames that begin in [first, stop) of the decompressed stream; `first` and `place` are those of a cut.

    Raises: EOFError if the file ends inside a record or its archive is cut; ZstdError; OSError.
    """
    yield from _frames(_Window(blocks(file, place), first), limit, stop)


def cuts(file: Path, limit: int, piece_bytes: int) -> list[Cut]:
    """Cuts about `piece_bytes` of the file apart: reading from each to the next gives the frames of the whole.

    A cut lies where a frame begins that is the first at its offset, in gzip also where a member does; so nothing that was
    read before it matters behind it. A file is cut as far as it can be read, Zstandard nowhere.
    """
    found, before = [Cut(0, 0)], -1
    begins: deque[Cut] = deque()
    try:
        packed = _is_gzip(file)
        if file.suffix in COMPRESSED and not packed:
            return found
        source = _members(file, 0, begins) if packed else decompressed(file)
        for frame in _frames(_Window(source, 0), limit, END):
            place = _member_at(begins, frame.offset) if packed else frame.offset
            if frame.offset > before and place >= found[-1].place + piece_bytes:
                found.append(Cut(frame.offset, place))
            before = frame.offset
    except (EOFError, OSError):  # reading the last piece will say so
        pass
    return found


def _member_at(begins: deque[Cut], offset: int) -> int:
    """The place in the file of the first member that begins at `offset` of the stream, -1 if none does."""
    while begins and begins[0].first < offset:
        begins.popleft()
    return begins[0].place if begins and begins[0].first == offset else -1


def _frames(window: _Window, limit: int, stop: int) -> Iterator[Frame]:
    while window.skip_line_ends() and window.offset < stop:
        if window.is_damaged():
            yield Frame(window.offset, None, "bad_record", "the compressed data is damaged")
            window.pass_damage()
            continue
        end = window.find(HEADER_END, 0, HEADER_BYTES)
        length = LENGTH.search(window.held, 0, end) if end and window.held.startswith(b"WARC/") else None
        if not length and window.is_cut():
            raise window.failure or _ends_inside(window)
        if not length:
            yield from _broken(window, 1, "no WARC header here")
            continue
        total = (end or 0) + int(length.group(1))
        if total > limit:
            yield Frame(window.offset, None, "too_long", f"a record of {total} bytes")
            window.resume(1)
        elif not window.fill(total):
            if window.gap or NEXT.search(window.held, end or 0):
                yield from _broken(window, end or 0, "the file or the next record begins inside this one")
            else:
                raise window.failure or _ends_inside(window)
        elif window.ends_well(total):
            yield Frame(window.offset, bytes(window.held[:total]))
            window.drop(total)
        else:
            yield from _broken(window, end or 0, "Content-Length does not lead to the next record")
    if window.failure and window.offset < stop:
        raise window.failure


def _ends_inside(window: _Window) -> EOFError:
    return EOFError(f"the file ends inside the record at {window.offset}; what came before is kept")


def _broken(window: _Window, after: int, detail: str) -> Iterator[Frame]:
    yield Frame(window.offset, None, "bad_record", detail)
    window.resume(after)


class _Window:
    """The part of the stream that is looked at: `held`, beginning at `offset`. `gap`: data is lost behind it. `failure`: why
    the stream ended, if it should not have; what is held is still good.
    """

    def __init__(self, source: Iterator[bytes | None], offset: int) -> None:
        self._source = source
        self.held = bytearray()
        self.offset = offset
        self.gap = False
        self.failure: Exception | None = None
        self._ended = False

    def fill(self, size: int) -> bool:
        """Hold at least `size` bytes; False if there are not so many."""
        while len(self.held) < size and not self.gap and not self._ended:
            try:
                block = next(self._source, b"")
            except (EOFError, zstandard.ZstdError) as err:
                block, self.failure = b"", err
            if block is None:
                self.gap = True
            elif block:
                self.held += block
            else:
                self._ended = True
        return len(self.held) >= size

    def drop(self, size: int) -> None:
        del self.held[:size]
        self.offset += size

    def skip_line_ends(self) -> bool:
        """False at the end of the stream."""
        while self.fill(1):
            blank = len(self.held) - len(self.held.lstrip(b"\r\n"))
            self.drop(blank)
            if self.held:
                return True
        return self.gap

    def is_damaged(self) -> bool:
        return self.gap and not self.held

    def is_cut(self) -> bool:
        """The stream ends with the beginning of a record's header, or before it should and without one."""
        whole = self._ended and not self.gap and len(self.held) < HEADER_BYTES
        begun = bool(self.failure) or b"WARC/1.".startswith(self.held[:7])
        return whole and begun and not HEADER_END.search(self.held)

    def pass_damage(self) -> None:
        self.drop(len(self.held))
        self.gap = False

    def find(self, pattern: re.Pattern[bytes], first: int, within: int) -> int | None:
        """Where the first match ends, or None."""
        while True:
            match = pattern.search(self.held, first, within)
            if match:
                return match.end()
            if len(self.held) >= within or not self.fill(min(len(self.held) + 1, within)):
                return None

    def ends_well(self, total: int) -> bool:
        """Behind the record stand two line ends; some writers leave them out before the next record or the end."""
        self.fill(total + 16)
        rest = bytes(self.held[total : total + 16])
        bare = rest.lstrip(b"\r\n")
        return rest.startswith((b"\r\n\r\n", b"\n\n")) or not bare or bare.startswith(b"WARC/"[: len(bare)])

    def resume(self, after: int) -> None:
        """Drop everything before the next line that begins a record; past a gap, if it lies in the way."""
        self.drop(min(after, len(self.held)))
        while True:
            match = NEXT.search(self.held)
            if match:
                self.drop(match.start() + 1)
                return
            self.drop(max(0, len(self.held) - 16))  # the line may be cut
            if not self.fill(len(self.held) + 1):
                self.pass_damage()
                return


def blocks(file: Path, place: int = 0) -> Iterator[bytes | None]:
    """Decompressed blocks from byte `place` of the file on; None where a gzip member is damaged."""
    return _members(file, place) if _is_gzip(file) else decompressed(file, place)


def _is_gzip(file: Path) -> bool:
    """The file tells by its bytes; by its name only where these are damaged. Raises: EOFError if it is empty."""
    with file.open("rb") as stream:
        start = stream.read(len(MAGIC))
    if not start and file.suffix == ".gz":
        raise EOFError("the archive is empty")
    return start == MAGIC or file.suffix == ".gz"


def _members(file: Path, place: int, begins: deque[Cut] | None = None) -> Iterator[bytes | None]:
    """Takes down in `begins` where each member begins, and forgets it again once the reader has passed damage behind it."""
    begins = deque(maxlen=0) if begins is None else begins
    offset = 0
    with file.open("rb") as stream:
        while place >= 0:
            stream.seek(place)
            begins.append(Cut(offset, place))
            member = zlib.decompressobj(wbits=31)
            try:
                while not member.eof:
                    block = stream.read(READ_BYTES)
                    if not block:
                        raise EOFError("the archive ends inside a member; what came before is kept")
                    if out := member.decompress(block):
                        offset += len(out)
                        yield out
                place = _next_member(stream.tell() - len(member.unused_data), file)
            except zlib.error:
                yield None
                begins.clear()
                place = _next_member(place + 1, file)


def _next_member(place: int, file: Path) -> int:
    """Where the first gzip magic at or after `place` stands, -1 if there is none."""
    with file.open("rb") as stream:
        stream.seek(place)
        while block := stream.read(BLOCK_BYTES):
            found = block.find(MAGIC)
            if found >= 0:
                return place + found
            if len(block) < len(MAGIC):
                return -1
            place += len(block) - len(MAGIC) + 1
            stream.seek(place)
    return -1
