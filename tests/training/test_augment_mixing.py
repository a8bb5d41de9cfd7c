"""Two rows of the same labels made one."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from training.augment.made import Made, NotMade
from training.augment.mixing import WINDOW, crossed, joined, mix_rows
from training.augment_spec import MixingSpec


def rows_of(*labels: list[str], pair: str | None = None) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{number:032x}", "split": "train", "source": "t", "text": f"text {number} of {'+'.join(names)}", "pair": pair,
            "labels": names, "value": None, "tokens": None, "tags": None, "spans": None, "target": None, "messages": None,
            "chosen": None, "rejected": None, "group": None, "made_by": "", "made_from": "",
        }
        for number, names in enumerate(labels)
    ]  # fmt: skip


def mixed_of(rows: list[dict[str, Any]], spec: MixingSpec, seed: int = 0, task: str = "classification") -> list[Any]:
    return list(mix_rows(lambda: iter(rows), task, spec, seed))


def parts(text: str) -> list[int]:
    """Numbers of the rows a concatenated text was made of."""
    return [int(word) for word in text.split() if word.isdigit()]


@pytest.mark.parametrize("size", [2, 3, WINDOW, WINDOW + 1, 3 * WINDOW])
@pytest.mark.parametrize("copies", [1, 3])
def test_mix_rows_each_row_with_different_others_of_its_class(size: int, copies: int) -> None:
    rows = rows_of(*([["a"]] * size))
    results = mixed_of(rows, MixingSpec(copies=copies))
    pairs = [tuple(parts(r.row["text"])) for r in results if isinstance(r, Made)]
    each = min(copies, size - 1, WINDOW)
    assert len(pairs) == len(set(pairs)) == size * each
    assert Counter(first for first, _ in pairs) == dict.fromkeys(range(size), each)
    assert all(first != second for first, second in pairs)
    assert results.count(NotMade("no_partner")) == size * (copies - each)


def test_mix_rows_classes_are_never_mixed() -> None:
    labels = [["a"], ["b"], ["a", "b"], ["b", "a"], []]
    rows = rows_of(*random.Random(0).choices(labels, k=200))
    for result in mixed_of(rows, MixingSpec(), task="multi_label"):
        assert isinstance(result, Made)
        first, second = (rows[number] for number in parts(result.row["text"]))
        assert sorted(first["labels"]) == sorted(second["labels"]) == sorted(result.row["labels"])
        assert result.row["made_from"] == first["id"]


def test_mix_rows_row_alone_in_its_class_and_row_of_two_texts_are_not_made() -> None:
    assert mixed_of(rows_of(["a"], ["b"]), MixingSpec(copies=2)) == [NotMade("no_partner")] * 4
    assert mixed_of(rows_of(["a"], ["a"], pair="other"), MixingSpec()) == [NotMade("not_one_text")] * 2


def test_mix_rows_other_seed_other_partners() -> None:
    rows = rows_of(*([["a"]] * 100))
    made = [[r.row["text"] for r in mixed_of(rows, MixingSpec(), seed)] for seed in (1, 1, 2)]
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_mix_rows_share_and_named_classes() -> None:
    rows = rows_of(*([["a"], ["b"]] * 500))
    results = mixed_of(rows, MixingSpec(share=0.2, only_labels=("b",)))
    assert all(r.row["labels"] == ["b"] for r in results)
    assert 60 < len(results) < 140


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("one two three four", "five six seven eight", "one two seven eight"),
        ("one two, three.", "five six seven", "one two six seven"),
        ("one", "two", "one two"),
        ("...", "five six!", "... six!"),
        ("one two", "", "one"),
    ],
)
def test_crossed_takes_half_of_the_words_of_each(first: str, second: str, expected: str) -> None:
    assert crossed(first, second).strip() == expected


def test_joined_has_one_space_between() -> None:
    assert joined("a mill. ", "\n it grinds") == "a mill. it grinds"
