"""Tags: where a word's tag is predicted, windows, the loss, and what is counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

from spark_jobs.errors import DataError
from training.finetune.examples import encode_rows
from training.finetune.methods import apply_method
from training.finetune.score import predict_rows
from training.finetune.tagging import Tagging, first_tokens, merge_tags, tags_of
from training.finetune.task import Row, Unusable
from training.finetune_spec import MethodSpec, TaskSpec
from training.pretrain.loss import IGNORED

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
NAMES = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
WORDS = ["anna", "grinds", "rye", "in", "ulm", "new", "york", "mill"]


def wordpieces() -> PreTrainedTokenizerFast:
    """Whole WORDS, and every other word of small letters as its letters."""
    letters = [chr(n) for n in range(ord("a"), ord("z") + 1)]
    vocabulary = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *WORDS]
    numbers = {piece: number for number, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMES)


def byte_pieces() -> PreTrainedTokenizerFast:
    """Bytes, and `mill` with the space before it as one token; no special token around a text."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    pairs = [("i", "l"), ("il", "l"), ("m", "ill"), ("Ġ", "mill")]
    pieces = ["[PAD]", *sorted(alphabet), *("".join(pair) for pair in pairs)]
    tokenizer = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")


TOKENIZER = wordpieces()


def task(max_length: int = 32, stride: int = 4, label_set: Sequence[str] = ("LOC", "PER")) -> Tagging:
    return Tagging(TaskSpec(kind="tagging", max_length=max_length, stride=stride), TOKENIZER, label_set)


def row(words: Sequence[str], tags: Sequence[str] | None = None, name: str = "a") -> Row:
    return {"id": name, "tokens": list(words), "tags": list(tags or ["O"] * len(words))}


ROWS = [
    row(["anna", "grinds", "rye", "in", "new", "york"], ["B-PER", "O", "O", "O", "B-LOC", "I-LOC"], "a"),
    row(["ulm", "grinds", "wheat"], ["B-LOC", "O", "O"], "b"),
    row(["in", "mills", "anna", "zoe", "bob", "grinds"], ["O", "O", "B-PER", "B-PER", "I-PER", "O"], "c"),
]


def tiny(tagging: Tagging, seed: int = 0) -> BertForTokenClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(TOKENIZER), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.1,
        **tagging.config_fields(),
    )  # fmt: skip
    return BertForTokenClassification(config).double()


@pytest.mark.parametrize(
    ("label_set", "tags"),
    [
        (("LOC", "PER"), ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")),
        (("B-LOC", "I-LOC", "O"), ("O", "B-LOC", "I-LOC")),
        (("B-LOC", "B-PER"), ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")),
        (("B-cell", "gene"), ("O", "B-B-cell", "I-B-cell", "B-gene", "I-gene")),  # gene is no tag: both are types
    ],
)
def test_tag_set_is_made_from_types_or_from_tags(label_set: tuple[str, ...], tags: tuple[str, ...]) -> None:
    assert tags_of(label_set) == tags


@pytest.mark.parametrize("label_set", [(), ("O",)])
def test_tag_set_without_a_type_is_refused(label_set: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="at least one type"):
        tags_of(label_set)


def test_first_piece_of_a_word_alone_carries_its_tag() -> None:
    tagging = task()
    examples = tagging.encode(row(["anna", "mills", "ulm"], ["B-PER", "I-PER", "B-LOC"]))
    inputs = tagging.collate(examples)
    # [CLS] anna mill ##s ulm [SEP]
    assert inputs.targets_BS.tolist() == [[IGNORED, 3, 4, IGNORED, 1, IGNORED]]


def test_words_are_cut_as_wordpieces_cut_a_list_of_words() -> None:
    words = ["anna", "mills", "", "don't", "new", "york", "\u200d", "x-y"]
    whole = TOKENIZER(words, is_split_into_words=True)
    (example,) = task().encode(row(words))
    assert example.features["input_ids"] == whole["input_ids"]
    theirs: dict[int, int] = {}
    for place, word in enumerate(whole.word_ids()):
        if word is not None:
            theirs.setdefault(word, place)
    assert dict(zip(example.features["words"], example.features["places"], strict=True)) == theirs


def test_words_of_a_byte_level_vocabulary_keep_the_space_before_them() -> None:
    tokenizer = byte_pieces()
    tagging = Tagging(TaskSpec(kind="tagging", max_length=32), tokenizer, ("LOC",))
    (example,) = tagging.encode(row(["é", "mill", "mill"], ["B-LOC", "O", "O"]))
    pieces = tokenizer.convert_ids_to_tokens(example.features["input_ids"])
    assert pieces == ["Ã", "©", "Ġmill", "Ġmill"]  # two tokens of one letter
    assert example.features["places"] == [0, 2, 3]


@pytest.mark.parametrize(
    ("words", "offsets", "first"),
    [
        (["ab", "c"], [None, (0, 1), (1, 2), (3, 4), None], {0: 1, 1: 3}),
        (["ab", "c"], [(0, 2), (2, 4)], {0: 0, 1: 1}),  # a token with the space before the word
        (["ab", "c"], [(0, 2), (2, 3), (3, 4)], {0: 0, 1: 2}),  # a token that is the space
        (["ab", "c"], [(0, 4)], {0: 0}),  # one token over both: the second word has none of its own
        (["", "a", "", "b"], [(1, 2), (4, 5)], {1: 0, 3: 1}),
        (["abc", "d"], [(1, 2), (2, 3), (4, 5)], {0: 0, 1: 2}),  # a window that begins inside a word
    ],
)
def test_first_tokens_of_words_are_found_by_characters(
    words: list[str], offsets: list[tuple[int, int] | None], first: dict[int, int]
) -> None:
    assert first_tokens(words, offsets) == first


def test_word_of_two_windows_is_predicted_where_it_has_more_context() -> None:
    # Six words a window, of which at most half may be shared: words 0-5, 3-8, 6-9.
    examples = task(max_length=8, stride=4).encode(row(["in"] * 10))
    assert [example.features["words"] for example in examples] == [[0, 1, 2, 3, 4], [5, 6, 7], [8, 9]]


@given(
    st.lists(
        st.one_of(st.sampled_from([*WORDS, "", "\u200d", "x-y", "水車", "é"]), st.text("abz", max_size=12)), max_size=30
    ),
    st.integers(8, 20),
    st.integers(0, 40),
)
@settings(max_examples=150, deadline=None)
def test_every_word_with_a_token_is_predicted_once_at_its_first_token(
    words: list[str], max_length: int, stride: int
) -> None:
    tagging = task(max_length, stride)
    alone = {
        number: ids[0]
        for number, word in enumerate(words)
        if (ids := TOKENIZER(word, add_special_tokens=False)["input_ids"])
    }
    if not alone:
        with pytest.raises(Unusable, match="empty_text"):
            tagging.encode(row(words))
        return
    examples = tagging.encode(row(words))
    assert all(len(example.features["input_ids"]) <= max_length for example in examples)
    found = [
        (word, example.features["input_ids"][place])
        for example in examples
        for word, place in zip(example.features["words"], example.features["places"], strict=True)
    ]
    assert sorted(found) == sorted(alone.items())


@pytest.mark.parametrize("pad", ["[PAD]", "[SEP]", "rye"])  # what is padding is told by place, never by id
def test_loss_is_the_sum_over_words_of_each_sentence_alone(pad: str) -> None:
    tagging = task()
    tagging.pad_id = TOKENIZER.convert_tokens_to_ids(pad)
    model = tiny(tagging).eval()
    examples, _ = encode_rows(tagging, iter(ROWS))
    inputs = tagging.collate(examples)
    expected = 0.0
    for example in examples:
        logits = model(torch.tensor([example.features["input_ids"]])).logits[0].detach().numpy()
        for place, tag in zip(example.features["places"], example.features["tags"], strict=True):
            expected += np.log(np.exp(logits[place]).sum()) - logits[place, tag]
    loss = tagging.loss(model(**inputs.model), inputs)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-12)
    assert int((inputs.targets_BS != IGNORED).sum()) == sum(len(one["tokens"]) for one in ROWS)


def test_tiny_model_learns_the_tags_of_three_sentences_over_windows() -> None:
    tagging = task(max_length=10, stride=3)
    model = tiny(tagging).train()
    examples, _ = encode_rows(tagging, iter(ROWS))
    assert len(examples) > len(ROWS)  # one sentence is longer than a window
    inputs = tagging.collate(examples)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        torch.autograd.backward(tagging.loss(model(**inputs.model), inputs))
        optimizer.step()
    predictions, unusable = predict_rows(model.eval(), tagging, ROWS, 2)
    scores = tagging.score(ROWS, predictions, 0)
    assert not unusable
    assert next(iter(scores)) == "span_f1"
    assert scores["span_f1"].value == 1.0
    assert scores["orphan_share"].value == 0.0


def test_rows_in_are_rows_encoded_and_counted_reasons() -> None:
    rows = [
        *ROWS,
        row([], [], "d"),
        row(["", "\u200d"], ["O", "O"], "e"),
        row(["ulm"], ["B-ORG"], "f"),
        row(["ulm", "rye"], ["B-LOC"], "g"),
    ]
    examples, unusable = encode_rows(task(), iter(rows))
    assert unusable == {"empty_text": 2, "unknown_label": 1, "words_and_tags_differ": 1}
    assert len({example.id for example in examples}) + sum(unusable.values()) == len(rows)


def test_sentence_without_a_finite_prediction_is_a_miss_and_counted() -> None:
    tagging = task()
    good = {"words": [0, 1, 2], "tags": ["B-LOC", "O", "O"], "logits": []}
    broken = {"words": [0, 1, 2, 3, 4, 5], "tags": ["B-PER", None, "O", "O", "B-LOC", "I-LOC"], "logits": []}
    scores = tagging.score(ROWS, {"a": [broken], "b": [good], "c": []}, 0)
    assert scores["span_f1"].n_invalid == 2
    assert scores["span_recall"].value == pytest.approx(1 / 5)
    assert scores["span_precision"].value == 1.0


def test_logits_that_are_not_finite_give_no_tag() -> None:
    tagging = task()
    model = tiny(tagging).eval()
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")
    (prediction,) = tagging.predict(model, tagging.collate(tagging.encode(ROWS[1])))
    assert prediction["tags"] == [None, None, None]


def test_words_without_a_token_are_tagged_o() -> None:
    windows: list[dict[str, Any]] = [{"words": [2], "tags": ["I-LOC"]}, {"words": [0], "tags": ["B-LOC"]}]
    assert merge_tags(3, windows) == ["B-LOC", "O", "I-LOC"]


def test_virtual_tokens_of_prompt_tuning_do_not_shift_the_words() -> None:
    tagging = task()
    torch.manual_seed(1)
    model: Any = apply_method(tiny(tagging), MethodSpec(kind="prompt", num_virtual_tokens=4), "TOKEN_CLS").double()
    inputs = tagging.collate([example for one in ROWS for example in tagging.encode(one)])
    output = model(**inputs.model)
    assert output.logits.shape[1] == inputs.targets_BS.shape[1] + 4
    chosen = inputs.targets_BS != IGNORED
    logits = output.logits[:, 4:][chosen]
    expected = torch.logsumexp(logits, -1) - logits.gather(1, inputs.targets_BS[chosen][:, None])[:, 0]
    assert float(tagging.loss(output, inputs).detach()) == pytest.approx(float(expected.sum().detach()), rel=1e-12)
