"""Where context ends and continuation begins, in tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from spark_jobs.errors import DataError
from training.benchmarks.encoding import Encoder, encoder_of

BOS = 1


@pytest.fixture(scope="module")
def encoder(tiny_folder: Path) -> Encoder:
    return encoder_of(tiny_folder, 64, "always")


def texts(encoder: Encoder, *ids: int) -> list[str]:
    return [encoder.tokenizer.id_to_token(i) for i in ids]


def test_pair_with_a_clean_boundary_is_split_where_the_context_ends(encoder: Encoder) -> None:
    pair = encoder.pair("a", " the")
    assert texts(encoder, *pair.context) == ["<bos>", "a"]
    assert texts(encoder, *pair.continuation) == [" th", "e"]
    assert pair.flags == ()


def test_continuation_that_a_boundary_token_would_swallow_is_encoded_alone_and_flagged(encoder: Encoder) -> None:
    """`Ans` + `wer` is the one token `Answer`: cut by count nothing would be left to score."""
    pair = encoder.pair("Ans", "wer")
    assert texts(encoder, *pair.context) == ["<bos>", "Ans"]
    assert texts(encoder, *pair.continuation) == ["wer"]
    assert pair.flags == ("boundary",)


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation(encoder: Encoder) -> None:
    assert encoder.pair("a ", "the") == encoder.pair("a", " the")


def test_empty_context_is_the_beginning_token_alone_once(encoder: Encoder, tiny_folder: Path) -> None:
    assert encoder.pair("", "abc").context == (BOS,)
    assert encoder_of(tiny_folder, 64, "tokenizer").pair("", "abc").context == (BOS,)
    assert encoder_of(tiny_folder, 64, "tokenizer").pair("d", "abc").context == encoder.pair("d", "abc").context[1:]


def test_beginning_written_in_a_text_is_plain_text(encoder: Encoder) -> None:
    assert encoder.pair("<bos>a", "b").context.count(BOS) == 1


@pytest.mark.parametrize("limit", range(4, 12))
def test_truncation_from_the_left_keeps_the_split_and_the_beginning(tiny_folder: Path, limit: int) -> None:
    """`bc|de` stays `bc|de`: the continuation is whole, the context loses its first tokens."""
    pair = encoder_of(tiny_folder, limit, "always").pair("0123456789bc", "de")
    assert texts(Encoder(encoder_of(tiny_folder, 9, "always").tokenizer, 1, True, 9), *pair.continuation) == ["d", "e"]
    assert pair.context[0] == BOS
    assert len(pair.ids) == min(limit + 1, 14)  # the last token is predicted, not seen
    assert pair.context[-1] == encoder_of(tiny_folder, 64, "always").ids("bc")[0]
    assert pair.flags == (("truncated",) if limit < 13 else ())


def test_continuation_longer_than_the_model_sees_is_not_cut_but_flagged(tiny_folder: Path) -> None:
    pair = encoder_of(tiny_folder, 4, "always").pair("a", "bdefg")
    assert (pair.context, len(pair.continuation), pair.flags) == ((), 5, ("too_long",))


@settings(deadline=None)
@given(context=st.text("abcAnswer t", max_size=12), continuation=st.text("abcAnswer t", min_size=1, max_size=8))
def test_tokens_of_a_pair_stand_for_exactly_its_text(encoder: Encoder, context: str, continuation: str) -> None:
    pair = encoder.pair(context, continuation)
    assert "".join(texts(encoder, *pair.ids[1:])) == context + continuation
    assert "".join(texts(encoder, *pair.continuation)).endswith(continuation)
    assert pair.continuation


def test_empty_continuation_is_refused(encoder: Encoder) -> None:
    with pytest.raises(DataError, match="an empty continuation after 'abc' has no likelihood"):
        encoder.pair("abc", "")


def test_beginning_as_the_tokenizer_puts_it_is_found_in_its_file(tiny_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text((tiny_folder / name).read_text())
    assert not encoder_of(tmp_path, 64, "tokenizer").puts_beginning
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert encoder_of(tmp_path, 64, "tokenizer").puts_beginning
    assert encoder_of(tmp_path, 64, "tokenizer").pair("a", "b").context[0] == BOS


def test_model_without_a_beginning_token_begins_with_its_end_token(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text((tiny_folder / "tokenizer.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": None, "eos_token_id": [2, 3]}))
    assert encoder_of(tmp_path, 64, "always").begin_id == 2
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="neither bos_token_id nor eos_token_id"):
        encoder_of(tmp_path, 64, "always")
