"""Scores of masked and encoder-decoder models against one pass a token or piece, written out by hand."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from training.evaluate.other_objectives import FOLDS, score_divided, score_masked

V, BOS, MASK = 40, 1, 0
DOCUMENTS = [list(range(3, 3 + n)) for n in (1, 5, 17, 30)]


@pytest.fixture(scope="module")
def bert() -> BertForMaskedLM:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=V, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=20, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForMaskedLM(config).eval().double()


@pytest.fixture(scope="module")
def t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=V, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.0,
        decoder_start_token_id=BOS,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval().double()


def test_masked_score_hides_each_token_once_and_shows_the_rest(bert: BertForMaskedLM) -> None:
    text = torch.tensor([[BOS, *DOCUMENTS[2]]])
    expected = 0.0
    for fold in range(FOLDS):
        hidden = (torch.arange(18) % FOLDS == fold)[None]
        hidden[0, 0] = False
        with torch.no_grad():
            logits = bert(input_ids=text.masked_fill(hidden, MASK)).logits
        expected -= float(logits.log_softmax(-1).gather(-1, text[..., None])[..., 0][hidden].sum())
    (found,) = score_masked(bert, [DOCUMENTS[2]], BOS, MASK, 20, 5, 1000)
    assert found == pytest.approx(expected, rel=1e-9)


def test_divided_score_is_the_product_over_pieces(t5: T5ForConditionalGeneration) -> None:
    """Context 10: pieces of 5, each written after reading the one before."""
    document, expected = DOCUMENTS[2], 0.0
    for start in range(0, 17, 5):
        piece = document[start : start + 5]
        source = torch.tensor([[BOS, *document[max(0, start - 5) : start]]])
        with torch.no_grad():
            logits = t5(input_ids=source, decoder_input_ids=torch.tensor([[BOS, *piece[:-1]]])).logits
        expected -= float(logits.log_softmax(-1)[0, torch.arange(len(piece)), torch.tensor(piece)].sum())
    (found,) = score_divided(t5, [document], BOS, 10, 1000)
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_scores_do_not_depend_on_the_batch_size(
    bert: BertForMaskedLM, t5: T5ForConditionalGeneration, batch_tokens: int
) -> None:
    """Documents longer than the context are scored in windows; one token is a document too."""
    alone = [score_masked(bert, [d], BOS, MASK, 20, 5, 1)[0] for d in DOCUMENTS]
    assert score_masked(bert, DOCUMENTS, BOS, MASK, 20, 5, batch_tokens) == pytest.approx(alone, rel=1e-9)
    alone = [score_divided(t5, [d], BOS, 10, 1)[0] for d in DOCUMENTS]
    assert score_divided(t5, DOCUMENTS, BOS, 10, batch_tokens) == pytest.approx(alone, rel=1e-9)


def test_untrained_models_score_about_the_logarithm_of_the_vocabulary(
    bert: BertForMaskedLM, t5: T5ForConditionalGeneration
) -> None:
    for found in (score_masked(bert, DOCUMENTS, BOS, MASK, 20, 5, 99), score_divided(t5, DOCUMENTS, BOS, 10, 99)):
        for nats, document in zip(found, DOCUMENTS, strict=True):
            assert 0 < nats / len(document) < 40
