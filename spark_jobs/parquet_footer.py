"""Make the footer of a Parquet file that Spark wrote a function of its rows.

Parquet's Java writer keeps the encodings of a column chunk in a HashSet of enums, whose order follows object addresses: the
same rows give other bytes in another JVM. The list is sorted here, in place; readers treat it as a set. The footer is
Thrift compact protocol (https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md).
"""

from __future__ import annotations

from pathlib import Path

MAGIC = b"PAR1"
TAIL = 8  # footer length (4 bytes, little-endian) and magic

# FileMetaData.row_groups / RowGroup.columns / ColumnChunk.meta_data / ColumnMetaData.encodings, by field number
ENCODINGS = (4, 1, 3, 2)

BOOL_TRUE, BOOL_FALSE, BYTE, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
LONG_LIST = 15  # in a list's header: the size follows as a varint


def sort_encodings(path: Path) -> None:
    """Sort every list of encodings in the footer of the file at `path`, which keeps its size."""
    with path.open("r+b") as stream:
        stream.seek(-TAIL, 2)
        end = stream.tell()
        tail = stream.read(TAIL)
        assert tail[4:] == MAGIC, f"{path} is not a Parquet file"
        begin = end - int.from_bytes(tail[:4], "little")
        stream.seek(begin)
        footer = bytearray(stream.read(end - begin))
        for first, size in _Walk(footer).find(ENCODINGS):
            encodings = footer[first : first + size]
            assert all(value < 0x80 for value in encodings), "an encoding number that takes two bytes"
            footer[first : first + size] = sorted(encodings)
        stream.seek(begin)
        stream.write(footer)


class _Walk:
    """One pass over a Thrift compact structure, noting where the lists at a path of field numbers begin."""

    def __init__(self, data: bytearray) -> None:
        self._data = data
        self._at = 0
        self._found: list[tuple[int, int]] = []

    def find(self, path: tuple[int, ...]) -> list[tuple[int, int]]:
        """(offset of the first element, number of elements) of each list there."""
        self._struct(path)
        return self._found

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _varint(self) -> int:
        value, shift = 0, 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def _struct(self, path: tuple[int, ...]) -> None:
        """`path` is what is still to go from here; empty on another branch."""
        field = 0
        while header := self._byte():
            delta, kind = header >> 4, header & 0x0F
            number = self._varint() if delta == 0 else None
            field = field + delta if number is None else (number >> 1) ^ -(number & 1)
            is_on_path = bool(path) and field == path[0]
            self._value(kind, path[1:] if is_on_path else (), is_wanted=is_on_path and len(path) == 1)

    def _value(self, kind: int, path: tuple[int, ...], is_wanted: bool = False) -> None:
        if kind in (BOOL_TRUE, BOOL_FALSE):
            return  # the header holds the value
        if kind == BYTE:
            self._at += 1
        elif kind == DOUBLE:
            self._at += 8
        elif kind == BINARY:
            size = self._varint()
            self._at += size
        elif kind in (LIST, SET):
            self._list(path, is_wanted)
        elif kind == MAP:
            self._map()
        elif kind == STRUCT:
            self._struct(path)
        else:
            self._varint()

    def _list(self, path: tuple[int, ...], is_wanted: bool) -> None:
        header = self._byte()
        size, kind = header >> 4, header & 0x0F
        if size == LONG_LIST:
            size = self._varint()
        if is_wanted:
            self._found.append((self._at, size))
        for _ in range(size):
            if kind in (BOOL_TRUE, BOOL_FALSE):
                self._at += 1
            else:
                self._value(kind, path)

    def _map(self) -> None:
        size = self._varint()
        kinds = self._byte() if size else 0
        for _ in range(size):
            self._value(kinds >> 4, ())
            self._value(kinds & 0x0F, ())
