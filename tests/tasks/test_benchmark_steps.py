"""Steps of benchmarks: what makes them another request, and what a Dask worker refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger

from spark_jobs.errors import RequestError
from spark_jobs.manifests import MANIFEST, FileEntry, Handle, Parent, file_sha256
from tasks.benchmark_dask import ShardJob, answer_shard, job_of
from tasks.benchmark_steps import answer_steps, digests_of, trained_corpus
from training.benchmark_spec import BenchmarkSpec, HarnessSpec
from training.manifests import Checkpoint, ModelFolder

EVERYDAY = Path(__file__).parents[2] / "examples" / "benchmarks" / "everyday"
NIGHT = "2026-11-27"


def publish(kind: type[Handle], root: Path, step: str, **fields):
    folder = root / kind.kind / f"{step}-{'0' * 16}"
    (folder / "data").mkdir(parents=True)
    path = folder / "data" / "file"
    path.write_text(step)
    entry = FileEntry(path="data/file", size_bytes=path.stat().st_size, sha256=file_sha256(path))
    common = {"format": "x", "num_rows": 1, "files": (entry,), "spec": {}, "code": {}, "libraries": {}}
    handle = kind(step=step, key="0" * 16, night=NIGHT, **common, **fields)
    (folder / MANIFEST).write_text(handle.canonical())
    return kind.load(folder)


MODEL = {"scheme": "dense", "num_parameters": 1, "weight_bytes": 1, "effective_bits": 32.0}


@pytest.fixture
def model(tmp_path: Path) -> ModelFolder:
    return publish(ModelFolder, tmp_path / "ws", "import-model", **MODEL)


@pytest.fixture
def spec(tmp_path: Path) -> BenchmarkSpec:
    shutil.copytree(EVERYDAY, tmp_path / "task")
    return BenchmarkSpec(name="everyday", folder=str(tmp_path / "task"), shards=2)


def keys(model: ModelFolder, spec: BenchmarkSpec) -> list[str]:
    return [step.key() for step in answer_steps(model, spec, digests_of(spec), NIGHT)]


@pytest.mark.parametrize("file", ["task.yaml", "items.jsonl", "shown.jsonl"])
def test_changed_file_of_a_benchmark_is_another_request(model: ModelFolder, spec: BenchmarkSpec, file: str) -> None:
    before = keys(model, spec)
    assert len(set(before)) == 2
    with (Path(spec.folder) / file).open("a") as stream:
        stream.write("# more\n" if file == "task.yaml" else "\n")
    assert not set(before) & set(keys(model, spec))


def test_examples_that_are_not_shown_are_no_part_of_the_request(model: ModelFolder, spec: BenchmarkSpec) -> None:
    bare = spec.model_copy(update={"num_fewshot": 0})
    before = keys(model, bare)
    (Path(spec.folder) / "shown.jsonl").write_text("{}\n")
    assert keys(model, bare) == before


def test_answers_of_tonights_candidate_are_those_of_tomorrows_champion(model: ModelFolder, spec: BenchmarkSpec) -> None:
    """Neither label nor night is in their key."""
    told = digests_of(spec)
    assert [s.address() for s in answer_steps(model, spec, told, NIGHT)] == [
        s.address() for s in answer_steps(model, spec, told, "2026-11-28")
    ]


def test_harness_task_is_made_of_its_folder_and_the_local_data_it_names(tmp_path: Path) -> None:
    data = tmp_path / "elsewhere.jsonl"
    data.write_text("{}\n")
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "t.yaml").write_text(
        f"task: t\ndoc_to_text: !function utils.text\ndataset_kwargs: {{data_files: {{test: {data}, train: [{data}]}}}}\n"
    )
    (folder / "utils.py").write_text("raise RuntimeError('nothing is run to make a digest')\n")
    told = digests_of(BenchmarkSpec(name="h", harness=HarnessSpec(tasks=("t",), include_path=str(folder))))
    assert set(told) == {str(data), str(folder / "t.yaml"), str(folder / "utils.py")}
    with pytest.raises(RequestError, match=r"harness\.include_path .*nowhere: no such folder"):
        digests_of(BenchmarkSpec(name="h", harness=HarnessSpec(tasks=("t",), include_path=str(tmp_path / "nowhere"))))


def test_worker_with_other_code_or_libraries_refuses_the_shard(model: ModelFolder, spec: BenchmarkSpec) -> None:
    step = answer_steps(model, spec, digests_of(spec), NIGHT)[1]
    job = ShardJob.model_validate_json(job_of(step, model.workspace))
    assert (job.key, job.spec.shard) == (step.key(), 1)
    other = job.model_copy(update={"key": "other"}).model_dump_json()
    with (
        disable_run_logger(),
        pytest.raises(RequestError, match=r"answer-everyday-1: the Dask worker on .* has other code"),
    ):
        answer_shard.fn(other)


def test_corpus_of_a_model_is_found_through_what_it_was_made_from(tmp_path: Path) -> None:
    """An imported model has none; a compressed one has that of its dense model."""
    root = tmp_path / "ws"
    assert trained_corpus(publish(ModelFolder, root, "import-model", **MODEL)) is None
    told = {"model_type": "llama", "num_parameters": 1, "num_steps": 1, "num_tokens": 1, "final_loss": 1.0}
    checkpoint = publish(Checkpoint, root, "train", **told)
    parent = Parent(role="checkpoint", address=checkpoint.address, digest=checkpoint.digest)
    dense = publish(ModelFolder, root, "export", parents=(parent,), **MODEL)
    assert trained_corpus(dense) is None  # a checkpoint that names no corpus
    made = Parent(role="dense", address=dense.address, digest=dense.digest)
    assert trained_corpus(publish(ModelFolder, root, "compress-int8", parents=(made,), **MODEL)) is None
    shutil.rmtree(dense.uri)
    with pytest.raises(Exception, match="was never finished"):
        trained_corpus(ModelFolder.load(root / "models" / f"compress-int8-{'0' * 16}"))
    assert json.loads((root / "models" / f"compress-int8-{'0' * 16}" / MANIFEST).read_text())["parents"]
