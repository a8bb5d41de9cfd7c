"""Relations: marks in the text, what is kept of long texts, and the directed score."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from spark_jobs.errors import DataError
from training.finetune.examples import encode_rows
from training.finetune.relation import MARKS, Relation, Span, directed_macro_f1, mark, nearest
from training.finetune.score import predict_rows
from training.finetune.task import Row, Unusable
from training.finetune_spec import TaskSpec
from training.metrics.bootstrap import Bootstrap

LABELS = ("Moves(e1,e2)", "Moves(e2,e1)", "Other")
BOOTSTRAP = Bootstrap(replicates=20)


def words_tokenizer(marks: str = "$#") -> PreTrainedTokenizerFast:
    """A token a word, or a sign."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *marks,
        *(f"w{n}" for n in range(40)),
        "mill",
        "wind",
        "rye",
        "moves",
        "by",
    ]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


TOKENIZER = words_tokenizer()


def task(max_length: int = 32) -> Relation:
    return Relation(TaskSpec(kind="relation", max_length=max_length), TOKENIZER, LABELS)


def row(text: str, e1: str, e2: str, label: str = "Other", name: str = "a") -> Row:
    """Arguments by their first occurrence."""
    spans = [
        {"start": text.index(word), "end": text.index(word) + len(word), "label": which}
        for which, word in (("e1", e1), ("e2", e2))
    ]
    return {"id": name, "text": text, "pair": None, "labels": [label], "spans": spans}


def tokens(example: Any) -> str:
    return " ".join(TOKENIZER.convert_ids_to_tokens(example.features["input_ids"]))


def tiny(relation: Relation) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(TOKENIZER), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.1,
        **relation.config_fields(),
    )  # fmt: skip
    return BertForSequenceClassification(config).double()


@pytest.mark.parametrize(
    ("text", "e1", "e2", "marked"),
    [
        ("wind moves mill", (0, 4), (11, 15), "$ wind $ moves # mill #"),
        ("wind moves mill", (11, 15), (0, 4), "# wind # moves $ mill $"),
        ("風車", (0, 1), (1, 2), "$ 風 $# 車 #"),
        ("mill wheel", (5, 10), (0, 10), "# mill $ wheel $ #"),  # e1 lies in e2
        ("mill wheel", (0, 10), (0, 4), "$ # mill # wheel $"),
        ("a b c", (0, 3), (2, 5), "$ a # b $ c #"),  # they cross
        ("mill", (0, 4), (0, 4), "$ # mill # $"),  # they are the same
    ],
)
def test_arguments_are_marked_at_their_edges(text: str, e1: tuple[int, int], e2: tuple[int, int], marked: str) -> None:
    found, (first, second) = mark(text, (Span(*e1), Span(*e2)))
    assert found == marked
    for span, sign in ((first, "$"), (second, "#")):
        inside = found[span.start : span.end]
        assert inside.startswith(f"{sign} ")
        assert inside.endswith(f" {sign}")


def test_marked_text_is_read_in_both_orders_of_the_arguments() -> None:
    text = "wind moves mill"
    assert tokens(task().encode(row(text, "wind", "mill"))[0]) == "[CLS] $ wind $ moves # mill # [SEP]"
    assert tokens(task().encode(row(text, "mill", "wind"))[0]) == "[CLS] # wind # moves $ mill $ [SEP]"


def test_long_text_keeps_both_arguments_and_what_is_nearest() -> None:
    text = " ".join(f"w{n}" for n in range(40))
    (example,) = task(max_length=14).encode(row(text, "w10", "w30"))
    assert tokens(example) == "[CLS] w8 w9 $ w10 $ w11 w12 w29 # w30 # w31 [SEP]"
    assert example.num_tokens == 14


def test_arguments_longer_than_the_model_reads_are_lost_and_counted() -> None:
    text = " ".join(f"w{n}" for n in range(20))
    rows = [row(text, "w1", "w2 w3 w4 w5"), row(text, "w1", "w2", name="b")]
    examples, unusable = encode_rows(task(max_length=8), iter(rows))
    assert [tokens(example) for example in examples] == ["[CLS] $ w1 $ # w2 # [SEP]"]
    assert unusable == {"entity_lost": 1}


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 45))
@settings(max_examples=200, deadline=None)
def test_kept_tokens_are_special_ones_arguments_and_the_nearest(inside: list[bool], max_length: int) -> None:
    inside = [False, *inside, True, False]
    special = [1, *([0] * (len(inside) - 2)), 1]
    needed = sum(inside) + 2
    if needed > max_length:
        with pytest.raises(Unusable, match="entity_lost"):
            nearest(inside, special, max_length)
        return
    kept = nearest(inside, special, max_length)
    assert kept == sorted(set(kept))
    assert len(kept) == min(max_length, len(inside))
    arguments = [place for place, is_argument in enumerate(inside) if is_argument]
    assert {0, len(inside) - 1, *arguments} <= set(kept)

    def distance(place: int) -> int:
        return min(abs(place - argument) for argument in arguments)

    left = [distance(place) for place in range(1, len(inside) - 1) if place not in kept]
    if left:
        assert min(left) >= max(distance(place) for place in kept if not special[place])


@pytest.mark.parametrize(
    ("spans", "label", "reason"),
    [
        ([], "Other", "bad_spans"),
        ([(0, 4, "e1")], "Other", "bad_spans"),
        ([(0, 4, "e1"), (5, 10, "e1")], "Other", "bad_spans"),
        ([(0, 4, "e1"), (5, 16, "e2")], "Other", "bad_spans"),  # the text has 15 characters
        ([(0, 4, "e1"), (5, 5, "e2")], "Other", "bad_spans"),
        ([(-4, 4, "e1"), (5, 10, "e2")], "Other", "bad_spans"),
        ([(0, 4, "e1"), (5, 10, "e2")], "Owns(e1,e2)", "unknown_label"),
    ],
)
def test_rows_that_cannot_be_used_are_counted_by_reason(
    spans: list[tuple[int, int, str]], label: str, reason: str
) -> None:
    found = [{"start": start, "end": end, "label": which} for start, end, which in spans]
    bad = {"id": "b", "text": "wind moves mill", "pair": None, "labels": [label], "spans": found}
    rows = [row("wind moves mill", "wind", "mill"), bad, {**bad, "id": "c", "text": " "}]
    examples, unusable = encode_rows(task(), iter(rows))
    assert unusable == {reason: 1, "empty_text": 1}
    assert len(examples) + sum(unusable.values()) == len(rows)


@pytest.mark.parametrize("marks", ["", "$", "#"])
def test_vocabulary_without_the_marks_is_refused(marks: str) -> None:
    with pytest.raises(DataError, match=f"does not know .*[{''.join(set(MARKS.values()) - set(marks))}]"):
        Relation(TaskSpec(kind="relation"), words_tokenizer(marks), LABELS)


def test_loss_is_the_sum_of_cross_entropies_of_each_text_alone() -> None:
    relation = task()
    model = tiny(relation).eval()
    rows = [
        row("wind moves mill", "wind", "mill", LABELS[0], "a"),
        row("w1 mill moves by w3 w4 wind", "mill", "wind", LABELS[1], "b"),
    ]
    examples, _ = encode_rows(relation, iter(rows))
    inputs = relation.collate(examples)
    alone = [model(torch.tensor([example.features["input_ids"]])).logits[0] for example in examples]
    expected = sum(-F.log_softmax(logits, -1)[number] for number, logits in enumerate(alone))
    loss = relation.loss(model(**inputs.model), inputs)
    assert float(loss.detach()) == pytest.approx(float(torch.as_tensor(expected).detach()), rel=1e-12)


def test_tiny_model_learns_the_direction_from_the_marks_alone() -> None:
    texts = ["wind moves mill", "mill moves by wind", "w1 wind w2 moves mill"]
    rows = [row(text, "wind", "mill", LABELS[0], f"a{n}") for n, text in enumerate(texts)]
    rows += [row(text, "mill", "wind", LABELS[1], f"b{n}") for n, text in enumerate(texts)]
    rows += [row("rye w3 mill w4", "rye", "mill", "Other", "c"), row("rye w3 mill w4", "mill", "rye", "Other", "d")]
    relation = task()
    model = tiny(relation).train()
    examples, _ = encode_rows(relation, iter(rows))
    inputs = relation.collate(examples)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        torch.autograd.backward(relation.loss(model(**inputs.model), inputs))
        optimizer.step()
    predictions, unusable = predict_rows(model.eval(), relation, rows, 3)
    scores = relation.score(rows, predictions, 0)
    assert not unusable
    assert next(iter(scores)) == "directed_macro_f1"
    assert [scores[name].value for name in ("directed_macro_f1", "accuracy", "macro_f1")] == [1.0, 1.0, 1.0]


def test_directed_score_counts_a_wrong_direction_as_miss_and_false_find() -> None:
    gold = [
        "Cause(e1,e2)",
        "Cause(e2,e1)",
        "Cause(e1,e2)",
        "Part(e1,e2)",
        "Part(e1,e2)",
        "Other",
        "Other",
        "Part(e2,e1)",
    ]
    found = ["Cause(e1,e2)", "Cause(e1,e2)", "Other", "Part(e1,e2)", "Cause(e1,e2)", "Other", "Part(e1,e2)", None]
    # Cause: 3 gold, 3 found, 1 right; Part: 3 gold, 2 found, 1 right; Other is no relation.
    score = directed_macro_f1(gold, found, BOOTSTRAP)
    assert score.value == pytest.approx((2 * 1 / 6 + 2 * 1 / 5) / 2)
    assert (score.n, score.n_invalid) == (8, 1)


def test_directed_score_of_one_answer_for_all_is_that_relation_alone() -> None:
    gold = ["Cause(e1,e2)", "Part(e1,e2)", "Other"]
    assert directed_macro_f1(gold, ["Other"] * 3, BOOTSTRAP).value == 0.0
    assert directed_macro_f1(gold, ["Part(e1,e2)"] * 3, BOOTSTRAP).value == pytest.approx((0 + 2 / 4) / 2)
    assert directed_macro_f1(gold, gold, BOOTSTRAP).value == 1.0


def test_row_that_could_not_be_encoded_counts_as_wrong() -> None:
    rows = [
        row("wind moves mill", "wind", "mill", LABELS[0], "a"),
        row("wind moves mill", "mill", "wind", LABELS[1], "b"),
    ]
    scores = task().score(rows, {"a": [{"label": LABELS[0], "logits": []}], "b": []}, 0)
    assert scores["accuracy"].value == 0.5
    assert scores["directed_macro_f1"].value == pytest.approx(2 / 3)
    assert scores["directed_macro_f1"].n_invalid == 1
