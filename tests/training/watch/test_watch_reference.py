"""The training snapshot: counts over all shards, a draw, and what the model makes of held-out texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from spark_jobs.errors import DataError
from spark_jobs.requests import Request
from training.evaluate.documents import cut_document, heldout_documents, load_tokenizer
from training.evaluate.perplexity import score_documents
from training.manifests import ModelFolder, WatchReference
from training.model_folder import load_model
from training.watch.bins import LENGTH_EDGES, bucket_counts
from training.watch.corpus_counts import count_corpus
from training.watch.reference import load
from training.watch.snapshot import run, token_nats

NIGHT = "2026-01-01"
SPEC = {
    "documents": 100,
    "heldout_documents": 12,
    "max_tokens": 40,
    "answers": 6,
    "beginning_tokens": 8,
    "answer_tokens": 16,
}


@pytest.fixture(scope="module")
def world(make, tmp_path_factory):
    return make.world(tmp_path_factory.mktemp("watched"), [make.texts(150, 5), make.texts(60, 6)], 300, 64)


def small_llama(make, root: Path, tokenizer, vocab_size: int = 0) -> ModelFolder:
    folder = root / "models" / f"export-{vocab_size:04d}"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size or tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, max_position_embeddings=64, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "data")
    PreTrainedTokenizerFast.from_pretrained(tokenizer.folder()).save_pretrained(folder / "data")
    return make.publish(
        ModelFolder, folder, NIGHT, len(model.state_dict()), format="safetensors", scheme="dense",
        num_parameters=model.num_parameters(), weight_bytes=1, effective_bits=32.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(make, world) -> ModelFolder:
    return small_llama(make, world.root, world.tokenizer)


def snapshot(make, world, model, folder: Path, **spec) -> WatchReference:
    request = Request(
        job="watch-reference",
        spec=SPEC | spec,
        inputs=world.inputs() | {"model": model.uri},
        out=str(folder),
        night=NIGHT,
    )
    return make.publish_outcome(WatchReference, folder, NIGHT, run(request))


@pytest.fixture(scope="module")
def published(make, world, model) -> WatchReference:
    return snapshot(make, world, model, world.root / "watch-references" / "watch-reference-1")


def training_documents(world, nights: int = 2) -> list[np.ndarray]:
    found = []
    for night in world.corpus.nights[:nights]:
        for path in sorted(Path(world.corpus.at(night.tokens.address)).glob("data/*.parquet")):
            for row in pq.read_table(path).to_pylist():
                pieces = np.split(np.array(row["tokens"]), np.cumsum(row["doc_lengths"])[:-1])
                found += [piece[piece > 2] for piece in pieces if (piece > 2).any()]
    return found


def test_counts_are_those_of_every_document_of_every_night(world):
    counted = count_corpus(world.corpus, 100, 0, (0, 1, 2))
    documents = training_documents(world)
    assert (counted.num_documents, counted.num_tokens) == (len(documents), sum(map(len, documents)))
    assert np.array_equal(counted.buckets, bucket_counts(np.concatenate(documents)))
    lengths = np.histogram([len(d) for d in documents], [*LENGTH_EDGES, 2**40])[0]
    assert np.array_equal(counted.lengths, lengths)


def test_draw_is_of_the_seed_alone_and_each_document_once(world):
    first, again, other = (count_corpus(world.corpus, 30, seed, (0, 1, 2)).drawn for seed in (7, 7, 8))
    assert [d.tolist() for d in first] == [d.tolist() for d in again]
    assert [d.tolist() for d in first] != [d.tolist() for d in other]
    everything = [d.tolist() for d in training_documents(world)]
    assert all(everything.count(d.tolist()) >= [e.tolist() for e in first].count(d.tolist()) for d in first)
    assert len(count_corpus(world.corpus, 10_000, 0, (0, 1, 2)).drawn) == len(everything)


def test_sequences_never_drawn_are_not_counted_and_heavier_ones_count_more(make, world):
    """The corpus as a snapshot with weights of sources writes it."""
    rows = pq.read_table(Path(world.corpus.at(world.corpus.nights[1].tokens.address)) / "data").num_rows
    table = pa.table(
        {
            "night": [world.corpus.nights[1].night] * rows,
            "seq_id": pa.array(range(rows), pa.int64()),
            "pieces": pa.array([[]] * rows, pa.list_(pa.int32())),
            "weight": [2.0 if i % 2 else 0.0 for i in range(rows)],
        }
    )
    folder = world.root / "corpus" / "corpus-weighted"
    (folder / "sequences").mkdir(parents=True)
    pq.write_table(table, folder / "sequences" / "part-00000.parquet")
    fields = {name: getattr(world.corpus, name) for name in ("nights", "tokenizer", "seq_len", "vocab_size")}
    counted = count_corpus(make.publish(type(world.corpus), folder, NIGHT, rows, **fields), 10_000, 0, (0, 1, 2))
    plain = count_corpus(world.corpus, 10_000, 0, (0, 1, 2))
    first = len(training_documents(world, nights=1))
    assert plain.num_documents > counted.num_documents > first
    assert counted.lengths.sum() == first + 2 * (counted.num_documents - first)
    assert len(counted.drawn) == counted.num_documents


def test_published_snapshot_adds_up(published, world):
    counts, texts = load(published)
    assert published.num_rows == len(texts.buckets) == sum(counts.prompt_bytes) == sum(counts.languages.values()) == 100
    assert sum(counts.prompt_tokens) == counts.num_documents == published.num_documents
    assert published.num_scored == len(texts.nats) == 12
    assert sum(counts.finish.values()) == published.num_answers == sum(counts.answer_tokens) <= 6
    assert set(counts.special_buckets) == set(np.flatnonzero(bucket_counts([0, 1, 2])))
    assert sum(map(len, texts.buckets)) <= counts.num_tokens


def test_snapshot_made_twice_has_the_same_bytes(make, world, model, published):
    again = snapshot(make, world, model, world.root / "watch-references" / "watch-reference-2")
    assert [f.sha256 for f in again.files] == [f.sha256 for f in published.files]


def test_nats_by_token_sum_to_those_of_the_evaluation(world, model, published):
    encoder = load_tokenizer(Path(world.tokenizer.folder()))
    held = [cut_document(d, encoder, 40).ids for d in heldout_documents(world.corpus, 12)]
    sums = sorted(score_documents(load_model(model), held, world.tokenizer.bos_id, 64, 8, 8192))
    _, texts = load(published)
    assert sorted(float(n.sum(dtype=np.float64)) for n in texts.nats) == pytest.approx(sums, rel=1e-5)


def test_nats_do_not_depend_on_neighbours_in_a_batch(model):
    net = load_model(model)
    documents = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3], [4], [10] * 30]
    together = {len(n): n for n in token_nats(net, documents, 1)}
    for ids in documents:
        (alone,) = token_nats(net, [ids], 1)
        assert together[len(ids)] == pytest.approx(alone, abs=1e-5)


def test_document_longer_than_the_model_sees_is_cut(model):
    (nats,) = token_nats(load_model(model), [[5] * 500], 1)
    assert len(nats) == 63


def test_snapshot_of_a_model_with_another_vocabulary_is_refused(make, world, tmp_path):
    other = small_llama(make, tmp_path, world.tokenizer, 200)
    request = Request(
        job="watch-reference",
        spec=SPEC,
        inputs=world.inputs() | {"model": other.uri},
        out=str(tmp_path / "out"),
        night=NIGHT,
    )
    with pytest.raises(DataError, match="200 token ids"):
        run(request)


def test_snapshot_keeps_no_text(published, world):
    stored = b"".join(path.read_bytes() for path in Path(published.folder()).iterdir())
    encoder = Tokenizer.from_file(str(Path(world.tokenizer.folder()) / "tokenizer.json"))
    words = {w for d in training_documents(world)[:40] for w in encoder.decode(d.tolist()).split() if len(w) > 6}
    assert words
    assert not any(word.encode() in stored for word in words)
