"""From answers to scores: by hand where they can be counted, and never a reward for a broken answer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.benchmarks.asking import Row, judge
from training.benchmarks.items import Item
from training.benchmarks.requests import Answer, Likelihood, Written
from training.benchmarks.results import main_values, read_results, write_results
from training.benchmarks.score_job import result_of, slices_of
from training.benchmarks.scoring import scores_of, value_of
from training.benchmarks.task_file import TaskFile
from training.metrics.bootstrap import Bootstrap

DRAWS = Bootstrap(replicates=50)
NAN = Likelihood(math.nan, 1, False, ("non_finite",))


def task_of(kind: str, **fields: Any) -> TaskFile:
    needed = {"prompt": "{{ q }}", "choices": "c", "gold": "g", "target": "{{ t }}", "answers": "a"}
    return TaskFile.model_validate({"version": 3, "kind": kind, "splits": {"test": "x"}} | needed | fields)


def question(*choices: str, gold: int = 0, **slices: str) -> Item:
    return Item("1", 1, "q", "q", choices=choices, gold=gold, slices=slices)


def told(*nats: float) -> list[Answer]:
    return [Likelihood(-value, 1) for value in nats]


def rows_of(task: TaskFile, *pairs: tuple[Item, list[Answer]]) -> list[Row]:
    return [judge(task, item, answers) for item, answers in pairs]


@pytest.mark.parametrize(
    ("main", "chosen"),
    [("accuracy", "no"), ("accuracy_norm", "naïveté"), ("accuracy_bytes", "naïveté"), ("accuracy_pmi", "perhaps")],
)
def test_main_metric_decides_which_choice_is_taken(main: str, chosen: str) -> None:
    """Nats 3, 7, 6 of "no", "naïveté" (7 characters, 9 bytes), "perhaps" (7); without the question 3, 6, 9: it helps the last."""
    task = task_of("multiple_choice", metrics=[main, "accuracy_pmi"] if main != "accuracy_pmi" else [main])
    nats = (3.0, 6.0, 7.0, 3.0, 6.0, 9.0)
    row = judge(task, question("no", "naïveté", "perhaps"), told(*nats))
    assert row.prediction == chosen


def test_accuracy_pmi_is_what_the_question_adds() -> None:
    task = task_of("multiple_choice", metrics=["accuracy", "accuracy_pmi"])
    rows = rows_of(task, (question("a", "b", gold=1), told(2.0, 3.0, 1.0, 5.0)))
    scores = scores_of(task, rows, DRAWS)
    assert (scores["accuracy"].value, scores["accuracy_pmi"].value) == (0.0, 1.0)
    assert "unconditional:Answer:" in scores["accuracy_pmi"].signature
    assert rows[0].right is False  # by the main metric


def test_first_of_equal_choices_is_taken_and_the_tie_counted() -> None:
    task = task_of("multiple_choice")
    rows = rows_of(task, (question("ab", "cd", gold=0), told(1.0, 1.0)), (question("ab", "cd", gold=1), told(1.0, 1.0)))
    result = result_of(task, rows, DRAWS)
    assert (result.scores["accuracy"].value, result.counts["tied"]) == (0.5, 2)


BROKEN: list[tuple[str, Item, list[Answer]]] = [
    ("multiple_choice", question("a", "b"), [NAN, NAN]),
    ("multiple_choice", question("a", "b"), [*told(1.0), NAN]),
    ("classification_by_likelihood", question("a", "b"), [NAN, *told(1.0)]),
    ("continuation", Item("1", 1, "q", "q", target="t"), [NAN]),
    ("generation", Item("1", 1, "q", "q", answers=("",)), [Written(None, 0, "length", ("non_finite",))]),
]


@pytest.mark.parametrize(("kind", "item", "answers"), BROKEN)
def test_answer_that_is_not_finite_is_wrong_and_counted(kind: str, item: Item, answers: list[Answer]) -> None:
    """`argmax` of NaN is 0, which is the gold choice here; an empty text would equal the empty reference."""
    task = task_of(kind)
    result = result_of(task, rows_of(task, (item, answers)), DRAWS)
    assert (result.scores[result.main].value, result.scores[result.main].n_invalid) == (0.0, 1)
    assert (result.counts["not_finite"], result.counts["non_finite"]) == (1, 1)


def test_text_that_is_not_finite_leaves_its_likelihoods_undefined() -> None:
    task = task_of("rolling_text", prompt="")
    item = Item("1", 1, "", "", target="abc")
    scores = scores_of(task, rows_of(task, (item, [NAN]), (item, told(1.0))), DRAWS)
    assert math.isnan(scores["bits_per_byte"].value)
    assert scores["bits_per_byte"].n_invalid == 1


def test_perplexities_divide_sums_by_the_units_of_the_original_text() -> None:
    """14 nats over "naïve soirée" (12 characters, 14 bytes, 2 words), in 4 tokens."""
    task = task_of("rolling_text", prompt="")
    rows = rows_of(task, (Item("1", 1, "", "", target="naïve soirée"), [Likelihood(-14.0, 4)]))
    scores = {name: score.value for name, score in scores_of(task, rows, DRAWS).items()}
    assert scores == pytest.approx(
        {"bits_per_byte": 1 / math.log(2), "perplexity": math.exp(3.5), "byte_perplexity": math.e, "word_perplexity": math.exp(7)}
    )  # fmt: skip
    assert value_of(task, rows[0]) == pytest.approx(-1 / math.log(2))


def test_item_perplexity_is_by_item_and_perplexity_by_token() -> None:
    task = task_of("continuation", metrics=["item_perplexity", "perplexity", "accuracy"])
    item = Item("1", 1, "q", "q", target="t")
    rows = rows_of(task, (item, [Likelihood(-1.0, 1, True)]), (item, [Likelihood(-5.0, 3, False)]))
    scores = {name: score.value for name, score in scores_of(task, rows, DRAWS).items()}
    assert scores == pytest.approx({"item_perplexity": math.exp(3), "perplexity": math.exp(1.5), "accuracy": 0.5})


def test_classes_are_scored_by_class() -> None:
    task = task_of("classification_by_likelihood")
    pairs = [(0, (1.0, 2.0)), (1, (1.0, 2.0)), (1, (3.0, 2.0)), (1, (3.0, 2.0))]
    rows = rows_of(task, *((question("good", "bad", gold=gold), told(*nats)) for gold, nats in pairs))
    scores = scores_of(task, rows, DRAWS)
    assert scores["accuracy"].value == 0.75
    assert scores["macro_f1"].value == pytest.approx((2 / 3 + 0.8) / 2)


def test_written_answers_are_filtered_and_compared() -> None:
    task = task_of("generation", metrics=["exact_match", "token_f1", "chrf"], filters=[{"kind": "first_line"}])
    rows = rows_of(
        task,
        (Item("1", 1, "q", "q", answers=("the red mill", "mill")), [Written("Mill.\nand more", 5, "stop")]),
        (Item("2", 2, "q", "q", answers=("the red mill",)), [Written("red", 1, "stop")]),
    )
    scores = scores_of(task, rows, DRAWS)
    assert scores["exact_match"].value == 0.5
    assert scores["token_f1"].value == pytest.approx(0.75)
    assert [row.prediction for row in rows] == ["Mill.", "red"]
    assert [value_of(task, row) for row in rows] == [1.0, 0.0]


def test_confidence_of_choices_is_their_softmax() -> None:
    """Of two choices one e times as likely: 0.731; right once and wrong once."""
    task = task_of("multiple_choice")
    rows = rows_of(task, *((question("ab", "cd", gold=gold), told(1.0, 2.0)) for gold in (0, 1)))
    scores = scores_of(task, rows, DRAWS)
    p = math.e / (1 + math.e)
    assert scores["ece"].value == pytest.approx(p - 0.5)
    assert scores["brier"].value == pytest.approx((1 - p) ** 2 + p**2)


def test_slices_have_their_own_items_and_intervals() -> None:
    task = task_of("multiple_choice")
    right, wrong = told(1.0, 2.0), told(2.0, 1.0)
    rows = rows_of(
        task, (question("a", "b", part="x"), right), (question("a", "b", part="x"), wrong), (question("a", "b", part="y"), right),
    )  # fmt: skip
    slices = slices_of(task, rows, DRAWS)
    assert {value: (s.value, s.n) for value, s in slices["part"].items()} == {"x": (0.5, 2), "y": (1.0, 1)}
    assert slices["part"]["x"].low < 0.5 < slices["part"]["x"].high
    assert {value: s.n for value, s in slices["length"].items()} == {"0-99": 3}


def test_version_of_the_task_stands_in_every_signature() -> None:
    task = task_of("multiple_choice")
    scores = scores_of(task, rows_of(task, (question("a", "b"), told(1.0, 2.0))), DRAWS)
    assert all(score.signature.startswith("kind:multiple_choice|version:3|") for score in scores.values())


@settings(deadline=None)
@given(nats=st.lists(st.floats(0.1, 50), min_size=2, max_size=5), data=st.data())
def test_value_of_an_item_is_more_for_the_better_model(nats: list[float], data: st.DataObject) -> None:
    """Whatever the main metric: the model that gives the gold choice more of its likelihood never has the lower value."""
    gold = data.draw(st.integers(0, len(nats) - 1))
    main = data.draw(st.sampled_from(["accuracy", "accuracy_norm", "accuracy_bytes", "brier"]))
    task = task_of("multiple_choice", metrics=[main])
    item = question(*(f"choice {i}" for i in range(len(nats))), gold=gold)
    better = [value - (2.0 if i == gold else 0.0) for i, value in enumerate(nats)]
    assert value_of(task, judge(task, item, told(*better))) >= value_of(task, judge(task, item, told(*nats))) - 1e-12


def test_main_values_are_told_by_benchmark_where_they_are_defined(tmp_path: Path) -> None:
    task = task_of("multiple_choice")
    text = task_of("rolling_text", prompt="")
    results = {
        "mine": result_of(task, rows_of(task, (question("a", "b"), told(1.0, 2.0))), DRAWS),
        "broken": result_of(text, rows_of(text, (Item("1", 1, "", "", target="abc"), [NAN])), DRAWS),
    }
    write_results(results, tmp_path / "scores.json")
    assert {name: one.counts for name, one in read_results(tmp_path / "scores.json").items()} == {
        name: one.counts for name, one in results.items()
    }
    assert main_values(tmp_path / "scores.json") == {"mine/accuracy": 1.0}
