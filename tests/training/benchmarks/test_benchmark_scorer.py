"""Answers are the model's, in order, whatever the batches."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForMaskedLM, LlamaForCausalLM

from spark_jobs.errors import RequestError
from training.benchmarks.encoding import encoder_of
from training.benchmarks.requests import Continuation, Generation, Likelihood, Rolling, Written
from training.benchmarks.scorer import Scorer, in_batches, scorer_of

ASKED = [
    Continuation("a", " the"),
    Rolling("the quick brown fox"),
    Generation("what is it", ("x",), 8),
    Continuation("a longer question about the mill: ", "yes"),
    Continuation("", "bcd"),
    Continuation("a", " the"),
    Generation("hm", (), 5),
    Rolling("b" * 150),
    Continuation("Ans", "wer"),
]


def scorer_at(folder: Path, batch_tokens: int = 4096, limit: int = 64) -> Scorer:
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    return Scorer(model, encoder_of(folder, limit, "always"), batch_tokens, overlap=8)


@pytest.mark.parametrize("batch_tokens", [1, 37, 300, 100_000])
def test_answers_do_not_depend_on_the_batch_size_and_keep_their_order(tiny_folder: Path, batch_tokens: int) -> None:
    alone = [scorer_at(tiny_folder, 1).answer([request])[0] for request in ASKED]
    for one, other in zip(scorer_at(tiny_folder, batch_tokens).answer(ASKED), alone, strict=True):
        if isinstance(one, Likelihood):
            assert isinstance(other, Likelihood)
            assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-9)
            assert (one.num_tokens, one.greedy, one.flags) == (other.num_tokens, other.greedy, other.flags)
        else:
            assert one == other


def test_likelihood_is_the_plain_sum_over_the_continuation(tiny_folder: Path) -> None:
    scorer = scorer_at(tiny_folder)
    ids = scorer.encoder.pair("what", " the").ids
    with torch.no_grad():
        log_p_TV = torch.log_softmax(scorer.model(input_ids=torch.tensor([ids])).logits[0], -1)
    expected = sum(log_p_TV[t, ids[t + 1]].item() for t in (len(ids) - 3, len(ids) - 2))
    (answer,) = scorer.answer([Continuation("what", " the")])
    assert isinstance(answer, Likelihood)
    assert answer.log_likelihood == pytest.approx(expected, abs=1e-9)
    assert answer.num_tokens == 2


def test_rolling_text_has_the_beginning_as_context_once_and_never_scored(tiny_folder: Path) -> None:
    """Of a text that fits one window the rolling likelihood is that of the text after the beginning token; a scored
    beginning, or one in each window, would be another number."""
    scorer = scorer_at(tiny_folder)
    rolled, plain = scorer.answer([Rolling("bcd and the fox"), Continuation("", "bcd and the fox")])
    assert isinstance(rolled, Likelihood)
    assert isinstance(plain, Likelihood)
    assert rolled.log_likelihood == pytest.approx(plain.log_likelihood, abs=1e-9)
    assert rolled.num_tokens == plain.num_tokens
    (long,) = scorer_at(tiny_folder, limit=16).answer([Rolling("b" * 150)])
    assert long.num_tokens == 150


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_answer_of_a_broken_model_is_not_finite_not_greedy_and_flagged(tiny_folder: Path, value: float) -> None:
    """An argmax over NaN is the first place: such a model would be right wherever the first choice is."""
    scorer = scorer_at(tiny_folder)
    with torch.no_grad():
        scorer.model.lm_head.weight[5] = value
    for answer in scorer.answer(ASKED):
        assert not answer.finite
        assert "non_finite" in answer.flags
        assert isinstance(answer, Written) or not answer.greedy


def test_continuation_that_does_not_fit_is_not_asked_and_not_finite(tiny_folder: Path) -> None:
    (answer,) = scorer_at(tiny_folder, limit=4).answer([Continuation("a", "bdefg")])
    assert (answer.finite, answer.flags) == (False, ("too_long",))


def test_written_text_ends_before_the_stopping_text_and_counts_up_to_it(tiny_folder: Path) -> None:
    scorer = scorer_at(tiny_folder)
    (free,) = scorer.answer([Generation("what is it", (), 8)])
    assert isinstance(free, Written)
    assert free.text
    stop = free.text[2:4]
    (stopped,) = scorer.answer([Generation("what is it", (stop,), 8)])
    assert isinstance(stopped, Written)
    assert (stopped.text, stopped.finish) == (free.text[: free.text.index(stop)], "stop")
    assert stopped.num_tokens <= free.num_tokens


@settings(deadline=None)
@given(lengths=st.lists(st.integers(0, 30), max_size=20), room=st.integers(1, 60))
def test_batches_hold_each_item_once_within_the_room_and_answers_keep_the_order(lengths: list[int], room: int) -> None:
    seen: list[list[int]] = []

    def ask(batch: list[int]) -> list[int]:
        seen.append(list(batch))
        return [10 * length for length in batch]

    assert in_batches(lengths, lambda length: length, room, ask) == [10 * length for length in lengths]
    assert sorted(x for batch in seen for x in batch) == sorted(lengths)
    assert all(len(batch) == 1 or max(batch) * len(batch) <= room for batch in seen if max(batch) > 0)


def test_model_that_does_not_write_left_to_right_is_refused(tiny_folder: Path) -> None:
    config = BertConfig(vocab_size=70, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16)
    with pytest.raises(RequestError, match="BertForMaskedLM does not write left to right"):
        scorer_of(BertForMaskedLM(config), tiny_folder, "always", 100)
