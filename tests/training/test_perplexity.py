from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from training.evaluate.perplexity import bits_per_byte, perplexity, score_documents, windows_of


def test_perplexity_weights_by_token() -> None:
    """Two batches of equal tokens with losses 1 and 3: exp(2) = 7.389, not the mean of exponentials 11.40."""
    assert perplexity(1.0 * 5 + 3.0 * 5, 10) == pytest.approx(7.389, abs=1e-3)


def test_bits_per_byte_of_a_known_text() -> None:
    """12 nats over "naïve café": 12 bytes, 1.4427 bits a byte."""
    assert bits_per_byte(12.0, len("naïve café".encode())) == pytest.approx(1.4427, abs=1e-4)


@given(length=st.integers(1, 60), context=st.integers(2, 20), data=st.data())
def test_windows_score_every_token_after_the_first_exactly_once(length: int, context: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(1, context - 1))
    scored = [t for w in windows_of(0, length, context, overlap) for t in range(w.scored, w.end)]
    assert scored == list(range(1, length))
    for window in windows_of(0, length, context, overlap):
        assert window.end - window.start <= context
        assert window.start < window.scored


def test_windows_of_ten_tokens_context_four_are_known() -> None:
    """Stride 2: windows (0,4) (2,6) (4,8) (6,10), nine tokens scored."""
    windows = windows_of(0, 10, 4, 2)
    assert [(w.start, w.end) for w in windows] == [(0, 4), (2, 6), (4, 8), (6, 10)]
    assert sum(w.end - w.scored for w in windows) == 9


@pytest.fixture(scope="module")
def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().double()


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_nats_do_not_depend_on_the_batch_size(tiny_model: LlamaForCausalLM, batch_tokens: int) -> None:
    """Documents of 3, 9 and 40 tokens: padded together or alone, the same."""
    documents = [[3, 4, 5], list(range(9)), [i % 50 for i in range(40)]]
    alone = [score_documents(tiny_model, [d], 1, 16, 8, 1)[0] for d in documents]
    assert score_documents(tiny_model, documents, 1, 16, 8, batch_tokens) == pytest.approx(alone, abs=1e-9)


def test_nats_of_a_short_document_are_the_plain_sum(tiny_model: LlamaForCausalLM) -> None:
    ids = [1, 7, 8, 9]
    with torch.no_grad():
        logits_TV = tiny_model(input_ids=torch.tensor([ids])).logits[0]
    expected = -sum(torch.log_softmax(logits_TV[t], -1)[ids[t + 1]].item() for t in range(3))
    assert score_documents(tiny_model, [ids[1:]], 1, 16, 8, 100)[0] == pytest.approx(expected, abs=1e-9)


def test_nats_of_a_model_with_nan_are_not_finite(tiny_model: LlamaForCausalLM) -> None:
    broken = LlamaForCausalLM(tiny_model.config).eval()
    with torch.no_grad():
        broken.lm_head.weight[:] = float("nan")
    assert math.isnan(score_documents(broken, [[1, 2]], 1, 16, 8, 100)[0])
