from __future__ import annotations

import json
import random
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import orc, parquet
from tokenizers import Tokenizer, models, pre_tokenizers

from spark_jobs import packing
from spark_jobs.encoder import TROUBLE, Encoder, agrees, text_of
from spark_jobs.int_columns import to_binary
from spark_jobs.tokenization import _piece_ends, end_rank, pack_table, unpacked
from spark_jobs.tokenizer import BOS, EOS, PAD, import_tokenizer, train_tokenizer

TEXTS = [topics[name] for name in sorted(topics)[:40]]
MODELS = ("bpe", "unigram", "wordpiece")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tokenizers")
    for model in MODELS:
        train_tokenizer(iter(TEXTS), 1000, model).save(str(folder / f"{model}.json"))
    return {model: str(folder / f"{model}.json") for model in MODELS}


@pytest.mark.parametrize("model", MODELS)
def test_every_text_comes_back_unchanged_from_each_model(paths: dict[str, str], model: str) -> None:
    encoder = Encoder(paths[model], is_fast=False)
    texts = [*TROUBLE, *TEXTS[:5], "x" * 70 + "##y " + "é" * 70]
    for text, ids in zip(texts, encoder.encode(texts), strict=True):
        assert encoder.reference.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("model", MODELS)
def test_vocabulary_is_no_larger_than_asked_and_knows_every_byte(paths: dict[str, str], model: str) -> None:
    vocabulary = Encoder(paths[model], is_fast=False).reference.get_vocab()
    assert 259 <= len(vocabulary) <= 1000
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))


def test_name_of_a_special_token_in_a_text_is_plain_text(paths: dict[str, str]) -> None:
    encoder = Encoder(paths["bpe"], is_fast=False)
    assert encoder.reference.token_to_id(BOS) not in encoder.encode([f"see {BOS} here"])[0]


def test_fast_path_of_bpe_gives_the_ids_of_the_reference(paths: dict[str, str]) -> None:
    assert agrees(paths["bpe"], TEXTS)
    apart = ["a\n'self' is", "b\n\n't", "c\t'm"]  # kitoken alone splits these elsewhere
    assert agrees(paths["bpe"], apart)
    both = Encoder(paths["bpe"], is_fast=True)
    assert both.fast is not None
    assert both.fast.encode_all(apart, False) != both._by_reference(apart)


def test_fast_path_is_refused_where_it_differs_or_cannot_read(paths: dict[str, str], tmp_path: Path) -> None:
    assert not agrees(paths["wordpiece"], TEXTS[:3])
    tree = json.loads(Path(paths["bpe"]).read_text())
    tree["pre_tokenizer"] = {"type": "FixedLength", "length": 5}
    (tmp_path / "odd.json").write_text(json.dumps(tree))
    assert not agrees(str(tmp_path / "odd.json"), TEXTS[:3])


@given(st.lists(st.text(alphabet=" '\n\t\r\xa0\x85\u2028\u3000stredvmlxé1.", max_size=30), min_size=1, max_size=20))
@settings(deadline=None, max_examples=300)
def test_fast_path_equals_the_reference_on_contractions_behind_any_white_space(
    paths: dict[str, str], texts: list[str]
) -> None:
    both = Encoder(paths["bpe"], is_fast=True)
    assert both.encode(texts) == both._by_reference(texts)


@given(st.lists(st.text(max_size=60), max_size=5))
@settings(deadline=None, max_examples=100)
def test_fast_path_equals_the_reference_on_any_text(paths: dict[str, str], texts: list[str]) -> None:
    both = Encoder(paths["bpe"], is_fast=True)
    assert both.encode(texts) == both._by_reference(texts)


@pytest.mark.parametrize(
    ("name", "text"),
    [("Ġthe", " the"), ("Ċ", "\n"), ("▁the", " the"), ("<0x0A>", "\n"), ("ãĢĤ", "。"), ("Ã", "\ufffd"), (".", ".")],
)
def test_text_of_a_token_name(name: str, text: str) -> None:
    assert text_of(name) == text


@pytest.mark.parametrize(
    ("text", "rank"),
    [("\n\n", 3), (".\n\n", 3), ("\n", 2), ("x\n  ", 2), (".", 1), ('."', 1), ("。", 1), ("end?", 1), ("e.g", 0), (" ", 0), ("", 0)],
)  # fmt: skip
def test_rank_of_an_end(text: str, rank: int) -> None:
    assert end_rank(text) == rank


def pieces_of(names: list[str], seq_len: int) -> list[str]:
    """Cut one document whose tokens are these texts."""
    table = (np.array([end_rank(n) for n in names], np.uint8), np.array([n[:1].isspace() for n in names]))
    ends = _piece_ends(np.arange(len(names), dtype=np.int32), table)
    _, firsts, lengths = packing.cut_at_ends(np.array([len(names)]), ends, seq_len)
    return ["".join(names[f : f + n]) for f, n in zip(firsts, lengths, strict=True)]


@pytest.mark.parametrize(
    ("names", "pieces"),
    [
        # a sentence's end in the last half; the number's point is none
        (["One", " two", ".", " Pi", " is", " 3", ".", "14", " or", " so", "."], ["One two. Pi is 3.14", " or so."]),
        (["A", " b", " c", " d", " e", ".", " F", " g", " h", " i", "."], ["A b c d e.", " F g h i."]),
        # a blank line beats a later sentence's end, and the cut is behind both line ends
        (["A", " b", " c", " d", "\n", "\n", "E", ".", " f", " g"], ["A b c d\n\n", "E. f g"]),
        # nothing to cut at: the full length
        (["a"] * 10, ["a" * 8, "aa"]),
        # an end in the first half does not count
        (["A", "."] + [" b"] * 9, ["A. b b b b b b", " b b b"]),
        (["a"] * 8, ["a" * 8]),
    ],
)
def test_long_documents_are_cut_at_the_best_end(names: list[str], pieces: list[str]) -> None:
    assert pieces_of(names, 8) == pieces


@given(st.lists(st.integers(0, 60), min_size=1, max_size=12), st.integers(2, 16), st.integers(0, 9))
@settings(deadline=None, max_examples=80)
def test_cutting_at_ends_loses_nothing_and_fills_half(lengths: list[int], seq_len: int, seed: int) -> None:
    ends = np.array(random.Random(seed).choices([0, 0, 0, 1, 2, 3], k=sum(lengths)), np.uint8)
    documents, firsts, sizes = packing.cut_at_ends(np.array(lengths), ends, seq_len)
    for number, length in enumerate(lengths):
        mine = documents == number
        assert firsts[mine].tolist() == np.concatenate(([0], np.cumsum(sizes[mine])))[:-1][: mine.sum()].tolist()
        assert sizes[mine].sum() == length
        assert all(seq_len // 2 < size <= seq_len for size in sizes[mine][:-1])


def test_cutting_where_no_token_ends_anything_equals_cutting_by_length() -> None:
    lengths = np.array([14, 7, 0, 5, 33])
    plain = packing.cut(lengths, 8)
    at_ends = packing.cut_at_ends(lengths, np.zeros(lengths.sum(), np.uint8), 8)
    assert [a.tolist() for a in plain] == [a.tolist() for a in at_ends]


def test_ids_beyond_16_bits_are_stored_as_they_are(tmp_path: Path) -> None:
    """Case A10: 70,000 would wrap to 4,464 in 16 bits."""
    tokens = to_binary(pa.array([[70_000, 1, 99_999]], pa.list_(pa.int32())))
    (batch,) = pack_table(pa.table({"doc_id": ["a" * 32], "tokens": tokens}), 8, 0)
    parquet.write_table(pa.table(unpacked(batch)), tmp_path / "t.parquet")
    orc.write_table(pa.table(unpacked(batch)), str(tmp_path / "t.orc"))
    for table in (parquet.read_table(tmp_path / "t.parquet"), orc.read_table(tmp_path / "t.orc")):
        assert table.column("tokens").to_pylist() == [[70_000, 1, 99_999]]


def test_order_of_sequences_is_shuffled_over_all_documents() -> None:
    """Case C15: 100 documents of one sequence each; the order differs from the documents' and nothing is lost."""
    names = [f"{n:032x}" for n in range(100)]
    tokens = to_binary(pa.array([[n] * 8 for n in range(100)], pa.list_(pa.int32())))
    block = pa.table({"doc_id": names, "tokens": tokens})
    orders = []
    for seed in (1, 1, 2):
        (batch,) = pack_table(block, 8, seed)
        rows = sorted(batch.to_pylist(), key=lambda row: row["order_key"])
        orders.append([row["doc_ids"] for row in rows])
        assert sorted(orders[-1]) == names
    assert orders[0] == orders[1]
    assert orders[0] != names
    assert orders[0] != orders[2]
    moved = sum(abs(place - names.index(name)) for place, name in enumerate(orders[0])) / 100
    assert moved > 20  # 33 for a random order


def test_imported_tokenizer_without_beginning_and_end_gets_them(tmp_path: Path) -> None:
    """Case C16: otherwise documents would run into each other."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    imported = import_tokenizer(tmp_path)
    assert [imported.token_to_id(name) for name in (BOS, EOS, PAD)] == [3, 4, 2]
