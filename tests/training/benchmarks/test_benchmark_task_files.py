"""task.yaml and its items: what they become, and how a fault in either is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_jobs.errors import DataError, RequestError
from training.benchmark_spec import BenchmarkSpec
from training.benchmarks.asking import filtered, requests_of
from training.benchmarks.items import Benchmark, load_benchmark
from training.benchmarks.requests import Continuation, Generation, Rolling
from training.benchmarks.task_file import FilterSpec, files_of, read_task

EXAMPLES = Path(__file__).parents[3] / "examples" / "benchmarks"
DATA = Path(__file__).parents[4] / "shared" / "data" / "eval"
TASK: dict[str, Any] = {
    "version": 1, "kind": "multiple_choice", "splits": {"test": "items.jsonl"},
    "prompt": "{{ q }}?", "choices": ["{{ a }}", "{{ b }}"], "gold": "right",
}  # fmt: skip
ITEMS = [
    {"q": f"question {i}", "a": f"first {i}", "b": f"second {i}", "right": i % 2, "part": "xy"[i % 2]} for i in range(6)
]


def write(folder: Path, task: dict[str, Any], items: list[Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "task.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    lines = [item if isinstance(item, str) else json.dumps(item) for item in items]
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def load(folder: Path, **fields: Any) -> Benchmark:
    return load_benchmark(BenchmarkSpec(name="mine", folder=str(folder), **fields))


def test_item_of_several_choices_asks_each_after_the_prompt(tmp_path: Path) -> None:
    benchmark = load(write(tmp_path, TASK, ITEMS))
    assert requests_of(benchmark.task, benchmark.items[1]) == [
        Continuation("question 1?", " first 1"), Continuation("question 1?", " second 1"),
    ]  # fmt: skip
    assert [item.gold for item in benchmark.items] == [0, 1, 0, 1, 0, 1]
    assert [item.id for item in benchmark.items] == ["1", "2", "3", "4", "5", "6"]


def test_choices_and_gold_may_be_fields_of_the_item(tmp_path: Path) -> None:
    task = TASK | {"choices": "options", "gold": "answer"}
    items = [{"q": "colour of snow", "options": ["black", "white", "red"], "answer": "white"}]
    (item,) = load(write(tmp_path, task, items)).items
    assert (item.choices, item.gold, item.solution) == (("black", "white", "red"), 1, "white")


@pytest.mark.parametrize(
    ("task", "items", "asked"),
    [
        ({"kind": "continuation", "target": "{{ w }}"}, [{"q": "a b", "w": "c"}], Continuation("a b?", " c")),
        ({"kind": "generation", "answers": "w", "until": ["."], "max_new_tokens": 3}, [{"q": "a", "w": "c"}],
         Generation("a?", (".",), 3)),
        ({"kind": "rolling_text", "target": "{{ q }}", "prompt": ""}, [{"q": "a b"}], Rolling("a b")),
    ],
    ids=["continuation", "generation", "rolling_text"],
)  # fmt: skip
def test_each_kind_asks_one_request(tmp_path: Path, task: dict[str, Any], items: list[Any], asked: Any) -> None:
    kept = {k: v for k, v in TASK.items() if k not in ("choices", "gold")}
    benchmark = load(write(tmp_path, kept | task, items))
    assert requests_of(benchmark.task, benchmark.items[0]) == [asked]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "quiz"}, r"task\.yaml, line 2: kind: Input should be 'multiple_choice'"),
        ({"question": "x"}, r"task\.yaml, line 10: question: no such field; known: version, kind, splits"),
        ({"gold": ""}, r"task\.yaml, line 1: task: kind multiple_choice wants prompt, choices, gold; gold is missing"),
        ({"evaluate": "dev"}, r"split 'dev' is none of splits: test"),
        ({"metrics": ["bleu"]}, r"metrics: multiple_choice has no bleu; it has accuracy, accuracy_norm"),
        ({"filters": [{"kind": "regex"}]}, r"task\.yaml, line 11: filters\.0: .*a pattern is wanted for regex"),
        ({"filters": [{"kind": "regex", "pattern": "("}]}, r"'\(' is no regular expression"),
    ],
)
def test_fault_of_a_task_file_names_file_line_and_field(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_task(write(tmp_path, TASK | changes, ITEMS))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"q": ', r"items\.jsonl, line 3: not JSON"),
        ("[1, 2]", r"items\.jsonl, line 3: wanted an object with fields, found list"),
        (
            {"q": "x", "a": "y", "right": 0},
            r"items\.jsonl, line 3: choices\[1\]: 'b' is undefined; the item has a, q, right",
        ),
        ({"q": "x", "a": "y", "b": " ", "right": 0}, r"items\.jsonl, line 3: choices\[1\]: it is empty"),
        (
            {"q": "x", "a": "y", "b": "z", "right": 2},
            r"items\.jsonl, line 3: gold: 2 is neither the number of one of 2 choices",
        ),
        ({"q": "x", "a": "y", "b": "z", "right": -1}, r"gold: -1 is neither"),
        ({"q": "x", "a": "y", "b": "z", "right": True}, r"gold: True is neither"),
        ({"q": "x", "a": "y", "b": "z"}, r"items\.jsonl, line 3: gold: 'right' is no field"),
    ],
)
def test_fault_of_an_item_names_file_line_and_field(tmp_path: Path, bad: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(write(tmp_path, TASK, [*ITEMS[:2], bad, *ITEMS[3:]]))


def test_two_items_of_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 3: id: 'x' is also that of line 1"):
        load(write(tmp_path, TASK | {"id": "part"}, ITEMS))


def test_slice_field_with_a_value_for_every_item_is_refused(tmp_path: Path) -> None:
    items = [ITEMS[0] | {"own": i} for i in range(101)]
    with pytest.raises(DataError, match=r"slices\.own: 101 values, at most 100"):
        load(write(tmp_path, TASK | {"slices": {"own": "own"}}, items))


def test_labels_beside_the_items_must_be_as_many(tmp_path: Path) -> None:
    task = TASK | {"splits": {"test": {"file": "items.jsonl", "beside": {"right": "labels.lst"}}}}
    bare = [{k: v for k, v in item.items() if k != "right"} for item in ITEMS]
    folder = write(tmp_path, task, bare)
    (folder / "labels.lst").write_text("1\n0\n1\n1\n0\n0\n")
    assert [item.gold for item in load(folder).items] == [1, 0, 1, 1, 0, 0]
    (folder / "labels.lst").write_text("1\n0\n")
    with pytest.raises(DataError, match=r"labels\.lst: 2 lines beside 6 items of .*items\.jsonl"):
        load(folder)


def test_missing_data_names_the_file_and_the_setting(tmp_path: Path) -> None:
    folder = write(tmp_path, TASK, ITEMS)
    with pytest.raises(RequestError, match=r"benchmark mine: .*items\.jsonl is not there; set its data to the folder"):
        files_of(BenchmarkSpec(name="mine", folder=str(folder), data=str(tmp_path / "nowhere")))


def test_template_reaches_no_further_than_the_item(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="prompt: access to attribute"):
        load(write(tmp_path, TASK | {"prompt": "{{ ''.__class__.__mro__ }}"}, ITEMS))


SHOTS = TASK | {"fewshot": {"split": "test", "count": 2, "delimiter": "\n--\n"}}


def test_examples_are_other_items_with_their_solutions_before_the_prompt(tmp_path: Path) -> None:
    for item in load(write(tmp_path, SHOTS, ITEMS)).items:
        *shown, own = item.asked.split("\n--\n")
        assert own == item.prompt
        assert len(set(shown)) == 2
        assert all(line in {f"{i['q']}? {[i['a'], i['b']][i['right']]}" for i in ITEMS} for line in shown)
        assert not any(line.startswith(item.prompt) for line in shown)


def test_examples_of_an_item_depend_on_seed_and_id_alone(tmp_path: Path) -> None:
    folder = write(tmp_path, SHOTS, ITEMS)
    asked = [item.asked for item in load(folder).items]
    assert [item.asked for item in load(folder, max_items=3).items] == asked[:3]
    assert [item.asked for item in load(folder, seed=1).items] != asked
    assert [item.asked for item in load(folder, num_fewshot=0).items] == [item.prompt for item in load(folder).items]
    assert load(folder, num_fewshot=1).items[0].asked.count("--") == 1


def test_more_examples_than_there_are_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="fewshot: 6 examples of split test, which has 5 others"):
        load(write(tmp_path, SHOTS, ITEMS), num_fewshot=6)
    with pytest.raises(RequestError, match=r"num_fewshot 2, but .*task\.yaml has no fewshot"):
        load(write(tmp_path, TASK, ITEMS), num_fewshot=2)


@settings(deadline=None)
@given(num_items=st.integers(1, 23), shards=st.integers(1, 9))
def test_shards_hold_each_item_once(num_items: int, shards: int) -> None:
    benchmark = Benchmark(
        BenchmarkSpec(name="n", folder="x", shards=shards), read_task(EXAMPLES / "everyday"), tuple(range(num_items))
    )  # type: ignore[arg-type]
    found = [item for number in range(shards) for item in benchmark.shard(number)]
    assert sorted(found) == list(range(num_items))  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("filters", "text", "kept"),
    [
        ([{"kind": "regex", "pattern": r"-?\d+(?:\.\d+)?", "take": "last"}], "So 3 + 4.5 = 7.5 apples", "7.5"),
        ([{"kind": "remove", "pattern": "[$,]"}, {"kind": "regex", "pattern": r"(\d+)"}], "It costs $1,250.", "1250"),
        ([{"kind": "regex", "pattern": r"\((\w)\)|(\w)\."}], "answer b. or (c)", "b"),
        ([{"kind": "regex", "pattern": "x"}], "nothing", ""),
        ([{"kind": "first_line"}, {"kind": "strip"}, {"kind": "lower"}], "\n Yes \nno", "yes"),
    ],
)
def test_filters_take_the_answer_out_of_what_was_written(filters: list[dict[str, str]], text: str, kept: str) -> None:
    assert filtered(text, [FilterSpec.model_validate(one) for one in filters]) == kept


@pytest.mark.parametrize(
    ("name", "count"), [("piqa", 1838), ("arc_challenge", 1172), ("lambada", 5153), ("gsm8k", 1319)]
)
def test_ready_folder_reads_the_published_files(name: str, count: int) -> None:
    if not DATA.is_dir():
        pytest.skip("no ../shared/data/eval")
    benchmark = load_benchmark(BenchmarkSpec(name=name, folder=str(EXAMPLES / name), data=str(DATA)))
    assert len(benchmark.items) == count


def test_ready_folder_that_carries_its_items_loads_with_an_example_each() -> None:
    benchmark = load(EXAMPLES / "everyday")
    assert len(benchmark.items) == 12
    assert all(item.asked.count("\n\n") == 1 for item in benchmark.items)
