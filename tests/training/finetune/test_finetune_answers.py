"""Answers in contexts: characters to tokens and back, windows, the best span, no answer, the loss, ranks."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import BertConfig, BertForQuestionAnswering, PreTrainedTokenizerFast

from training.finetune.answers import QuestionAnswering, answer_of, best_span, normalization_of, place_in
from training.finetune.examples import TaskMaterial, encode_rows
from training.finetune.methods import apply_method
from training.finetune.score import predict_rows
from training.finetune.task import Example, Row, TaskInputs
from training.finetune.windows import cut_windows
from training.finetune_spec import FinetuneSpec, MethodSpec, TaskSpec
from training.loop_spec import OptimizerSpec
from training.parallel_spec import ParallelSpec
from training.pretrain.mesh import Ranks, make_mesh
from training.pretrain.optimizer import make_optimizer
from training.pretrain.parallel import parallelize
from training.pretrain.trainer import rank_positions, train_step

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
CONTEXT = "The old mill stands in Ulm. Anna grinds rye there, and Bob grinds wheat at night."


def wordpieces() -> PreTrainedTokenizerFast:
    """Letters, and a few words; upper case and accents are not seen, as in BERT's uncased vocabularies."""
    letters = [chr(n) for n in range(ord("a"), ord("z") + 1)] + list("水車ß.,?'")
    words = ["the", "mill", "grinds", "who", "where", "what", "is", "rye", "wheat", "anna", "bob", "ulm", "in"]
    vocabulary = [*SPECIAL.values(), *letters, *(f"##{letter}" for letter in letters), *words]
    tokenizer = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def byte_pieces() -> PreTrainedTokenizerFast:
    """Byte-level BPE without special tokens around texts: null is the first token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["[PAD]"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([CONTEXT] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")


TOKENIZERS = {"wordpieces": wordpieces(), "bytes": byte_pieces()}
TOKENIZER = TOKENIZERS["wordpieces"]


def task(max_length: int = 64, stride: int = 4, tokenizer: str = "wordpieces", **options: Any) -> QuestionAnswering:
    spec = TaskSpec(kind="question_answering", max_length=max_length, stride=stride, **options)
    return QuestionAnswering(spec, TOKENIZERS[tokenizer], ())


def row(question: str, *answers: str, context: str = CONTEXT, name: str = "a") -> Row:
    """Answers by their first occurrence in the context; none: unanswerable."""
    spans = [{"start": context.index(a), "end": context.index(a) + len(a), "label": a} for a in answers]
    return {"id": name, "text": question, "pair": context, "spans": spans}


ROWS = [
    row("who grinds rye?", "Anna", name="a"),
    row("who grinds wheat?", "Bob", name="b"),
    row("where is the mill?", "Ulm", "in Ulm", name="c"),
    row("what is in the mill?", name="d"),
    row("what grinds anna?", "rye", name="e"),
]


def tiny(answering: QuestionAnswering, initializer_range: float = 0.1) -> BertForQuestionAnswering:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(TOKENIZER), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=128, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        initializer_range=initializer_range, **answering.config_fields(),
    )  # fmt: skip
    return BertForQuestionAnswering(config).double()


def target_text(example: Example, context: str = CONTEXT) -> str:
    first, last = example.features["target"]
    if first == example.features["null"]:
        return ""
    return context[example.features["starts"][first] : example.features["ends"][last]]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_answer_is_trained_as_its_first_and_last_token(tokenizer: str) -> None:
    (example,) = task(tokenizer=tokenizer, max_length=128).encode(row("where is the mill?", "in Ulm"))
    assert target_text(example) == (" in Ulm" if tokenizer == "bytes" and example.features["starts"][1] else "in Ulm")


def test_answer_inside_a_token_is_the_whole_token() -> None:
    (example,) = task().encode(row("what?", "ill"))
    assert target_text(example) == "mill"


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@given(
    st.text(st.sampled_from(" \nabz.,'ßéÉ水車🙂\u0301\u200d"), min_size=1, max_size=60),
    st.integers(0, 59),
    st.integers(1, 12),
)
@settings(max_examples=200, deadline=None)
def test_any_answer_maps_to_tokens_and_back_to_a_text_that_holds_it(
    tokenizer: str, context: str, start: int, length: int
) -> None:
    text = context[start : start + length]
    answering = task(tokenizer=tokenizer, max_length=512)
    span = {"start": start, "end": start + len(text), "label": text}
    one = {"id": "a", "text": "who?", "pair": context, "spans": [span]}
    examples, unusable = encode_rows(answering, iter([one]))
    if not examples:
        windows = cut_windows(TOKENIZERS[tokenizer], "who?", context, 512, 0)
        seen = [offset for window in windows for offset in window.offsets if offset is not None]
        uncovered = [at for at in range(start, start + len(text)) if not any(s <= at < e for s, e in seen)]
        # Marks and joiners that no token covers can leave nothing of a context, or of an answer at its edge.
        why = {"answer_not_in_context": not text.strip(), "empty_context": not seen, "no_target": bool(uncovered)}
        (reason,) = unusable
        assert why[reason]
        return
    (example,) = examples
    found = target_text(example, context)
    covered = {
        at for s, e in zip(example.features["starts"], example.features["ends"], strict=True) for at in range(s, e)
    }
    lead = len(text) - len(text.lstrip())
    wanted = range(start + lead, start + lead + len(text.strip()))
    if all(at in covered for at in wanted):
        assert text.strip() in found
    first, last = example.features["target"]
    ends, starts = example.features["ends"], example.features["starts"]
    assert ends[first] > wanted[0]  # without its first or its last token it holds less of the answer
    assert starts[last] <= wanted[-1]


def test_window_without_an_answer_points_at_null_and_windows_share_the_stride() -> None:
    examples = task(max_length=24, stride=6).encode(row("who is the mill?", "Bob"))
    assert len(examples) > 2
    assert {target_text(example) for example in examples} == {"", "Bob"}
    covered = [[s for s in example.features["starts"] if s >= 0] for example in examples]
    for before, after in itertools.pairwise(covered):
        assert before[-6:] == after[:6]
    question = TOKENIZER("who is the mill?", add_special_tokens=False)["input_ids"]
    assert all(example.features["input_ids"][1 : 1 + len(question)] == question for example in examples)
    assert all(example.num_tokens <= 24 for example in examples)


def test_first_right_answer_inside_a_window_is_its_target() -> None:
    windows = [[(0, 3), (4, 7), (8, 12)], [(8, 12), (13, 18)]]
    answers = [(8, 18), (4, 7)]
    assert [place_in(window, answers) for window in windows] == [(1, 1), (0, 1)]
    assert place_in(windows[0], [(8, 18)]) is None


def test_long_question_is_cut_so_that_half_is_left_for_the_context() -> None:
    (first, *_) = task(max_length=23).encode(row("who " * 50, "Anna"))
    seen = [start >= 0 for start in first.features["starts"]]
    assert sum(seen) == 10  # of 23: ten of the question, three special tokens
    assert first.features["input_ids"][1:11] == TOKENIZER("who " * 10, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("max_length", range(8, 30))
def test_any_length_and_stride_leaves_windows_that_move_on(max_length: int) -> None:
    examples = task(max_length=max_length, stride=1000).encode(row("who grinds rye at night?"))
    starts = [max(example.features["starts"]) for example in examples]
    assert starts == sorted(set(starts))
    assert starts[-1] == CONTEXT.rindex(".")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"text": " "}, "empty_text"),
        ({"pair": ""}, "empty_context"),
        ({"pair": None}, "empty_context"),
        ({"spans": [{"start": 4, "end": 8, "label": "mill"}]}, "answer_not_in_context"),  # there it says "old "
        ({"spans": [{"start": 0, "end": 3, "label": "The"}, {"start": 80, "end": 99, "label": ""}]}, "answer_not_in_context"),
        ({"spans": [{"start": -3, "end": 3, "label": ""}]}, "answer_not_in_context"),
        ({"spans": [{"start": 5, "end": 5, "label": ""}]}, "answer_not_in_context"),
        ({"spans": [{"start": 3, "end": 4, "label": " "}]}, "answer_not_in_context"),
        ({"spans": [{"start": 0, "end": 80, "label": ""}]}, "no_target"),  # longer than any window
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used_are_counted_by_reason(changes: dict[str, Any], reason: str) -> None:
    bad = {"id": "z", "text": "who?", "pair": CONTEXT, "spans": []} | changes
    examples, unusable = encode_rows(task(max_length=24), iter([*ROWS, bad]))
    assert unusable == {reason: 1}
    assert {example.id for example in examples} == {one["id"] for one in ROWS}


@pytest.mark.parametrize("pad", ["[PAD]", "[SEP]", "mill"])  # what is padding is told by place, never by id
def test_loss_is_that_of_transformers_for_each_window_alone_and_padding_gets_no_probability(pad: str) -> None:
    answering = task(max_length=40)
    answering.pad_id = TOKENIZER.convert_tokens_to_ids(pad)
    model = tiny(answering).eval()
    examples, _ = encode_rows(answering, iter(ROWS))
    inputs = answering.collate(examples)
    assert len({example.num_tokens for example in examples}) > 1  # there is padding
    expected = 0.0
    for example in examples:
        first, last = (torch.tensor([place]) for place in example.features["target"])
        ids = torch.tensor([example.features["input_ids"]])
        expected += 2 * float(model(ids, start_positions=first, end_positions=last).loss.detach())
    loss = answering.loss(model(**inputs.model), inputs)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-12)
    assert inputs.targets_BS.shape == (len(examples), 2)
    torch.autograd.backward(loss)
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 14))
@settings(max_examples=150, deadline=None)
def test_best_span_is_that_of_trying_all(seed: int, num_tokens: int, max_tokens: int) -> None:
    draws = np.random.default_rng(seed)
    logits_2T = draws.integers(-3, 4, (2, num_tokens)).astype(np.float64)
    allowed_T = draws.random(num_tokens) < 0.7
    allowed_T[draws.integers(num_tokens)] = True
    tried = {
        (first, last): logits_2T[0, first] + logits_2T[1, last]
        for first in range(num_tokens)
        for last in range(first, min(num_tokens, first + max_tokens))
        if allowed_T[first] and allowed_T[last]
    }
    best = max(tried.values())
    first, last, value = best_span(logits_2T, allowed_T, max_tokens)
    assert value == best
    assert (first, last) == next(span for span, sum_ in tried.items() if sum_ == best)


def test_answers_are_never_in_the_question_or_in_padding() -> None:
    """Whatever the logits are: here they are highest outside the context."""
    answering = task(max_length=40, max_answer_tokens=3)
    inputs = answering.collate([example for one in ROWS for example in answering.encode(one)])

    class Outside(torch.nn.Linear):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            outside = (inputs.wanted["starts"] < 0).double() * 100
            noise = torch.randn(*input_ids.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            return type("Output", (), {"start_logits": outside + noise, "end_logits": outside - noise})

    for prediction in answering.predict(Outside(1, 1), inputs):
        assert 0 <= prediction["start"] < prediction["end"] <= len(CONTEXT)
        tokens = TOKENIZER(CONTEXT[prediction["start"] : prediction["end"]], add_special_tokens=False)["input_ids"]
        assert len(tokens) <= 3
        assert prediction["score"] < 0


def test_logits_that_are_not_finite_give_no_answer() -> None:
    answering = task()
    model = tiny(answering).eval()
    with torch.no_grad():
        model.qa_outputs.bias[1] = float("nan")
    (prediction,) = answering.predict(model, answering.collate(answering.encode(ROWS[0])))
    assert prediction == {"start": None, "end": None, "score": None}


@pytest.mark.parametrize(
    ("windows", "answer"),
    [
        ([(4, 7, 1.0), (8, 12, 3.0), (0, 3, 2.0)], "mill"),
        ([(4, 7, -1.0), (8, 12, -3.0)], ""),
        ([(4, 7, 0.0)], ""),  # as likely as no answer
        ([(4, 7, 1.0), (None, None, None)], None),
        ([], None),
    ],
)
def test_window_with_the_highest_odds_against_null_answers(
    windows: list[tuple[int | None, int | None, float | None]], answer: str | None
) -> None:
    predictions = [dict(zip(("start", "end", "score"), window, strict=True)) for window in windows]
    assert answer_of(CONTEXT, predictions, may_abstain=True) == answer


@pytest.mark.parametrize(("may_abstain", "right"), [(True, 0.0), (False, 1.0)])
def test_set_whose_questions_all_have_answers_can_be_answered_always(may_abstain: bool, right: float) -> None:
    start = CONTEXT.index("Anna")
    windows = [{"start": start, "end": start + 4, "score": -1.0}, {"start": 0, "end": 3, "score": -2.0}]
    scores = task(may_abstain=may_abstain).score(ROWS[:1], {"a": windows}, 0)
    assert scores["exact_match"].value == right


def test_tiny_model_learns_answers_over_windows_and_to_give_none() -> None:
    answering = task(max_length=40, stride=8)
    model = tiny(answering, initializer_range=0.2).train()
    examples, _ = encode_rows(answering, iter(ROWS))
    assert len(examples) > len(ROWS)
    inputs = answering.collate(examples)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(120):
        optimizer.zero_grad()
        torch.autograd.backward(answering.loss(model(**inputs.model), inputs) / len(examples))
        optimizer.step()
    predictions, unusable = predict_rows(model.eval(), answering, ROWS, 3)
    scores = answering.score(ROWS, predictions, 0)
    assert not unusable
    assert next(iter(scores)) == "token_f1"
    assert [scores[name].value for name in ("token_f1", "exact_match", "exact_match/unanswerable")] == [1.0, 1.0, 1.0]


def test_row_without_a_prediction_is_wrong_even_if_unanswerable() -> None:
    right = {"start": CONTEXT.index("Anna"), "end": CONTEXT.index("Anna") + 4, "score": 1.0}
    scores = task().score(ROWS, {"a": [right], "b": [], "c": [], "d": [], "e": []}, 0)
    assert scores["exact_match"].value == pytest.approx(1 / 5)
    assert scores["exact_match"].n_invalid == 4


@pytest.mark.parametrize(
    ("texts", "normalization"),
    [
        (["Who grinds rye?"], "squad"),
        (["Wo steht die Mühle?", "Wer mahlt?"], "squad"),
        (["谁在磨坊?"], "unicode"),
        (["चक्की कहाँ है?"], "unicode"),
        (["2 + 2 = ?"], "squad"),
    ],
)
def test_normalization_follows_the_script_of_the_questions(texts: Sequence[str], normalization: str) -> None:
    assert normalization_of(texts) == normalization


def test_part_of_a_chinese_answer_scores_by_its_characters() -> None:
    context = "磨坊在乌尔姆。"
    one = {"id": "a", "text": "磨坊在哪里?", "pair": context, "spans": [{"start": 3, "end": 6, "label": "乌尔姆"}]}
    scores = task().score([one], {"a": [{"start": 3, "end": 5, "score": 1.0}]}, 0)
    assert scores["token_f1"].value == pytest.approx(0.8)
    assert "normalization:unicode" in scores["token_f1"].signature


def test_virtual_tokens_of_prompt_tuning_do_not_shift_the_answer() -> None:
    answering = task()
    model: Any = apply_method(tiny(answering), MethodSpec(kind="prompt", num_virtual_tokens=4), "QUESTION_ANS").double()
    inputs = answering.collate([example for one in ROWS for example in answering.encode(one)])
    output = model(**inputs.model)
    num_tokens = inputs.model["input_ids"].shape[1]
    assert output.start_logits.shape[1] == num_tokens + 4
    expected = 0.0
    for row_logits, mask, target in zip(
        zip(output.start_logits[:, 4:], output.end_logits[:, 4:], strict=True),
        inputs.model["attention_mask"].bool(),
        inputs.targets_BS,
        strict=True,
    ):
        for logits, place in zip(row_logits, target, strict=True):
            expected += float((torch.logsumexp(logits[mask], 0) - logits[place]).detach())
    assert float(answering.loss(output, inputs).detach()) == pytest.approx(expected, rel=1e-12)


def weights_after_steps(ranks: Ranks, strategy: str) -> dict[str, Tensor]:
    """Three steps of four windows: ranks have windows of other lengths, padded otherwise."""
    answering = task(max_length=40, stride=8)
    examples, _ = encode_rows(answering, iter(ROWS))
    sgd = OptimizerSpec(kind="sgd", learning_rate=0.1)  # Adam turns the rounding of a gradient that is 0 into a step
    spec = FinetuneSpec(sequences_per_step=4, optimizer=sgd, parallel=ParallelSpec(strategy=strategy))  # type: ignore[arg-type]
    mesh = make_mesh(ranks, spec.parallel.degrees(ranks.world_size))
    model = parallelize(tiny(answering), mesh, spec.parallel, output_loss=answering.loss)
    optimizer = make_optimizer(model.module, spec.optimizer)
    material = TaskMaterial(answering, examples, spec.seed, 4, mesh.degrees.batch)
    for step in range(3):
        parts: list[TaskInputs] = material.micro_batches(rank_positions(step, 4, mesh.degrees, ranks.rank), 1)
        train_step(model, optimizer, parts, 0.1, 1.0)
    tensors = {}
    for name, parameter in model.module.named_parameters():
        value = parameter.detach()
        tensors[name] = value.full_tensor() if hasattr(value, "full_tensor") else value.clone()
    return tensors


def test_two_ranks_train_the_weights_of_one(run_ranks: Callable[[Callable[[Ranks], Any], int], list[Any]]) -> None:
    (alone,) = run_ranks(functools.partial(weights_after_steps, strategy="ddp"), 1)
    start = tiny(task()).state_dict()
    assert float((alone["qa_outputs.weight"] - start["qa_outputs.weight"]).abs().max()) > 1e-3
    for strategy in ("ddp", "fsdp"):
        together = run_ranks(functools.partial(weights_after_steps, strategy=strategy), 2)
        for rank in together:
            assert rank.keys() == alone.keys()
            for name, tensor in rank.items():
                torch.testing.assert_close(tensor, alone[name], rtol=1e-9, atol=1e-12)
