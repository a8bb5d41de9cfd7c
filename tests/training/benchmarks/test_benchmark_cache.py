"""Answers kept by model: what is asked again, and what another model is never given."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from training.benchmarks.cache import KEPT_AT_ONCE, AnswerCache, model_key
from training.benchmarks.requests import Answer, Continuation, Generation, Likelihood, Request, Rolling, Written
from training.benchmarks.scorer import scorer_of
from training.model_folder import load_folder

ASKED = [Continuation("a", " the"), Rolling("the fox"), Generation("what", ("x",), 4), Continuation("a", " the")]


def ask_of(folder: Path, asked: list[Request]) -> Callable[[Sequence[Request]], list[Answer]]:
    """The model itself, noting what it was asked."""
    scorer = scorer_of(load_folder(folder), folder, "always", 4096)

    def ask(requests: Sequence[Request]) -> list[Answer]:
        asked.extend(requests)
        return scorer.answer(requests)

    return ask


def cache_of(root: Path, folder: Path) -> AnswerCache:
    return AnswerCache(root, model_key(folder, "always", "float32"))


def test_second_run_asks_nothing_and_answers_the_same(tiny_folder: Path, tmp_path: Path) -> None:
    asked: list[Request] = []
    first = cache_of(tmp_path, tiny_folder).answer(ASKED, ask_of(tiny_folder, asked))
    assert asked == ASKED[:3]  # equal requests once
    again = cache_of(tmp_path, tiny_folder)
    assert again.answer(ASKED, ask_of(tiny_folder, asked)) == first
    assert (len(asked), again.found, again.asked) == (3, 3, 0)


def test_another_model_is_asked_although_the_same_was_asked_before(
    tiny_folder: Path, other_folder: Path, tmp_path: Path
) -> None:
    asked: list[Request] = []
    first = cache_of(tmp_path, tiny_folder).answer(ASKED, ask_of(tiny_folder, []))
    second = cache_of(tmp_path, other_folder).answer(ASKED, ask_of(other_folder, asked))
    assert asked == ASKED[:3]
    assert first != second


@pytest.mark.parametrize("changed", ["model.safetensors", "config.json", "tokenizer.json", "beginning", "dtype"])
def test_key_follows_whatever_decides_an_answer(tiny_folder: Path, tmp_path: Path, changed: str) -> None:
    copy = tmp_path / "model"
    shutil.copytree(tiny_folder, copy)
    assert model_key(copy, "always", "float32") == model_key(tiny_folder, "always", "float32")
    if (copy / changed).is_file():
        (copy / changed).write_bytes((copy / changed).read_bytes() + b" ")
    beginning = "tokenizer" if changed == "beginning" else "always"
    other = model_key(copy, beginning, "bfloat16" if changed == "dtype" else "float32")
    assert other.digest != model_key(tiny_folder, "always", "float32").digest


def test_answers_without_a_finite_value_are_asked_again(tiny_folder: Path, tmp_path: Path) -> None:
    cache = cache_of(tmp_path, tiny_folder)
    broken: list[Answer] = [
        Likelihood(float("nan"), 1, False, ("non_finite",)),
        Written(None, 0, "length", ("non_finite",)),
    ]
    requests = [ASKED[0], ASKED[2]]
    cache.answer(requests, lambda _: broken)
    assert not list(tmp_path.rglob("*.jsonl"))
    asked: list[Request] = []
    cache_of(tmp_path, tiny_folder).answer(requests, ask_of(tiny_folder, asked))
    assert asked == requests


def test_killed_run_keeps_what_it_had_answered_and_leaves_no_part_that_is_read(
    tiny_folder: Path, tmp_path: Path
) -> None:
    requests = [Continuation("a", f" {i}") for i in range(KEPT_AT_ONCE + 5)]
    calls: list[int] = []

    def dies(part: Sequence[Request]) -> list[Answer]:
        calls.append(len(part))
        if len(calls) > 1:
            raise KeyboardInterrupt
        return [Likelihood(-1.0, 1)] * len(part)

    cache = cache_of(tmp_path, tiny_folder)
    with pytest.raises(KeyboardInterrupt):
        cache.answer(requests, dies)
    (cache.folder / ".half.1").write_text('["torn')
    after = cache_of(tmp_path, tiny_folder)
    after.answer(requests, lambda part: [Likelihood(-2.0, 1)] * len(part))
    assert (after.found, after.asked) == (KEPT_AT_ONCE, 5)
    assert all(json.loads(line) for path in cache.folder.glob("*.jsonl") for line in path.read_text().splitlines())
