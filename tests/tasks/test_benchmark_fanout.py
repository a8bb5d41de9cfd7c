"""Benchmarks as steps with real child processes: what Dask workers answer is what the flow would have answered, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from prefect.logging import disable_run_logger
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tasks import search_dask
from tasks.benchmark_dask import answer_shard, job_of
from tasks.benchmark_steps import answer_steps, digests_of, score_benchmarks
from tasks.engine import Engine, engine_in_use
from tasks.finetune_steps import import_model
from tasks.machine import set_environment
from tasks.workspace import Workspace
from training.benchmark_spec import BenchmarkSpec
from training.benchmarks.results import read_results
from training.finetune_spec import ImportModelSpec
from training.manifests import BenchmarkScorecard

EVERYDAY = Path(__file__).parents[2] / "examples" / "benchmarks" / "everyday"
NIGHT = "2026-11-27"
SPEC = BenchmarkSpec(name="everyday", folder=str(EVERYDAY), shards=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Llama whose tokens are characters."""
    folder = tmp_path_factory.mktemp("model")
    words = ["<unk>", "<bos>", "<eos>", *sorted({c for line in (EVERYDAY / "items.jsonl").read_text() for c in line})]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def no_application_left() -> Iterator[None]:
    """The worker's process keeps its application for the next shard; this process is not a worker for long."""
    yield
    for application in search_dask._applications.values():
        application.close()
    search_dask._applications.clear()


def scored(root: Path, folder: Path, by_workers: bool) -> tuple[BenchmarkScorecard, list[str]]:
    """The scorecard, and the state of each step of this flow."""
    engine = Engine(Workspace(root), NIGHT)
    with engine_in_use(engine):
        model = import_model(ImportModelSpec(path=str(folder)))
        if by_workers:
            steps = answer_steps(model, SPEC, digests_of(SPEC), NIGHT)
            with disable_run_logger():
                told = [json.loads(answer_shard.fn(job_of(step, root))) for step in reversed(steps)]
            assert [one["state"] for one in told] == ["ran", "ran"]
        card = score_benchmarks("model", model, None, None, (SPEC,))
    return card, [f"{result.step} {result.state}" for result in engine.results]


@pytest.mark.usefixtures("no_application_left")
def test_shards_that_workers_answered_give_the_scorecard_of_a_flow_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment()
    monkeypatch.delenv("NIGHTMILL_DASK_WORKERS", raising=False)
    alone, did = scored(tmp_path / "alone", folder, by_workers=False)
    assert did == [
        "import-model ran", "answer-everyday-0 ran", "answer-everyday-1 ran", "benchmarks-model ran",
    ]  # fmt: skip
    together, did = scored(tmp_path / "together", folder, by_workers=True)
    assert did[1:3] == ["answer-everyday-0 cached", "answer-everyday-1 cached"]
    assert together.digest == alone.digest
    items = pq.read_table(Path(alone.folder()) / "items.parquet").to_pylist()
    assert [item["line"] for item in items] == list(range(1, 13))
    result = read_results(Path(alone.folder()) / "scores.json")["everyday"]
    assert result.main == "accuracy_norm"
    assert {value: score.n for value, score in result.slices["topic"].items()} == {
        "animals": 4,
        "home": 4,
        "weather": 4,
    }
