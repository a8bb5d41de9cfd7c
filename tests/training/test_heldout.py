from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from spark_jobs.errors import DataError
from training.evaluate.documents import (
    Document,
    cut_document,
    gzip_bits_per_byte,
    heldout_documents,
    load_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer(world) -> Tokenizer:
    return load_tokenizer(Path(world.tokenizer.folder()))


def test_heldout_documents_are_the_lowest_ids_of_all_nights(world) -> None:
    everything = heldout_documents(world.corpus, 1000)
    assert len(everything) == sum(n.num_heldout for n in world.corpus.nights)
    assert [d.doc_id for d in everything] == sorted(d.doc_id for d in everything)
    assert heldout_documents(world.corpus, 3) == everything[:3]


def test_corpus_without_heldout_documents_is_refused(make, tmp_path: Path) -> None:
    world = make.world(tmp_path, [make.texts(20, 1)], 300, 32, heldout_share=0.0)
    with pytest.raises(DataError, match=r"no held-out documents.*raise tokenize\.heldout_share"):
        heldout_documents(world.corpus, 10)


@pytest.mark.parametrize("keep", range(1, 12))
def test_cut_document_counts_the_bytes_of_what_is_scored(tokenizer: Tokenizer, keep: int) -> None:
    """水 and 🌾 are several tokens each: a cut inside one drops its tokens and its bytes."""
    document = Document("0", "é水🌾é水🌾", "test")
    cut = cut_document(document, tokenizer, keep)
    assert len(cut.ids) <= keep
    assert tokenizer.decode(list(cut.ids)) == cut.text
    assert document.text.startswith(cut.text)


@given(text=st.text(min_size=1, max_size=60), keep=st.integers(1, 80))
def test_cut_document_decodes_to_exactly_its_text(tokenizer: Tokenizer, text: str, keep: int) -> None:
    cut = cut_document(Document("0", text, ""), tokenizer, keep)
    assert tokenizer.decode(list(cut.ids), skip_special_tokens=False) == cut.text


def test_special_tokens_in_a_text_are_plain_text(tokenizer: Tokenizer) -> None:
    assert 2 not in cut_document(Document("0", "a <eos> b", ""), tokenizer, 100).ids


def test_gzip_baseline_is_that_of_the_joined_texts() -> None:
    texts = ["the mill grinds", "the night waits"]
    assert gzip_bits_per_byte(texts) == 8 * len(gzip.compress(b"the mill grinds\nthe night waits", 9)) / 31
