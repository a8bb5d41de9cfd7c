"""The nightly index: which document of which earlier night holds a key. Point look-ups, no scan of history. No Spark.

A log-structured merge tree (O'Neil et al. 1996). Every night writes one immutable sorted run; when the run before it is not
much larger, the night's run takes that one in (`runs_to_merge`), so that few runs exist and each row is rewritten
O(log nights) times. `index/index.json` of a night names the runs that hold all of history, its own last.

    index/index.json                parameters, this night's number, live runs, rows of each documents file
    index/documents-00000.bin       32 bytes a kept document, in doc_id order: doc_id, exact key (16 bytes each, big-endian)
    index/run/00000.keys            uint64, sorted: the keys of one range (the high bits) of this run
    index/run/00000.places          uint64 each: night number << 40 | ordinal of the document in its night
    index/run/00000.bloom           the range's Bloom filter, 64-byte blocks

A document has one key for its exact copy (high half of its 128-bit key) and one for each LSH band; both are 64-bit hashes, so
ranges of equal width hold equally many. Whatever is found is only a candidate: exact copies are confirmed by the 128-bit key,
near ones by their texts. All numbers are little-endian.

Bloom filter: split blocks (Putze et al. 2007): the high bits of the key choose a block of eight words, six bits of a mix of
the key choose one bit in each word; 12 bits a key give about 0.6 % false positives.

`lines` counts what a look-up touches, in 64-byte lines: one for each filter probe, search step and record.
"""

from __future__ import annotations

import json
import uuid
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from spark_jobs.compiled import compiled
from spark_jobs.errors import DataError
from spark_jobs.manifests import Frozen
from spark_jobs.minhash import mix

U64 = NDArray[np.uint64]
Ints = NDArray[np.int64]

VERSION = 1
RANGE_ROWS = 1 << 20  # rows a key range may hold before a run is cut into twice as many ranges
ORDINAL_BITS = 40
LINE_BYTES = 64
BLOCK_WORDS = 8
KEYS_A_BLOCK = 42  # 512 bits / 12
RECORD = np.dtype([("doc_id", "V16"), ("key", "V16")])
MERGE_FACTOR = 1.5  # a night takes in the run before it if that has at most this many times its own rows


class IndexParameters(Frozen):
    """What must be equal for two nights' keys to be comparable."""

    ngram: int
    bands: int
    rows: int
    seed: int
    normaliser: str


class Run(Frozen):
    """One sorted run. `folder` is relative to the workspace; its documents are those of nights first..last."""

    folder: str
    first: int
    last: int
    num_rows: int
    num_ranges: int


class IndexFile(Frozen):
    version: int = VERSION
    parameters: IndexParameters
    night: str
    number: int
    document_rows: tuple[int, ...]
    runs: tuple[Run, ...]

    @classmethod
    def load(cls, folder: Path) -> IndexFile:
        """Raises: DataError if there is none or it is of another version."""
        path = folder / "index.json"
        try:
            tree = json.loads(path.read_text())
            found = tree.get("version")
            if found != VERSION:
                raise DataError(f"{path}: index version {found}, this code reads {VERSION}; begin a new pipeline")
            return cls.model_validate(tree)
        except (OSError, ValueError, ValidationError) as err:
            raise DataError(f"{path}: not an index of a night ({err}); run that night's dedup again") from err

    def save(self, folder: Path) -> None:
        (folder / "index.json").write_text(self.model_dump_json(indent=1) + "\n")


class Hits(NamedTuple):
    query: Ints  # index of the key asked for
    place: U64  # ascending for each query
    lines: Ints  # int64[number of queries]: 64-byte lines touched for each


class Record(NamedTuple):
    """A document of an earlier night: 32 hex digits each, and where its row is in the night's data/."""

    doc_id: str
    key: str
    number: int
    part: int
    row: int


def place_of(number: int, ordinal: int) -> int:
    return number << ORDINAL_BITS | ordinal


def num_ranges(num_rows: int) -> int:
    """A power of two, so that the ranges of a small run are unions of those of a large one."""
    ranges = 1
    while ranges * RANGE_ROWS < num_rows:
        ranges *= 2
    return ranges


def range_bounds(number: int, ranges: int) -> tuple[int, int]:
    """First key of a range, and the last."""
    width = (1 << 64) // ranges
    return number * width, (number + 1) * width - 1


def runs_to_merge(runs: tuple[Run, ...], num_rows: int) -> int:
    """How many of the last runs tonight's `num_rows` are merged with."""
    taken, size = 0, num_rows
    while taken < len(runs) and runs[-1 - taken].num_rows <= MERGE_FACTOR * size:
        size += runs[-1 - taken].num_rows
        taken += 1
    return taken


def write_range(folder: Path, number: int, keys: U64, places: U64) -> None:
    """Write one range of a run; keys sorted, places ascending for equal keys."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks = np.zeros((max(1, -(-len(keys) // KEYS_A_BLOCK)), BLOCK_WORDS), np.uint64)
    _fill_filter(keys, blocks)
    for suffix, array in (("keys", keys), ("places", places), ("bloom", blocks)):
        write_bytes(folder / f"{number:05d}.{suffix}", array.tobytes())


def write_bytes(path: Path, data: bytes) -> None:
    """Complete or not at all: two attempts of one task may write at once."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    partial.write_bytes(data)
    partial.replace(path)


class RunReader:
    """Look-ups in one run, through memory maps that are opened when first needed."""

    def __init__(self, workspace: Path, run: Run) -> None:
        self.run = run
        self._folder = workspace / run.folder
        self._maps: dict[tuple[int, str], U64] = {}

    def look_up(self, queries: U64, limit: int) -> Hits:
        """queries: uint64[n], sorted. At most `limit` places (the first) for each."""
        lines = np.zeros(len(queries), np.int64)
        found: list[tuple[Ints, U64]] = []
        ranges = self.run.num_ranges
        firsts = np.array([range_bounds(number, ranges)[0] for number in range(ranges)], np.uint64)
        borders = np.append(np.searchsorted(queries, firsts), len(queries))
        for number in np.flatnonzero(np.diff(borders)):
            start, stop = int(borders[number]), int(borders[number + 1])
            keys = self._map(int(number), "keys")
            bloom = self._map(int(number), "bloom").reshape(-1, BLOCK_WORDS)
            low, high = range_bounds(int(number), ranges)
            places_at, counts = _locate(
                keys, bloom, queries[start:stop], float(low), float(high), limit, lines[start:stop]
            )
            if counts.any():
                query = np.repeat(np.arange(start, stop), counts)
                nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
                found.append((query, self._map(int(number), "places")[np.repeat(places_at, counts) + nth]))
        if not found:
            return Hits(np.zeros(0, np.int64), np.zeros(0, np.uint64), lines)
        return Hits(np.concatenate([q for q, _ in found]), np.concatenate([p for _, p in found]), lines)

    def rows_between(self, low: int, high: int) -> tuple[U64, U64]:
        """(keys, places) of all rows with low <= key <= high; the range must lie within one range of this run."""
        width = (1 << 64) // self.run.num_ranges
        number = low // width
        keys = self._map(number, "keys")
        start = int(np.searchsorted(keys, np.uint64(low)))
        stop = int(np.searchsorted(keys, np.uint64(high), side="right"))
        return np.array(keys[start:stop]), np.array(self._map(number, "places")[start:stop])

    def _map(self, number: int, suffix: str) -> U64:
        if (number, suffix) not in self._maps:
            path = self._folder / f"{number:05d}.{suffix}"
            array = np.memmap(path, np.uint64, "r") if path.stat().st_size else np.zeros(0, np.uint64)
            self._maps[number, suffix] = np.asarray(array)
        return self._maps[number, suffix]


class IndexReader:
    """All of history, as the newest night's index.json names it. Picklable: maps are opened where it is used.

    nights: address of each night's output, oldest first; the night number is the place in this list.
    """

    def __init__(self, workspace: str, nights: tuple[str, ...], runs: tuple[Run, ...]) -> None:
        self.workspace, self.nights, self.runs = workspace, nights, runs

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return IndexReader, (self.workspace, self.nights, self.runs)

    @cached_property
    def _readers(self) -> list[RunReader]:
        return [RunReader(Path(self.workspace), run) for run in self.runs]

    @cached_property
    def _records(self) -> dict[int, list[NDArray[np.void]]]:
        return {}

    def look_up(self, queries: U64, limit: int) -> Hits:
        """Places of each key in the order of age, at most `limit` each; `queries` in any order."""
        order = np.argsort(queries, kind="stable")
        ordered = queries[order]
        lines = np.zeros(len(queries), np.int64)
        query, place = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
        for reader in self._readers:  # oldest nights first
            hits = reader.look_up(ordered, limit)
            lines[order] += hits.lines
            query.append(order[hits.query])
            place.append(hits.place)
        all_queries, all_places = np.concatenate(query), np.concatenate(place)
        sort = np.lexsort((all_places, all_queries))
        all_queries, all_places = all_queries[sort], all_places[sort]
        starts = np.flatnonzero(np.diff(all_queries, prepend=-1))
        nth = np.arange(len(all_queries)) - np.repeat(starts, np.diff(np.append(starts, len(all_queries))))
        return Hits(all_queries[nth < limit], all_places[nth < limit], lines)

    def record(self, place: int) -> Record:
        """Raises: DataError if the index names a document that its night does not have."""
        number, ordinal = place >> ORDINAL_BITS, place & ((1 << ORDINAL_BITS) - 1)
        row = ordinal
        for part, records in enumerate(self._records_of(number)):
            if row < len(records):
                found = records[row]
                return Record(bytes(found["doc_id"]).hex(), bytes(found["key"]).hex(), number, part, row)
            row -= len(records)
        raise DataError(
            f"{self.nights[number]}: its index names document {ordinal}, beyond the last; run its dedup again"
        )

    def _records_of(self, number: int) -> list[NDArray[np.void]]:
        if number not in self._records:
            folder = Path(self.workspace) / self.nights[number] / "index"
            rows = IndexFile.load(folder).document_rows
            self._records[number] = [
                np.memmap(folder / f"documents-{part:05d}.bin", RECORD, "r") for part in range(len(rows))
            ]
        return self._records[number]


@compiled
def _bit(h: np.uint64, word: int) -> np.uint64:
    return np.uint64(1) << ((h >> np.uint64(6 * word)) & np.uint64(63))


@compiled
def _block(key: np.uint64, num_blocks: int, spread: np.uint64) -> int:
    # 32 high bits of a mix: enough blocks for RANGE_ROWS keys many times over
    return int((((key * spread) >> np.uint64(32)) * np.uint64(num_blocks)) >> np.uint64(32))


SPREAD = np.uint64(0x9E3779B97F4A7C15)


@compiled
def _fill_filter(keys: U64, blocks: U64) -> None:
    for place in range(keys.size):
        block = _block(keys[place], blocks.shape[0], SPREAD)
        h = mix(keys[place] ^ SPREAD)
        for word in range(BLOCK_WORDS):
            blocks[block, word] |= _bit(h, word)


@compiled
def _may_hold(key: np.uint64, blocks: U64) -> bool:
    block = _block(key, blocks.shape[0], SPREAD)
    h = mix(key ^ SPREAD)
    for word in range(BLOCK_WORDS):  # noqa: SIM110  numba compiles no generator
        if blocks[block, word] & _bit(h, word) == np.uint64(0):
            return False
    return True


@compiled
def _locate(keys: U64, blocks: U64, queries: U64, low_key: float, high_key: float, limit: int, lines: Ints):  # type: ignore[no-untyped-def]
    """(first row, number of rows up to `limit`) of each query; adds to `lines` what was touched."""
    firsts = np.zeros(queries.size, np.int64)
    counts = np.zeros(queries.size, np.int64)
    for number in range(queries.size):
        key = queries[number]
        lines[number] += 1
        if not _may_hold(key, blocks):
            continue
        first, steps = _lower_bound(keys, key, low_key, high_key)
        count = 0
        while count < limit and first + count < keys.size and keys[first + count] == key:
            count += 1
        firsts[number], counts[number] = first, count
        lines[number] += steps + count
    return firsts, counts


@compiled
def _lower_bound(keys: U64, key: np.uint64, low_key: float, high_key: float):  # type: ignore[no-untyped-def]
    """(first row with a key >= `key`, steps). Interpolates (hashes are uniform), then gallops and halves."""
    size = keys.size
    if size == 0:
        return 0, 0
    guess = int((float(key) - low_key) / (high_key - low_key) * size)
    guess = min(max(guess, 0), size - 1)
    steps, leap = 1, max(8, int(np.sqrt(size) / 2))  # the expected error of the guess
    if keys[guess] < key:
        low, high = guess + 1, min(guess + leap, size)
        while high < size and keys[high] < key:
            leap *= 2
            low, high = high + 1, min(high + leap, size)
            steps += 1
    else:
        low, high = max(guess - leap, 0), guess
        while low > 0 and keys[low] >= key:
            leap *= 2
            low, high = max(low - leap, 0), low
            steps += 1
    seen = -1
    while low < high:
        middle = (low + high) // 2
        if middle // 8 != seen:  # eight keys a line
            seen = middle // 8
            steps += 1
        if keys[middle] < key:
            low = middle + 1
        else:
            high = middle
    return low, steps
