"""Lineage and forgetting on a small workspace made by hand: two nights, real manifests, the real snapshot step."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.cli import main
from spark_jobs.errors import RequestError
from spark_jobs.manifests import (
    MANIFEST,
    CheckReport,
    Corpus,
    Documents,
    FileEntry,
    Handle,
    Parent,
    TokenizerFiles,
    TokenShards,
    file_sha256,
)
from spark_jobs.snapshot import forgotten_ids, is_origin
from spark_jobs.specs import ForgetRule, SnapshotSpec
from tasks.data_steps import list_forgotten, snapshot_corpus
from tasks.engine import Engine, engine_in_use
from tasks.fingerprints import code_digests
from tasks.forgotten import forget_rules, read_forgotten
from tasks.lineage import Lineage
from tasks.workspace import Workspace
from training.evaluate.documents import heldout_documents
from training.manifests import Checkpoint, ModelFolder, Release
from training.pretrain.sequence_order import corpus_row_groups, row_facts
from training.pretrain.token_shards import Sequences

H = TypeVar("H", bound=Handle)
FIRST, SECOND = "2026-01-01", "2026-01-02"
SEQ_LEN = 8


def doc(number: int) -> str:
    return f"{number:032x}"


def publish(
    workspace: Workspace, kind: type[H], address: str, night: str, inputs: dict[str, Handle], **fields: Any
) -> H:
    folder = workspace.at(address)
    folder.mkdir(parents=True, exist_ok=True)
    files = tuple(
        FileEntry(path=str(p.relative_to(folder)), size_bytes=p.stat().st_size, sha256=file_sha256(p))
        for p in sorted(folder.rglob("*.parquet"))
    )
    step, _, key = folder.name.rpartition("-")
    parents = tuple(Parent(role=r, address=h.address, digest=h.digest) for r, h in inputs.items())
    base = {"format": "parquet", "num_rows": 1, "spec": {}, "code": {}, "libraries": {}}
    handle = kind(step=step, key=key, night=night, files=files, parents=parents, **(base | fields))
    (folder / MANIFEST).write_text(handle.canonical())
    return kind.load(folder)


def key(night: str) -> str:
    return night.replace("-", "")


def write(workspace: Workspace, address: str, part: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    folder = workspace.at(address) / part
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "part-00000.parquet")


DOCUMENTS = pa.schema(
    [("doc_id", pa.string()), ("text", pa.string()), ("source", pa.string()), ("origin", pa.string())]
)
REJECTS = pa.schema(
    [(n, pa.string()) for n in ("doc_id", "source", "origin", "reason", "detail", "rule_version")]
    + [("value", pa.float64()), ("threshold", pa.float64())]
)
SEQUENCES = pa.schema(
    [("seq_id", pa.int64()), ("tokens", pa.list_(pa.int32())), ("doc_lengths", pa.list_(pa.int32())),
     ("doc_ids", pa.list_(pa.string()))]
)  # fmt: skip


def documents(
    workspace: Workspace, step: str, night: str, kept: list[int], rejected: list[dict[str, Any]], **inputs: Handle
) -> Documents:
    address = f"documents/{step}-{key(night)}"
    rows = [
        {"doc_id": doc(n), "text": f"text {n}", "source": f"s{n % 2}", "origin": f"a/{night}.jsonl@{n}"} for n in kept
    ]
    write(workspace, address, "data", rows, DOCUMENTS)
    write(workspace, address, "rejects", rejected, REJECTS)
    return publish(workspace, Documents, address, night, inputs)


def reject(number: int, night: str, reason: str, detail: str = "") -> dict[str, Any]:
    return {
        "doc_id": doc(number) if number >= 0 else "", "source": "s1", "origin": f"a/{night}.jsonl@{number}", "reason": reason,
        "value": 0.25, "threshold": 0.5, "detail": detail, "rule_version": "r1",
    }  # fmt: skip


def sequences(layout: list[list[tuple[int, int]]]) -> list[dict[str, Any]]:
    """layout: for each sequence its (document, tokens)."""
    return [
        {
            "seq_id": i,
            "tokens": [n for n, count in row for _ in range(count)],
            "doc_lengths": [count for _, count in row],
            "doc_ids": [doc(n) for n, _ in row],
        }
        for i, row in enumerate(layout)
    ]


class World:
    """Night 1: document 7 fails a rule, 8 is a copy of 1, 9 was unreadable; 1 to 5 are trained on, 6 is held out."""

    def __init__(self) -> None:
        self.workspace = Workspace.of("tiny")
        self.tokenizer = publish(
            self.workspace,
            TokenizerFiles,
            "tokenizers/tokenizer-1",
            FIRST,
            {},
            vocab_size=9,
            bos_id=0,
            eos_id=1,
            pad_id=2,
        )
        self.first = self.night(FIRST, [1, 2, 3, 4, 5, 6], [[(1, 8)], [(2, 3), (3, 4)], [(4, 5), (5, 3)]], None)
        self.model = self.train(FIRST, self.first, None)

    def night(
        self, night: str, kept: list[int], layout: list[list[tuple[int, int]]], history: Corpus | None, **spec: Any
    ) -> Corpus:
        w = self.workspace
        raw = documents(w, "ingest", night, [*kept, 7, 8], [reject(-9, night, "bad_json")])
        clean = documents(w, "clean", night, [*kept, 8], [reject(7, night, "too_few_words")], documents=raw)
        copy = reject(8, night, "near_duplicate", f"kept {doc(1)}")
        unique = documents(w, "dedup", night, kept, [copy], documents=clean)
        address = f"tokens/tokenize-{key(night)}"
        write(w, address, "data", sequences(layout), SEQUENCES)
        write(w, address, "heldout", [{"doc_id": doc(6), "text": "six", "source": "s0"}], DOCUMENTS.remove(3))
        tokens = publish(
            w, TokenShards, address, night, {"documents": unique}, num_rows=len(layout), seq_len=SEQ_LEN, vocab_size=9,
            num_tokens=sum(n for row in layout for _, n in row), num_heldout=1, tokenizer=self.tokenizer.address,
        )  # fmt: skip
        check = publish(
            w,
            CheckReport,
            f"checks/check-tokens-{key(night)}",
            night,
            {},
            checked=address,
            success=True,
            num_expectations=1,
        )
        return self.snapshot(night, raw, unique, tokens, check, history, **spec)

    def snapshot(self, night: str, *inputs: Any, **spec: Any) -> Corpus:
        with engine_in_use(Engine(self.workspace, night)):
            raw, unique, tokens, check, history = inputs
            self.forgotten = list_forgotten(history)
            return snapshot_corpus(raw, unique, tokens, self.tokenizer, check, history, SnapshotSpec(**spec))

    def train(self, night: str, corpus: Corpus, champion: ModelFolder | None) -> ModelFolder:
        inputs: dict[str, Handle] = {"corpus": corpus} | ({"champion": champion} if champion else {})
        checkpoint = publish(
            self.workspace, Checkpoint, f"checkpoints/train-{key(night)}", night, inputs, model_type="llama", num_parameters=1,
            num_steps=2, num_tokens=32, final_loss=1.0, spec={"sequences_per_step": 2, "seed": 0},
            resumed_from=champion.address if champion else "", code=code_digests("training.pretrain.sequence_order"),
        )  # fmt: skip
        model = publish(
            self.workspace, ModelFolder, f"models/export-{key(night)}", night, {"checkpoint": checkpoint}, scheme="dense",
            num_parameters=1, weight_bytes=4, effective_bits=32.0,
        )  # fmt: skip
        publish(
            self.workspace, Release, f"releases/release-{key(night)}", night, {"candidate": model}, decision="kept",
            model_name="tiny", model_version=str(int(night[-2:])), champion="",
        )  # fmt: skip
        return model


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("NIGHTMILL_HOME", str(tmp_path))
    return World()


TINY = str(Path(__file__).parent.parent / "fixtures" / "tiny.yaml")


def test_trained_document_leads_from_its_file_to_the_model(world: World) -> None:
    (trail,) = Lineage(world.workspace).trails(doc(3))
    assert [(v.step, v.state) for v in trail.visits] == [("ingest", "kept"), ("clean", "kept"), ("dedup", "kept")]
    assert trail.visits[0].origin == f"a/{FIRST}.jsonl@3"
    assert [(p.seq_id, p.first, p.stop) for p in trail.pieces] == [(1, 3, 7)]
    assert trail.corpora == (world.first.address,)
    assert [(m.address, m.version) for m in trail.models] == [(world.model.address, "1")]


def test_draws_are_those_of_the_training_reader(world: World) -> None:
    groups = corpus_row_groups(world.first)
    reader = Sequences(groups, SEQ_LEN, 0, 0.5, 0)
    positions = [p for p in range(4) if reader.row_at(p) == 1]
    (use,) = Lineage(world.workspace).trails(doc(3))[0].models
    assert use.draws == len(positions) > 0
    assert use.first_step == positions[0] // 2


@pytest.mark.parametrize(("number", "step", "reason"), [(7, "clean", "too_few_words"), (8, "dedup", "near_duplicate")])
def test_rejected_document_says_by_which_rule_and_value(world: World, number: int, step: str, reason: str) -> None:
    (trail,) = Lineage(world.workspace).trails(doc(number))
    last = trail.visits[-1]
    assert (last.step, last.state, last.reason, last.value, last.threshold) == (step, "rejected", reason, 0.25, 0.5)
    assert trail.models == ()
    if number == 8:
        assert last.detail == f"kept {doc(1)}"


def test_held_out_document_is_never_trained_on(world: World) -> None:
    (trail,) = Lineage(world.workspace).trails(doc(6))
    assert trail.is_heldout
    assert trail.models == ()


@pytest.mark.parametrize(
    ("name", "found"),
    [(doc(5), doc(5)), (f"a/{FIRST}.jsonl@4", doc(4)), (f"*/{FIRST}.jsonl@-9", f"a/{FIRST}.jsonl@-9")],
)
def test_document_is_found_by_id_or_place(world: World, name: str, found: str) -> None:
    assert Lineage(world.workspace).find_document(name) == found


@pytest.mark.parametrize(("name", "words"), [("ffffff", "no night of tiny"), ("000000", "is one of 8: ")])
def test_unknown_or_ambiguous_document_is_refused(world: World, name: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        Lineage(world.workspace).find_document(name)


def test_every_trace_prints_for_people_and_as_json(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["doc", doc(2)], ["sequence", f"{FIRST}/2"], ["model", "1"], ["model", FIRST]):
        assert main(["trace", *arguments, TINY]) == 0
        assert main(["trace", *arguments, TINY, "--json"]) == 0
    printed = capsys.readouterr().out
    assert f"s1: a/{FIRST}.jsonl@5" in printed
    assert f"night {FIRST}: 3 sequences, 23 tokens of s0 (3 documents), s1 (3 documents)" in printed
    assert main(["trace", "sequence", "7", TINY]) == 2


def test_forgotten_document_leaves_training_scoring_and_history(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2, 6):
        assert main(["forget", "--doc", doc(number), "--why", "asked by its author", TINY]) == 0
    assert f"seen by {world.model.address}" in capsys.readouterr().out
    line = read_forgotten(world.workspace)[0]
    assert (line.documents, line.sequences, line.models) == (1, 1, (world.model.address,))
    assert line.why == "asked by its author"

    corpus = world.night(SECOND, [10, 11, 6], [[(10, 4), (11, 4)]], world.first)
    assert world.forgotten is not None
    assert corpus.num_forgotten == 3
    assert corpus.num_left_out == 1  # the sequence of document 1 alone
    groups = corpus_row_groups(corpus)
    reader = Sequences(groups, SEQ_LEN, 0, 100.0, 0, row_facts(corpus, groups))
    seen = [reader.read(reader.row_at(p)) for p in range(reader.num_per_epoch)]
    assert reader.num_per_epoch == 3
    assert {int(token) for tokens, _ in seen for token in tokens} == {3, 4, 5, 10, 11}
    assert all(len(tokens) == lengths.sum() for tokens, lengths in seen)
    with pytest.raises(Exception, match="no held-out documents"):
        heldout_documents(corpus, 10)

    later = world.train(SECOND, corpus, None)
    models = {m.address for m in Lineage(world.workspace).trails(doc(2))[0].models}
    assert models == {world.model.address}
    assert later.address in {m.address for m in Lineage(world.workspace).trails(doc(3))[0].models}


def test_model_that_goes_on_from_another_has_seen_what_it_saw(world: World) -> None:
    main(["forget", "--doc", doc(2), TINY])
    corpus = world.night(SECOND, [10, 11], [[(10, 4), (11, 4)]], world.first)
    later = world.train(SECOND, corpus, world.model)
    models = {m.address for m in Lineage(world.workspace).trails(doc(2))[0].models}
    assert models == {world.model.address, later.address}


def test_forgotten_source_also_leaves_what_comes_later(world: World) -> None:
    assert main(["forget", "--source", "s1", TINY]) == 0
    corpus = world.night(SECOND, [10, 11], [[(10, 4), (11, 4)]], world.first)
    groups = corpus_row_groups(corpus)
    reader = Sequences(groups, SEQ_LEN, 0, 100.0, 0, row_facts(corpus, groups))
    rows = {int(token) for p in range(reader.num_per_epoch) for token in reader.read(reader.row_at(p))[0]}
    assert rows == {2, 4, 10}


def test_request_is_written_once_and_a_dry_run_writes_nothing(world: World) -> None:
    before = world.first.digest
    assert main(["forget", "--origin", f"a/{FIRST}.jsonl", "--dry-run", TINY]) == 0
    assert read_forgotten(world.workspace) == []
    for _ in range(2):
        assert main(["forget", "--origin", f"a/{FIRST}.jsonl", TINY]) == 0
    assert forget_rules(world.workspace) == (ForgetRule(by="origin", value=f"a/{FIRST}.jsonl"),)
    assert len(read_forgotten(world.workspace)) == 1
    assert Corpus.load(world.first.uri).digest == before  # what is published stays
    assert main(["forget", "--source", "nothing", TINY]) == 2


def test_source_weights_change_how_often_its_sequences_are_drawn(world: World) -> None:
    corpus = world.night(SECOND, [10, 11], [[(10, 8)], [(11, 8)], [(10, 4), (11, 4)]], None, weights={"s0": 2, "s1": 0})
    told = {
        row["seq_id"]: row["weight"] for path in corpus.paths("sequences") for row in pq.read_table(path).to_pylist()
    }
    assert told == {0: 2.0, 1: 0.0}  # the mixed one has mean 1
    groups = corpus_row_groups(corpus)
    reader = Sequences(groups, SEQ_LEN, 0, 0.5, 0, row_facts(corpus, groups))
    assert sorted(reader.row_at(p) for p in range(reader.num_per_epoch)) == [0, 0, 2]


def test_snapshot_without_rules_or_weights_has_no_extra_file_and_field(world: World) -> None:
    assert world.first.paths("sequences") == world.first.paths("forgotten") == []
    assert "num_forgotten" not in (Path(world.first.uri) / MANIFEST).read_text()


@pytest.mark.parametrize(
    ("origin", "glob", "matches"),
    [("a/b.jsonl@7", "a/*", True), ("a/b.jsonl@7", "a/b.jsonl", True), ("a/b.jsonl@7", "b.jsonl", False),
     ("a/b.jsonl@7", "*@7", True), ("https://x.org/p", "https://x.org/*", True),
     ("a.warc.gz@7 https://x.org/@me", "https://x.org/*", True), ("a.warc.gz@7 https://x.org/@me", "a.warc.gz", True),
     ("a.warc.gz@7 https://x.org/@me", "https://y.org/*", False), ("d@1.jsonl@7", "d@1.jsonl", True)],
)  # fmt: skip
def test_origin_globs(origin: str, glob: str, matches: bool) -> None:
    assert is_origin(origin, glob) is matches


def test_ids_to_forget_do_not_depend_on_the_order_of_rules(world: World) -> None:
    unique = [Documents.load(world.workspace.at(f"documents/dedup-{key(FIRST)}"))]
    rules = [ForgetRule(by="source", value="s1"), ForgetRule(by="doc", value=doc(2))]
    assert forgotten_ids(unique, rules).to_pylist() == [doc(1), doc(2), doc(3), doc(5)]
    assert forgotten_ids(unique, rules[::-1]) == forgotten_ids(unique, rules)
