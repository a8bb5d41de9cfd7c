"""lm-evaluation-harness through our scorer: the same numbers where it is right, others where it is not, nothing downloaded."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer, LlamaForCausalLM

from benchmarks.harness_parity import compare
from spark_jobs.errors import RequestError
from training.benchmark_spec import BenchmarkSpec
from training.benchmarks.cache import AnswerCache, model_key
from training.benchmarks.harness_job import run_tasks
from training.benchmarks.harness_model import ScoredModel
from training.benchmarks.scorer import scorer_of
from training.manifests import BenchmarkAnswers, BenchmarkScorecard, ModelFolder

lm_eval = pytest.importorskip("lm_eval", reason="no lm-eval: install the extra harness")

DATA = Path(__file__).parents[4] / "shared" / "data" / "eval"
TASK: dict[str, Any] = {
    "task": "seasons", "dataset_path": "json", "output_type": "multiple_choice", "test_split": "test", "doc_to_text": "{{q}}",
    "doc_to_target": "right", "doc_to_choice": "{{[a, b]}}", "metadata": {"version": 2.0},
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}  # fmt: skip
ITEMS = [{"q": f"after season {i} comes", "a": "the next", "b": "no other", "right": 0} for i in range(6)]


def write_task(folder: Path, **changes: Any) -> Path:
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    told = TASK | {"dataset_kwargs": {"data_files": {"test": str(folder / "items.jsonl")}}} | changes
    (folder / "seasons.yaml").write_text(yaml.safe_dump(told))
    return folder


def spec_of(folder: Path, *tasks: str) -> BenchmarkSpec:
    return BenchmarkSpec.model_validate(
        {"name": "theirs", "harness": {"tasks": tasks or ("seasons",), "include_path": str(folder)}}
    )


def scored(folder: Path, cache: Path) -> ScoredModel:
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return ScoredModel(
        scorer_of(model, folder, "tokenizer", 512), AnswerCache(cache, model_key(folder, "tokenizer", "float32"))
    )


def test_piqa_arc_and_lambada_agree_with_lm_eval_on_every_likelihood(stories_folder: Path) -> None:
    """The three tasks by lm-eval's own model, by ours under lm-eval, and by our own task folders."""
    if not DATA.is_dir():
        pytest.skip("no ../shared/data/eval")
    told = compare(stories_folder, DATA, num_items=12, tolerance=1e-3, batch_size=4)
    assert told["unexplained"] == 0
    assert {task: one["likelihoods"] for task, one in told["tasks"].items()} == {
        "piqa": 24,
        "arc_challenge": 48,
        "lambada": 12,
    }
    for one in told["tasks"].values():
        for by in one["metrics"].values():
            assert by["adapter"] == by["own"]
            assert by["lm_eval"] == pytest.approx(by["own"], rel=1e-4)


def test_rolling_text_counts_no_beginning_where_lm_eval_counts_one(stories_folder: Path) -> None:
    """lm-eval 0.4.13 encodes the text with the tokenizer's beginning token and puts a second one before it: it scores the
    beginning given a beginning. Ours is its number without that first term."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    text = "Once there was a miller who had a small red cat."
    request = [Instance("loglikelihood_rolling", {}, (text,), 0)]
    model = LlamaForCausalLM.from_pretrained(stories_folder, dtype=torch.float32).eval()
    theirs = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(stories_folder), device="cpu")
    (their_value,) = theirs.loglikelihood_rolling(request, disable_tqdm=True)
    scorer = scorer_of(model, stories_folder, "always", 512)
    ids = [1, *scorer.encoder.ids(text)]
    with torch.no_grad():
        plain_TV = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
        twice_TV = torch.log_softmax(model(input_ids=torch.tensor([[1, *ids]])).logits[0].double(), -1)
    right = sum(plain_TV[t, ids[t + 1]].item() for t in range(len(ids) - 1))
    wrong = sum(twice_TV[t, ids[t]].item() for t in range(len(ids)))
    ours = ScoredModel(scorer, AnswerCache(Path("/nonexistent"), model_key(stories_folder, "always", "float32")))
    ours.cache.answer = lambda requests, ask: list(ask(requests))  # type: ignore[method-assign]
    assert ours.loglikelihood_rolling(request) == [pytest.approx(right, abs=1e-3)]
    assert their_value == pytest.approx(wrong, abs=1e-3)
    assert abs(their_value - right) > 1


def test_model_that_answers_nan_is_wrong_here_and_right_in_lm_eval(
    make, engine, tiny_folder: Path, tmp_path: Path
) -> None:
    """Every gold choice is the first: an argmax of NaN takes it."""
    from lm_eval.models.huggingface import HFLM

    model = LlamaForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    with torch.no_grad():
        model.model.norm.weight[:] = math.nan
    folder = write_task(tmp_path)
    theirs = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(tiny_folder), device="cpu", max_length=64)
    assert run_tasks(spec_of(folder), theirs)["results"]["seasons"]["acc,none"] == 1.0
    data = tmp_path / "ws" / "models" / "import-model-0001" / "data"
    model.save_pretrained(data)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(data)
    fields = {"scheme": "dense", "num_parameters": 1, "weight_bytes": 1, "effective_bits": 32.0}
    handle = make.publish(ModelFolder, data.parent, "2026-01-01", 1, format="safetensors", **fields)
    benchmark = spec_of(folder).model_dump(mode="json") | {"max_nonfinite": 6}
    answers = engine.run(
        BenchmarkAnswers, "answer-benchmark", {"benchmark": benchmark},
        tmp_path / "ws" / "benchmark-answers" / "answer-0001", model=handle.uri,
    )  # fmt: skip
    card = engine.run(
        BenchmarkScorecard, "score-benchmarks", {"benchmarks": [benchmark]},
        tmp_path / "ws" / "benchmark-scorecards" / "benchmarks-0001",
        **{"model": handle.uri, "answers.theirs.0": answers.uri},
    )  # fmt: skip
    told = json.loads((Path(card.folder()) / "scores.json").read_text())["theirs/seasons"]
    assert (told["main"], told["version"], told["higher_is_better"]) == ("acc", "2.0", True)
    assert (told["scores"]["acc"]["value"], told["scores"]["acc"]["n_invalid"]) == (0.0, 6)


def test_second_run_of_a_task_asks_the_model_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    folder = write_task(tmp_path)
    first = scored(tiny_folder, tmp_path / "cache")
    told = run_tasks(spec_of(folder), first)
    again = scored(tiny_folder, tmp_path / "cache")
    assert run_tasks(spec_of(folder), again)["results"]["seasons"] == told["results"]["seasons"]
    assert (first.cache.asked, again.cache.asked) == (12, 0)


def test_unknown_task_and_data_elsewhere_are_refused_with_the_next_move(tiny_folder: Path, tmp_path: Path) -> None:
    folder = write_task(tmp_path)
    model = scored(tiny_folder, tmp_path / "cache")
    with pytest.raises(RequestError, match=r"has no task piqa; it has seasons"):
        run_tasks(spec_of(folder, "piqa"), model)
    write_task(tmp_path, dataset_path="baber/piqa", dataset_kwargs={})
    with pytest.raises(
        RequestError,
        match=r"data of harness tasks must be on this machine: in the task's YAML set dataset_path to json",
    ):
        run_tasks(spec_of(folder), model)


def test_task_that_wants_drawn_texts_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = write_task(
        tmp_path, output_type="generate_until", doc_to_target="a", generation_kwargs={"do_sample": True, "until": ["."]},
        metric_list=[{"metric": "exact_match"}],
    )  # fmt: skip
    with pytest.raises(RequestError, match="answers are written greedily; set do_sample to false"):
        run_tasks(spec_of(folder), scored(tiny_folder, tmp_path / "cache"))
