"""The steps of a fine-tuning: each function names its step, its inputs and the code behind it, and runs it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from spark_jobs.errors import RequestError
from spark_jobs.label_spec import LabelSpec
from spark_jobs.labelled_files import with_digests
from spark_jobs.manifests import Handle, LabelledSet, file_sha256
from tasks.engine import current_engine
from tasks.ledger import champion_now
from tasks.model_steps import TORCH
from tasks.steps import Step
from tasks.workspace import Workspace
from training.augment_spec import AugmentJobSpec, AugmentSpec
from training.finetune.source import source_of
from training.finetune_spec import FinetuneSpec, ImportJobSpec, ImportModelSpec, ScoreTaskSpec
from training.manifests import ModelFolder, TaskCheckpoint, TaskScorecard
from training.specs import ExportSpec

PEFT = (*TORCH, "peft")


def label_rows(spec: LabelSpec) -> LabelledSet:
    """Files of examples -> a checked labelled set."""
    engine = current_engine()
    return engine.run(
        Step(
            name="label", handle=LabelledSet, entry="spark_jobs.labelled", spec=with_digests(spec), night=engine.night,
            libraries=("pyspark", "pyarrow", "numpy", "numba"), app="spark",
        )
    )  # fmt: skip


def augment_rows(labelled: LabelledSet, spec: AugmentSpec) -> LabelledSet:
    """A labelled set -> the same with made rows in its training split."""
    engine = current_engine()
    return engine.run(
        Step(
            name="augment", handle=LabelledSet, entry="training.augment.job",
            spec=AugmentJobSpec(**spec.model_dump(), digests=folder_digests(spec)), night=engine.night,
            inputs={"labelled": labelled}, libraries=TORCH, app="torch",
        )
    )  # fmt: skip


def folder_digests(spec: AugmentSpec) -> dict[str, str]:
    """sha256 of each folder the methods name, by path. Raises: RequestError if one is not there."""
    named = [getattr(method, name, "") for method in spec.methods for name in ("wordnet", "forward", "backward")]
    return {path: folder_digest(Path(path)) for path in named if path}


def import_model(spec: ImportModelSpec) -> ModelFolder:
    """A folder, a package's model, a pipeline's champion or a repository of the hub -> a model of this workspace."""
    engine = current_engine()
    source = resolved(spec)
    job = ImportJobSpec(**source.model_dump(), digest=digest_of(source))
    return engine.run(
        Step(
            name="import-model", handle=ModelFolder, entry="training.finetune.import_model", spec=job, night=engine.night,
            libraries=("transformers", "gguf"), app="torch",
        )
    )  # fmt: skip


def resolved(spec: ImportModelSpec) -> ImportModelSpec:
    """A pipeline's champion as the folder it is. Raises: RequestError if the pipeline has none."""
    if not spec.pipeline:
        return spec
    workspace = Workspace.of(spec.pipeline)
    champion = champion_now(workspace)
    if champion is None:
        raise RequestError(f"base.pipeline {spec.pipeline}: it has no champion yet; run its nightly first")
    return ImportModelSpec(path=str(workspace.at(champion.address) / "data"))


def digest_of(spec: ImportModelSpec) -> str:
    """sha256 over names and bytes of the folder's files, or of the one file: a changed one is another request. Of the hub:
    nothing, the revision tells."""
    if spec.hub:
        return ""
    source = source_of(spec)
    return folder_digest(source) if source.is_dir() else file_sha256(source)


def folder_digest(folder: Path) -> str:
    """sha256 over names and bytes of a folder's files, none below it."""
    if not folder.is_dir():
        raise RequestError(f"{folder}: no such folder; name one that is there")
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file():
            digest.update(f"{path.name}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def finetune_checkpoint(labelled: LabelledSet, base: ModelFolder, spec: FinetuneSpec) -> TaskCheckpoint:
    """A labelled set and a base -> what the method trained."""
    engine = current_engine()
    return engine.run(
        Step(
            name="finetune", handle=TaskCheckpoint, entry="training.finetune.main", spec=spec, night=engine.night,
            inputs={"labelled": labelled, "base": base}, libraries=PEFT, app="torch",
        )
    )  # fmt: skip


def export_task(checkpoint: TaskCheckpoint, base: ModelFolder, labelled: LabelledSet) -> ModelFolder:
    """What was trained, put into the base, as a Hugging Face folder."""
    engine = current_engine()
    return engine.run(
        Step(
            name="export-task", handle=ModelFolder, entry="training.finetune.export", spec=ExportSpec(),
            night=engine.night, inputs={"checkpoint": checkpoint, "base": base, "labelled": labelled}, libraries=PEFT,
            app="torch",
        )
    )  # fmt: skip


def score_task(
    model: ModelFolder, labelled: LabelledSet, spec: ScoreTaskSpec, base: ModelFolder | None = None
) -> TaskScorecard:
    """Predictions and metrics on the split that training did not see. base: what a preference's rewards are relative to."""
    engine = current_engine()
    inputs: dict[str, Handle] = {"model": model, "labelled": labelled}
    if base is not None and spec.task.kind == "preference":
        inputs["base"] = base
    return engine.run(
        Step(
            name="score-task", handle=TaskScorecard, entry="training.finetune.score", spec=spec, night=engine.night,
            inputs=inputs, libraries=(*PEFT, "sacrebleu", "rouge-score"), app="torch",
        )
    )  # fmt: skip
