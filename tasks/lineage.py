"""Where a document, a training sequence or a model came from, and what became of it. Manifests and pyarrow; no Spark, no torch.

Backward: model -> checkpoints -> corpora -> sequences -> documents -> file and place inside it.
Forward: the same chain the other way. What a training drew is computed again from the functions it drew with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import pyarrow.compute as pc
from pyarrow import dataset

from spark_jobs.errors import DataError, RequestError
from spark_jobs.manifests import MANIFEST, Corpus, Documents, Frozen, Handle, NightData, TokenShards
from spark_jobs.snapshot import is_origin
from tasks.ledger import champion_now
from tasks.workspace import Workspace
from training.manifests import Checkpoint, ModelFolder, Release

H = TypeVar("H", bound=Handle)
HEX = re.compile(r"[0-9a-f]{6,32}")
ID_DIGITS = 32
SHOWN = 10  # matches named when an id is not unique


class Visit(Frozen):
    """What one step did with one document. state: kept | rejected; the rest as in the table of rejects."""

    step: str
    address: str
    source: str
    origin: str
    state: str
    reason: str = ""
    value: float | None = None
    threshold: float | None = None
    detail: str = ""
    rule_version: str = ""


class Piece(Frozen):
    """Tokens [first, stop) of sequence `seq_id` of a night are of this document."""

    night: str
    seq_id: int
    place: int
    doc_id: str
    first: int
    stop: int


class ModelUse(Frozen):
    """A model and what its training took. draws: times one of the sequences was drawn, over this training and those it
    went on from; None if the order can no longer be computed. first_step: optimizer step of the first draw."""

    night: str
    address: str
    version: str = ""
    is_champion: bool = False
    draws: int | None = None
    first_step: int | None = None


class DocumentTrail(Frozen):
    doc_id: str
    night: str
    visits: tuple[Visit, ...]
    pieces: tuple[Piece, ...] = ()
    is_heldout: bool = False
    is_forgotten: bool = False
    corpora: tuple[str, ...] = ()
    models: tuple[ModelUse, ...] = ()


@dataclass(frozen=True)
class Lineage:
    """Reads one workspace; opens each manifest at most once."""

    workspace: Workspace

    @cached_property
    def corpora(self) -> list[Corpus]:
        return self._published(Corpus)

    @cached_property
    def checkpoints(self) -> dict[str, Checkpoint]:
        return {c.address: c for c in self._published(Checkpoint)}

    @cached_property
    def models(self) -> list[ModelFolder]:
        return self._published(ModelFolder)

    @cached_property
    def nights(self) -> dict[str, NightData]:
        """Each night's data as the newest snapshot of that night has it."""
        return {night.night: night for corpus in self.corpora for night in corpus.nights}

    @cached_property
    def versions(self) -> dict[str, str]:
        """Address of a model -> its version in the registry."""
        found = {}
        for release in self._published(Release):
            candidate = release.parent("candidate")
            if candidate is not None:
                found[candidate.address] = release.model_version
        return found

    @cached_property
    def champion(self) -> str:
        champion = champion_now(self.workspace)
        return champion.address if champion else ""

    def load(self, kind: type[H], address: str) -> H:
        return kind.load(self.workspace.at(address))

    def _published(self, kind: type[H]) -> list[H]:
        """All finished outputs of a kind, by night, then by time of publishing. One that is damaged is left out."""
        found: list[tuple[str, float, H]] = []
        for path in self.workspace.at(kind.kind).glob(f"*/{MANIFEST}"):
            try:
                handle = kind.load(path.parent)
            except DataError:
                continue
            found.append((handle.night, path.stat().st_mtime, handle))
        return [handle for *_, handle in sorted(found, key=lambda entry: entry[:2])]

    def night_tables(self, night: NightData) -> tuple[Documents, TokenShards]:
        """The documents that were kept, and their sequences."""
        return self.load(Documents, night.unique.address), self.load(TokenShards, night.tokens.address)

    def chain(self, night: NightData) -> list[Documents]:
        """The tables of documents of a night, from ingest to the one that was tokenized."""
        return list(self.chain_of(self.load(Documents, night.unique.address)))[::-1]

    def chain_of(self, documents: Documents) -> Iterator[Documents]:
        yield documents
        before = documents.parent("documents")
        if before is not None:
            yield from self.chain_of(self.load(Documents, before.address))

    def all_chains(self) -> dict[str, list[Documents]]:
        """By night, newest outputs first in doubt; also of nights that ended before their snapshot."""
        chains = {night.night: self.chain(night) for night in self.nights.values()}
        for path in sorted((self.workspace.root / "nights").glob("*.json")):
            outputs = self.workspace.record(path.stem).outputs
            if path.stem not in chains:
                steps = [entry.address for entry in outputs.values() if entry.address.startswith("documents/")]
                chains[path.stem] = [self.load(Documents, address) for address in steps]
        return dict(sorted(chains.items()))

    def find_document(self, name: str) -> str:
        """The document id that `name` means: an id, its first 6 or more digits, or a glob over `file@place`.

        Raises: RequestError if nothing or more than one document answers to it.
        """
        found: dict[str, str] = {}
        for chain in self.all_chains().values():
            for part in ("data", "rejects") if chain else ():
                found.update(_named(chain[0], part, name))
        if len(found) == 1:
            return next(iter(found))
        if not found:
            raise RequestError(
                f"document {name!r}: no night of {self.workspace.name} has read it; wanted 6 or more digits of an id, or a "
                "glob like 'night-0.jsonl@*'"
            )
        some = ", ".join(f"{doc_id} ({origin})" for doc_id, origin in sorted(found.items())[:SHOWN])
        raise RequestError(f"document {name!r} is one of {len(found)}: {some}{' ...' if len(found) > SHOWN else ''}")

    def trails(self, doc_id: str) -> list[DocumentTrail]:
        """The way of a document through every night that read it. An id that is an origin stands for a text that never
        became one."""
        trails = []
        for night, chain in self.all_chains().items():
            visits = tuple(visit for documents in chain for visit in visits_of(documents, doc_id))
            if visits:
                trails.append(self._trail(doc_id, night, visits))
        return trails

    def _trail(self, doc_id: str, night: str, visits: tuple[Visit, ...]) -> DocumentTrail:
        data = self.nights.get(night)
        if data is None:
            return DocumentTrail(doc_id=doc_id, night=night, visits=visits)
        tokens = self.load(TokenShards, data.tokens.address)
        pieces = tuple(pieces_of(night, tokens, {doc_id}))
        holding = [c for c in self.corpora if any(n.tokens.address == tokens.address for n in c.nights)]
        return DocumentTrail(
            doc_id=doc_id,
            night=night,
            visits=visits,
            pieces=pieces,
            is_heldout=doc_id in rows_of(tokens, "heldout", ["doc_id"])[0],
            is_forgotten=bool(self.corpora) and doc_id in rows_of(self.corpora[-1], "forgotten", ["doc_id"])[0],
            corpora=tuple(c.address for c in holding),
            models=tuple(self.models_that_drew(pieces)) if pieces else (),
        )

    def sequence(self, night: str, seq_id: int) -> list[Piece]:
        """Raises: RequestError if there is no such night or sequence."""
        if night not in self.nights:
            raise RequestError(f"night {night!r}: {self.workspace.name} has {', '.join(self.nights) or 'none'}")
        tokens = self.load(TokenShards, self.nights[night].tokens.address)
        if not 0 <= seq_id < tokens.num_rows:
            raise RequestError(f"sequence {seq_id}: night {night} has 0 to {tokens.num_rows - 1}")
        table = scan(tokens, "data", ["seq_id", "doc_ids", "doc_lengths"], pc.field("seq_id") == seq_id)
        return list(_pieces(night, table.to_pylist()))

    def find_model(self, name: str) -> ModelFolder:
        """By address, version of the registry, night, or `champion`. Raises: RequestError."""
        for model in reversed(self.models):
            names = {model.address, model.address.rpartition("/")[2], self.versions.get(model.address, model.address)}
            if name in names or (name == "champion" and model.address == self.champion):
                return model
            if name == model.night and model.step == "export":
                return model
        known = ", ".join(f"{v} ({a})" for a, v in sorted(self.versions.items(), key=lambda entry: entry[1]))
        raise RequestError(f"model {name!r}: wanted champion, a night, an address or a version: {known or 'none yet'}")

    def training_of(self, model: ModelFolder) -> list[Checkpoint]:
        """The trainings behind a model, its own first, then those it went on from."""
        found: list[Checkpoint] = []
        while True:
            checkpoint = model.parent("checkpoint")
            dense = model.parent("model")
            if checkpoint is not None and checkpoint.address in self.checkpoints:
                found.append(self.checkpoints[checkpoint.address])
                before = found[-1].parent("champion") or found[-1].parent("start")  # start: a candidate's recovery
            else:
                before = dense  # a compressed model: of the dense one it was made from
            known = {m.address: m for m in self.models}
            if before is None or before.address not in known:
                return found
            model = known[before.address]

    def models_that_drew(self, pieces: Iterable[Piece]) -> Iterator[ModelUse]:
        """Every model that drew a sequence with one of these pieces, in its own training or in one it went on from."""
        from tasks.draws import draws_in

        wanted = list(pieces)
        by_checkpoint = {address: draws_in(self, c, wanted) for address, c in self.checkpoints.items()}
        for model in self.models:
            counts = [by_checkpoint[checkpoint.address] for checkpoint in self.training_of(model)]
            known = [draw for draw in counts if draw is not None]
            draws = None if len(known) < len(counts) else sum(draw.count for draw in known)
            if draws == 0:
                continue
            yield ModelUse(
                night=model.night,
                address=model.address,
                version=self.versions.get(model.address, ""),
                is_champion=model.address == self.champion,
                draws=draws,
                first_step=next((draw.first_step for draw in reversed(known) if draw.count), None),
            )


def visits_of(documents: Documents, doc_id: str) -> Iterator[Visit]:
    """The rows of one step's two tables that are of this document (or, for a text without an id, of this origin)."""
    by = pc.field("doc_id") == doc_id if HEX.fullmatch(doc_id) else pc.field("origin") == doc_id
    for row in scan(documents, "data", ["source", "origin"], by).to_pylist():
        yield Visit(step=documents.step, address=documents.address, state="kept", **row)
    names = ["source", "origin", "reason", "value", "threshold", "detail", "rule_version"]
    for row in scan(documents, "rejects", names, by).to_pylist():
        yield Visit(step=documents.step, address=documents.address, state="rejected", **row)


def _named(documents: Documents, part: str, name: str) -> Iterator[tuple[str, str]]:
    """(document id, or its origin if it has none; origin) of the rows that `name` stands for."""
    columns = ["doc_id", "origin"]
    by_id = HEX.fullmatch(name) is not None
    where = None
    if by_id:
        ids = pc.field("doc_id")
        where = ids == name if len(name) == ID_DIGITS else pc.starts_with(ids, name)
    for row in scan(documents, part, columns, where).to_pylist():
        if by_id or is_origin(row["origin"], name):
            yield row["doc_id"] or row["origin"], row["origin"]


def pieces_of(night: str, tokens: TokenShards, doc_ids: set[str]) -> Iterator[Piece]:
    """Where these documents lie in the packed sequences of a night."""
    for path in tokens.paths():
        kind = "orc" if path.endswith(".orc") else "parquet"
        names = ["seq_id", "doc_ids", "doc_lengths"]
        for batch in dataset.dataset(path, format=kind).to_batches(columns=names, use_threads=False):
            flat = pc.is_in(batch.column("doc_ids").flatten(), value_set=_strings(doc_ids))
            rows = pc.unique(pc.list_parent_indices(batch.column("doc_ids")).filter(flat))
            for piece in _pieces(night, batch.take(rows).to_pylist()):
                if piece.doc_id in doc_ids:
                    yield piece


def _pieces(night: str, rows: list[dict[str, Any]]) -> Iterator[Piece]:
    for row in rows:
        first = 0
        for place, (doc_id, length) in enumerate(zip(row["doc_ids"], row["doc_lengths"], strict=True)):
            yield Piece(night=night, seq_id=row["seq_id"], place=place, doc_id=doc_id, first=first, stop=first + length)
            first += length


def _strings(values: set[str]) -> Any:
    import pyarrow as pa

    return pa.array(sorted(values), pa.string())


def scan(handle: Handle, part: str, columns: list[str], where: Any = None) -> Any:
    """Some columns of the rows that pass `where`, as an Arrow table. Row groups without such a row are not read."""
    import pyarrow as pa

    paths = handle.paths(part)
    if not paths:
        return pa.table({name: [] for name in columns})
    kind = "orc" if paths[0].endswith(".orc") else "parquet"
    return dataset.dataset(paths, format=kind).to_table(columns=columns, filter=where, use_threads=False)


def rows_of(handle: Handle, part: str, columns: list[str]) -> list[list[Any]]:
    table = scan(handle, part, columns)
    return [table.column(name).to_pylist() for name in columns]
