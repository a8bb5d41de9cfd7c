"""The records of a WARC or ARC file as bytes, with every way back after damage.

A record is its header, an empty line, Content-Length bytes, and two line ends (ISO 28500); in the older ARC its header is one
line, which ends in the length, and one line end follows it (https://archive.org/web/researcher/ArcFileFormat.php). One whose length is wrong, whose
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
END = 1 << 62
# address, IP address, date, whatever else, length
ARC_LINE = (
    rb"(?P<address>[a-z][a-z0-9+.-]{1,15}:[^\r\n]{1,8000}?) [0-9a-fA-F.:]{1,45} [0-9]{8,18}"
    rb"(?: [^\r\n]{0,1000})? (?P<length>[0-9]{1,18})\r?\n"
)


class Form(NamedTuple):
    """How records look. first: what each begins with. header: the beginning of one, as far as its first line tells. length:
    its group `length` is that of the content. gap: what may stand between records. next: a record behind a line end, of which
    no more than `next_bytes` can be seen without recognising it.
    """

    first: bytes
    header: re.Pattern[bytes]
    header_end: re.Pattern[bytes]
    length: re.Pattern[bytes]
    gap: tuple[bytes, ...]
    next: re.Pattern[bytes]
    next_bytes: int


WARC = Form(
    first=b"WARC/1.",
    header=re.compile(rb"WARC/"),
    header_end=HEADER_END,
    length=re.compile(rb"\nContent-Length:[ \t]*(?P<length>[0-9]{1,18})[ \t]*\r?\n", re.IGNORECASE),
    gap=(b"\r\n\r\n", b"\n\n"),
    next=re.compile(rb"\nWARC/[01]\.[0-9]+\r?\n"),
    next_bytes=16,
)
ARC = Form(
    first=b"",
    header=re.compile(ARC_LINE),
    header_end=re.compile(rb"\n"),
    length=re.compile(ARC_LINE),
    gap=(b"\n", b"\r\n"),
    next=re.compile(rb"\n" + ARC_LINE),
    next_bytes=1 << 14,
)


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
    yield from _frames(_Window(blocks(file, place), first, form_of(file)), limit, stop)


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
        for frame in _frames(_Window(source, 0, form_of(file)), limit, END):
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


def form_of(file: Path) -> Form:
    name = file.with_suffix("") if file.suffix in COMPRESSED else file
    return ARC if name.suffix.lower() == ".arc" else WARC


def _frames(window: _Window, limit: int, stop: int) -> Iterator[Frame]:
    form = window.form
    while window.skip_line_ends() and window.offset < stop:
        if window.is_damaged():
            yield Frame(window.offset, None, "bad_record", "the compressed data is damaged")
            window.pass_damage()
            continue
        end = window.find(form.header_end, 0, HEADER_BYTES)
        length = form.length.search(window.held, 0, end) if end and form.header.match(window.held) else None
        if not length and window.is_cut():
            raise window.failure or _ends_inside(window)
        if not length:
            yield from _broken(window, 1, "no header of a record here")
            continue
        total = (end or 0) + int(length["length"])
        if total > limit:
            yield Frame(window.offset, None, "too_long", f"a record of {total} bytes")
            window.resume(1)
        elif not window.fill(total):
            if window.gap or form.next.search(window.held, end or 0):
                yield from _broken(window, end or 0, "the file or the next record begins inside this one")
            else:
                raise window.failure or _ends_inside(window)
        elif window.ends_well(total):
            yield Frame(window.offset, bytes(window.held[:total]))
            window.drop(total)
        else:
            yield from _broken(window, end or 0, "its length does not lead to the next record")
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

    def __init__(self, source: Iterator[bytes | None], offset: int, form: Form) -> None:
        self._source = source
        self.form = form
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
        begun = bool(self.failure) or self.form.first.startswith(self.held[: len(self.form.first)])
        return whole and begun and not self.form.header_end.search(self.held)

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
        """Behind the record stand its line ends; some writers leave them out before the next record or the end."""
        self.fill(total + 16)
        rest = bytes(self.held[total : total + 16])
        bare = rest.lstrip(b"\r\n")
        first = self.form.first[:5] or b"\0"
        return rest.startswith(self.form.gap) or not bare or bare.startswith(first[: len(bare)])

    def resume(self, after: int) -> None:
        """Drop everything before the next line that begins a record; past a gap, if it lies in the way."""
        self.drop(min(after, len(self.held)))
        while True:
            match = self.form.next.search(self.held)
            if match:
                self.drop(match.start() + 1)
                return
            self.drop(max(0, len(self.held) - self.form.next_bytes))  # the line may be cut
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
