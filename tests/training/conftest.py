"""A small published world to train on: tokenizer, token shards, corpus, all with real manifests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import orc
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from spark_jobs.manifests import (
    MANIFEST,
    Corpus,
    FileEntry,
    Handle,
    NightData,
    Parent,
    TokenizerFiles,
    TokenShards,
    file_sha256,
)
from spark_jobs.requests import Outcome

H = TypeVar("H", bound=Handle)

SPECIAL = ["<pad>", "<bos>", "<eos>"]


def publish(kind: type[H], folder: Path, night: str, num_rows: int, **fields: Any) -> H:
    """Write the manifest of what lies in `folder`, as the step engine would, and load it."""
    files = tuple(
        FileEntry(path=str(p.relative_to(folder)), size_bytes=p.stat().st_size, sha256=file_sha256(p))
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "scratch" not in p.relative_to(folder).parts
    )
    step, _, key = folder.name.rpartition("-")
    fields = {"format": "parquet", "spec": {}, "code": {}, "libraries": {}} | fields
    handle = kind(step=step, key=key, night=night, num_rows=num_rows, files=files, **fields)
    (folder / MANIFEST).write_text(handle.canonical())
    return kind.load(folder)


def publish_outcome(kind: type[H], folder: Path, night: str, outcome: Outcome, **fields: Any) -> H:
    fields = outcome.fields | {"format": outcome.format} | fields
    return publish(kind, folder, night, outcome.num_rows, **fields)


def parent(role: str, handle: Handle) -> Parent:
    return Parent(role=role, address=handle.address, digest=handle.digest)


@dataclass(frozen=True)
class World:
    """A workspace with one tokenizer and a night of shards a text list."""

    root: Path
    tokenizer: TokenizerFiles
    corpus: Corpus

    def inputs(self) -> dict[str, str]:
        return {"corpus": self.corpus.uri, "tokenizer": self.tokenizer.uri}


def make_tokenizer(root: Path, texts: Iterable[str], vocab_size: int) -> TokenizerFiles:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder = root / "tokenizers" / "tokenizer-0000"
    (folder / "data").mkdir(parents=True)
    tokenizer.save(str(folder / "data" / "tokenizer.json"))
    (folder / "data" / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>",'
        ' "pad_token": "<pad>", "clean_up_tokenization_spaces": false}\n'
    )
    return publish(
        TokenizerFiles, folder, "2026-01-01", tokenizer.get_vocab_size(),
        vocab_size=tokenizer.get_vocab_size(), pad_id=0, bos_id=1, eos_id=2,
    )  # fmt: skip


def pack(documents: list[list[int]], seq_len: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """First-fit in arrival order; documents longer than a sequence are cut."""
    pieces = [d[i : i + seq_len] for d in documents for i in range(0, len(d), seq_len)]
    rows: list[tuple[list[int], list[int]]] = []
    open_rows: list[int] = []
    for piece in sorted(pieces, key=len, reverse=True):
        place = next((i for i in open_rows[-50:] if len(rows[i][0]) + len(piece) <= seq_len), None)
        if place is None:
            rows.append(([], []))
            place = len(rows) - 1
            open_rows.append(place)
        rows[place][0].extend(piece)
        rows[place][1].append(len(piece))
        if len(rows[place][0]) >= seq_len - 4:
            open_rows.remove(place)
    return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]


def make_shards(
    root: Path, texts: list[str], tokenizer: TokenizerFiles, night: str, seq_len: int,
    heldout_share: float = 0.1, row_group: int = 64, file_format: str = "parquet",
) -> TokenShards:  # fmt: skip
    encoder = Tokenizer.from_file(str(Path(tokenizer.folder()) / "tokenizer.json"))
    ids = [hashlib.sha256(t.encode()).hexdigest()[:32] for t in texts]
    held = [int(i[:8], 16) / 2**32 < heldout_share for i in ids]
    encoded = encoder.encode_batch([t for t, h in zip(texts, held, strict=True) if not h], add_special_tokens=False)
    rows = pack([[tokenizer.bos_id, *e.ids, tokenizer.eos_id] for e in encoded], seq_len, 0)
    folder = root / "tokens" / f"tokenize-{night.replace('-', '')}"
    (folder / "data").mkdir(parents=True)
    (folder / "heldout").mkdir()
    table = pa.table(
        {
            "seq_id": pa.array(range(len(rows)), pa.int64()),
            "tokens": pa.array([r[0] for r in rows], pa.list_(pa.int32())),
            "doc_lengths": pa.array([r[1] for r in rows], pa.list_(pa.int32())),
            "doc_ids": pa.array([[""] * len(r[1]) for r in rows], pa.list_(pa.string())),
        }
    )
    if file_format == "orc":
        orc.write_table(table, str(folder / "data" / "part-00000.orc"))
    else:
        pq.write_table(table, folder / "data" / "part-00000.parquet", row_group_size=row_group)
    kept = sorted((i, t) for i, t, h in zip(ids, texts, held, strict=True) if h)
    columns = {"doc_id": [i for i, _ in kept], "text": [t for _, t in kept], "source": ["test"] * len(kept)}
    pq.write_table(pa.table(columns), folder / "heldout" / "part-00000.parquet")
    return publish(
        TokenShards, folder, night, len(rows), seq_len=seq_len, vocab_size=tokenizer.vocab_size,
        num_tokens=sum(len(r[0]) for r in rows), num_heldout=len(kept), tokenizer=tokenizer.address,
    )  # fmt: skip


def make_corpus(root: Path, shards: list[TokenShards], tokenizer: TokenizerFiles, replay_ratio: float = 0.5) -> Corpus:
    folder = root / "corpus" / f"corpus-{len(shards):04d}"
    folder.mkdir(parents=True)
    nights = tuple(
        NightData(
            night=s.night, ingested=parent("ingested", s), unique=parent("unique", s), tokens=parent("tokens", s),
            num_sequences=s.num_rows, num_tokens=s.num_tokens, num_heldout=s.num_heldout,
        )
        for s in shards
    )  # fmt: skip
    return publish(
        Corpus, folder, shards[-1].night, len(shards), nights=nights, tokenizer=parent("tokenizer", tokenizer),
        seq_len=shards[0].seq_len, vocab_size=tokenizer.vocab_size, spec={"replay_ratio": replay_ratio},
    )  # fmt: skip


def make_world(root: Path, nights: list[list[str]], vocab_size: int, seq_len: int, **options: Any) -> World:
    tokenizer = make_tokenizer(root, [t for texts in nights for t in texts], vocab_size)
    shards = [
        make_shards(root, texts, tokenizer, f"2026-01-{n:02d}", seq_len, **options) for n, texts in enumerate(nights, 1)
    ]
    return World(root, tokenizer, make_corpus(root, shards, tokenizer))


def sample_texts(count: int, seed: int) -> list[str]:
    """Sentences with a grammar a tiny model can learn, and some multi-byte characters."""
    rng = np.random.default_rng(seed)
    subjects, verbs = ["the mill", "a night", "the café", "naïve grain"], ["grinds", "waits for", "weighs"]
    objects = ["rye", "wheat", "the 水 wheel", "old stones", "new flour"]

    def pick(words: list[str]) -> str:
        return words[int(rng.integers(len(words)))]

    return [
        f"{seed}.{i} "
        + " ".join(f"{pick(subjects)} {pick(verbs)} {pick(objects)}." for _ in range(rng.integers(3, 25)))
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two nights, sequences of 32 tokens, vocabulary 300."""
    return make_world(tmp_path_factory.mktemp("world"), [sample_texts(60, 1), sample_texts(20, 2)], 300, 32)


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """The builders above, for tests that need another world."""
    return SimpleNamespace(
        publish=publish,
        publish_outcome=publish_outcome,
        tokenizer=make_tokenizer,
        shards=make_shards,
        corpus=make_corpus,
        world=make_world,
        texts=sample_texts,
    )
