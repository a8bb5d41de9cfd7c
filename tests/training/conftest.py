"""A small published world to train on: tokenizer, token shards, corpus, all with real manifests."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from pyarrow import orc
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.multiprocessing.spawn import start_processes

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
from training.pretrain.mesh import Ranks

# One thread: no OpenMP pool, so that tests may fork ranks from this process.
torch.set_num_threads(1)
SET_NUM_THREADS = torch.set_num_threads

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


class Engine:
    """The application `python -m training.run`, asked one request at a time."""

    def __init__(self, **environment: str) -> None:
        answers, writer = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "training.run"], stdin=subprocess.PIPE, pass_fds=[writer], text=True,
            env=os.environ | environment | {"NIGHTMILL_ANSWER_FD": str(writer)},
        )  # fmt: skip
        os.close(writer)
        self.answers = os.fdopen(answers)

    def start(self, job: str, spec: dict[str, Any], out: Path, **inputs: str) -> Iterator[dict[str, Any]]:
        """Send a request; yields its events, then its outcome or failure."""
        out.mkdir(parents=True, exist_ok=True)
        request = {"job": job, "spec": spec, "inputs": inputs, "out": str(out), "night": "2026-01-01"}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> Iterator[dict[str, Any]]:
        for line in self.answers:
            message = json.loads(line)
            yield message
            if "event" not in message:
                return

    def fail(self, job: str, spec: dict[str, Any], out: Path, **inputs: str) -> tuple[str, str]:
        """(error class, message) of a job that must fail."""
        *_, last = self.start(job, spec, out, **inputs)
        assert "failure" in last, last
        return last["failure"]["error"], last["failure"]["message"]

    def run(self, kind: type[H], job: str, spec: dict[str, Any], out: Path, **inputs: str) -> H:
        """Do the job and publish what it wrote."""
        *_, last = self.start(job, spec, out, **inputs)
        assert "outcome" in last, last
        return publish_outcome(kind, out, "2026-01-01", Outcome.model_validate(last["outcome"]))


def close(app: Engine) -> None:
    assert app.process.stdin is not None
    app.process.stdin.close()
    assert app.process.wait(timeout=30) == 0
    app.answers.close()


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    app = Engine()
    yield app
    close(app)


@pytest.fixture(scope="module")
def engine_told() -> Iterator[Callable[..., Engine]]:
    """Starts an engine of its own for a module, with variables of the machine."""
    started: list[Engine] = []

    def start(**environment: str) -> Engine:
        started.append(Engine(**environment))
        return started[-1]

    yield start
    for app in started:
        close(app)


@pytest.fixture(autouse=True)
def no_thread_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job run in this process takes as many threads as it may; a pool of them would hang every rank forked later."""
    monkeypatch.setattr("torch.set_num_threads", lambda number: SET_NUM_THREADS(1))


def _rank(index: int, function: Callable[[Ranks], Any], world_size: int, store: str, results: str) -> None:
    os.environ.update(
        RANK=str(index), LOCAL_RANK=str(index), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size)
    )
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=index, world_size=world_size)
    torch.save(function(Ranks(index, world_size, torch.device("cpu"))), f"{results}-{index}")
    dist.destroy_process_group()


@pytest.fixture
def run_ranks(tmp_path: Path) -> Callable[[Callable[[Ranks], Any], int], list[Any]]:
    """Run a function on n forked gloo ranks and return what each returned, in order of rank."""

    def run(function: Callable[[Ranks], Any], world_size: int) -> list[Any]:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        arguments = (function, world_size, str(folder / "store"), str(folder / "result"))
        start_processes(_rank, arguments, world_size, start_method="fork")
        return [torch.load(folder / f"result-{rank}", weights_only=True) for rank in range(world_size)]

    return run
