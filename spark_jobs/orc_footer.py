"""Rows and bytes of each stripe of an ORC file, from its footer alone: pyarrow counts the rows of a stripe only by reading it.

The file ends with its footer, a postscript and one byte, the length of the postscript; both are Protocol Buffers
(https://orc.apache.org/specification/ORCv1/, "File Tail").
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import zstandard

MAX_POSTSCRIPT = 256  # bytes, with its length
MAX_FOOTER = 1 << 28  # bytes; a longer one, or longer blocks of it, are damage
# field numbers
FOOTER_LENGTH, COMPRESSION, BLOCK_SIZE = 1, 2, 3  # of PostScript
STRIPES = 3  # of Footer
INDEX_LENGTH, DATA_LENGTH, STRIPE_FOOTER_LENGTH, NUM_ROWS = 2, 3, 4, 5  # of StripeInformation
NONE, ZLIB, SNAPPY, ZSTD = 0, 1, 2, 5  # CompressionKind; LZO (3) and LZ4 (4) do not say how long a chunk unpacks to


class Stripe(NamedTuple):
    num_rows: int
    size_bytes: int  # as it lies in the file


def stripes(file: Path) -> list[Stripe]:
    """Raises: ValueError if the footer is none, or compressed with LZO or LZ4; OSError; pa.ArrowException."""
    with file.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - MAX_POSTSCRIPT))
        tail = stream.read()
        end = len(tail) - 1 - (tail[-1] if tail else 0)
        if end < 0:
            raise ValueError("no ORC postscript")
        postscript = dict(_fields(tail[end:-1]))
        length, kind = _number(postscript, FOOTER_LENGTH), _number(postscript, COMPRESSION)
        begin, block_size = size - (len(tail) - end) - length, _number(postscript, BLOCK_SIZE)
        if begin < 0 or max(length, block_size) > MAX_FOOTER:
            raise ValueError(f"an ORC footer of {length} bytes in blocks of {block_size}")
        stream.seek(begin)
        footer = stream.read(length)
    if kind != NONE:
        footer = b"".join(_unpacked(footer, kind, block_size))
    return [_stripe(value) for number, value in _fields(footer) if number == STRIPES and isinstance(value, bytes)]


def _stripe(message: bytes) -> Stripe:
    values = dict(_fields(message))
    size = sum(_number(values, field) for field in (INDEX_LENGTH, DATA_LENGTH, STRIPE_FOOTER_LENGTH))
    return Stripe(_number(values, NUM_ROWS), size)


def _number(values: dict[int, int | bytes], field: int) -> int:
    value = values.get(field, 0)
    if not isinstance(value, int):
        raise ValueError(f"ORC field {field} is no number")  # noqa: TRY004  damage, not a wrong call
    return value


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a message: an int for a varint, else its bytes. Raises: ValueError."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"wire type {kind}")
        size = 8 if kind == 1 else 4
        if kind == 2:
            size, at = _varint(message, at)
        if at + size > len(message):
            raise ValueError("a field longer than its message")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """(value, place behind it). Raises: ValueError."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        value |= (message[at] & 0x7F) << shift
        at += 1
        if message[at - 1] < 0x80:
            return value, at
    raise ValueError("a varint without end")


def _unpacked(data: bytes, kind: int, block_size: int) -> Iterator[bytes]:
    """The chunks of a compressed stream: three bytes of header, twice the length plus one if the chunk is stored as it is."""
    at = 0
    while at + 3 <= len(data):
        header = int.from_bytes(data[at : at + 3], "little")
        chunk = data[at + 3 : at + 3 + (header >> 1)]
        at += 3 + (header >> 1)
        yield chunk if header & 1 else _unpacked_chunk(chunk, kind, block_size)


def _unpacked_chunk(chunk: bytes, kind: int, block_size: int) -> bytes:
    try:
        if kind == ZLIB:
            return zlib.decompressobj(wbits=-15).decompress(chunk, block_size)
        if kind == ZSTD:
            return zstandard.ZstdDecompressor().decompress(chunk, max_output_size=block_size)
    except (zlib.error, zstandard.ZstdError) as err:
        raise ValueError(f"the ORC footer: {err}") from err
    if kind != SNAPPY:
        raise ValueError(f"ORC compression kind {kind}")
    size, _ = _varint(chunk, 0)  # Snappy begins with it
    return bytes(pa.Codec("snappy").decompress(chunk, min(size, block_size), asbytes=True))
