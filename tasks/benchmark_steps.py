"""The steps of benchmarks: answers by shard, overlap with the corpus, scores. What was answered once is not asked again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from spark_jobs.errors import RequestError
from spark_jobs.manifests import Corpus, Handle, TokenizerFiles, file_sha256
from tasks.benchmark_fanout import answered
from tasks.engine import current_engine
from tasks.model_steps import TORCH
from tasks.steps import Step
from training.benchmark_spec import AnswerJobSpec, BenchmarksJobSpec, BenchmarkSpec, HarnessSpec
from training.benchmarks.task_file import files_of
from training.manifests import BenchmarkAnswers, BenchmarkScorecard, Checkpoint, CorpusOverlap, ModelFolder

JUDGES = ("numpy", "sacrebleu", "rouge-score", "jinja2")


def score_benchmarks(
    label: str, model: ModelFolder, corpus: Corpus | None, tokenizer: TokenizerFiles | None,
    spec: tuple[BenchmarkSpec, ...],
) -> BenchmarkScorecard:  # fmt: skip
    """A model's answers to every benchmark, judged. corpus: where there is one, which items it holds is looked at too, in
    tokens of its tokenizer.

    Raises: RequestError if a task is not there; QualityError if too many answers are not finite.
    """
    engine = current_engine()
    digests = {one.name: digests_of(one) for one in spec}
    steps = [step for one in spec for step in answer_steps(model, one, digests[one.name], engine.night)]
    roles = [role for one in spec for role in one.roles]
    inputs: dict[str, Handle] = {"model": model}
    inputs |= dict(zip(roles, answered(steps), strict=True))
    if corpus is not None and tokenizer is not None and any(one.overlap_tokens and not one.harness for one in spec):
        inputs["overlap"] = measure_overlap(corpus, tokenizer, spec, digests)
    told = {path: digest for own in digests.values() for path, digest in own.items()}
    return engine.run(
        Step(
            name=f"benchmarks-{label}", handle=BenchmarkScorecard, entry="training.benchmarks.score_job",
            spec=BenchmarksJobSpec(benchmarks=spec, digests=told), night=engine.night, inputs=inputs,
            libraries=JUDGES, app="torch", job="score-benchmarks",
        )
    )  # fmt: skip


def answer_steps(
    model: ModelFolder, spec: BenchmarkSpec, digests: dict[str, str], night: str
) -> list[Step[BenchmarkAnswers]]:
    """One a shard. Their names do not say whose answers they are: tonight's candidate, champion tomorrow, has answered."""
    suffixes = [f"-{shard}" if spec.shards > 1 else "" for shard in range(spec.shards)]
    return [
        Step(
            name=f"answer-{spec.name}{suffix}", handle=BenchmarkAnswers, entry="training.benchmarks.answer_job",
            spec=AnswerJobSpec(benchmark=spec, shard=shard, digests=digests), night=night, inputs={"model": model},
            libraries=(*TORCH, "tokenizers", "jinja2", *(("lm-eval",) if spec.harness else ())), app="torch",
            job="answer-benchmark",
        )
        for shard, suffix in enumerate(suffixes)
    ]  # fmt: skip


def measure_overlap(
    corpus: Corpus, tokenizer: TokenizerFiles, spec: Sequence[BenchmarkSpec], digests: dict[str, dict[str, str]]
) -> CorpusOverlap:
    """Which items stand in the corpus: once for all models that are asked."""
    engine = current_engine()
    local = tuple(one for one in spec if one.harness is None and one.overlap_tokens)
    told = {path: digest for one in local for path, digest in digests[one.name].items()}
    return engine.run(
        Step(
            name="measure-overlap", handle=CorpusOverlap, entry="training.benchmarks.overlap_job",
            spec=BenchmarksJobSpec(benchmarks=local, digests=told), night=engine.night,
            inputs={"corpus": corpus, "tokenizer": tokenizer}, libraries=("numpy", "pyarrow", "tokenizers"), app="torch",
        )
    )  # fmt: skip


def trained_corpus(model: ModelFolder) -> Corpus | None:
    """The corpus that a model of this workspace was trained on; None for one that came from elsewhere."""
    dense, checkpoint = model.parent("dense"), model.parent("checkpoint")
    if dense is not None:
        return trained_corpus(ModelFolder.load(model.at(dense.address)))
    if checkpoint is None or not checkpoint.address.startswith(f"{Checkpoint.kind}/"):
        return None
    trained = Checkpoint.load(model.at(checkpoint.address))
    corpus = trained.parent("corpus")
    return None if corpus is None else Corpus.load(model.at(corpus.address))


def digests_of(spec: BenchmarkSpec) -> dict[str, str]:
    """sha256 of every file the benchmark is made of, by path. Raises: RequestError if one is not there."""
    paths = files_of(spec) if spec.harness is None else list(harness_files(spec.harness))
    return {str(path): file_sha256(path) for path in paths}


def harness_files(spec: HarnessSpec) -> Iterator[Path]:
    """All files of the folder, and local data that its tasks name. Raises: RequestError if there is no such folder."""
    folder = Path(spec.include_path)
    if not folder.is_dir():
        raise RequestError(f"harness.include_path {spec.include_path}: no such folder; name one with tasks as YAML")
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path
        if path.suffix in (".yaml", ".yml"):
            yield from (file for file in map(Path, _data_files(path)) if file.is_file())


class _AnyTag(yaml.SafeLoader):
    """Reads `!function module.name` as that text, and runs nothing."""


_AnyTag.add_multi_constructor("!", lambda loader, suffix, node: f"{suffix} {node.value}")


def _data_files(path: Path) -> list[str]:
    """Paths below dataset_kwargs.data_files of a harness task."""
    tree = yaml.load(path.read_text(), Loader=_AnyTag)
    told = (tree.get("dataset_kwargs") or {}).get("data_files") if isinstance(tree, dict) else None
    values = told.values() if isinstance(told, dict) else [told]
    return [file for value in values for file in ([value] if isinstance(value, str) else value or [])]
