"""What a teacher of a task has to say, by kind, and whether it was fine-tuned for the same."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AutoConfig

from spark_jobs.errors import RequestError
from spark_jobs.manifests import LabelledSet
from training.compress.already_quantized import ADAPTER
from training.distill.divergence import sum_binary_divergence, sum_divergence
from training.distill.loss import Divergence
from training.distill.teacher import check_vocabulary
from training.finetune.answers import end_logits
from training.finetune.base import load_tokenizer
from training.finetune.generation import own_logits
from training.finetune.task import Task, TaskInputs
from training.finetune_spec import TaskKind
from training.manifests import ModelFolder


def task_divergence(kind: TaskKind, temperature: float) -> Divergence:
    """Raises: RequestError for a task that answers with no distribution of its own."""

    def of_classes(output: Any, told: Any, inputs: TaskInputs) -> Tensor:
        student, teacher = (class_logits(kind, answer, inputs) for answer in (output, told))
        return sum_divergence(student, teacher, inputs.targets_BS.to(student.device), temperature)

    def of_yes_or_no(output: Any, told: Any, inputs: TaskInputs) -> Tensor:
        return sum_binary_divergence(output.logits, told.logits, temperature)

    if kind in ("similarity", "regression", "preference"):
        raise RequestError(
            f"distill with task.kind {kind}: it answers with a number, not with probabilities that could be learned; train it on labels"
        )
    return of_yes_or_no if kind in ("multi_label", "ranking") else of_classes


def class_logits(kind: TaskKind, output: Any, inputs: TaskInputs) -> Tensor:
    """Shaped as the targets, and the classes of each behind."""
    match kind:
        case "question_answering":
            return end_logits(output, inputs)
        case "tagging" | "translation" | "summarization" | "dialogue":
            return own_logits(output, inputs.targets_BS)
        case _:
            logits: Tensor = output.logits
            return logits


def check_teacher(teacher: ModelFolder, task: Task, labelled: LabelledSet, base: ModelFolder) -> None:
    """Raises: RequestError if it has other labels or reads other tokens: its answers would not line up with the student's."""
    if teacher.scheme == ADAPTER:
        raise RequestError(
            f"teacher {teacher.address} is an adapter beside its base: take one that was merged (lora, full)"
        )
    wanted = task.config_fields().get("id2label")
    found = AutoConfig.from_pretrained(teacher.folder()).id2label
    if wanted is not None and found != wanted:
        told, asked = (", ".join(labels[number] for number in sorted(labels)) for labels in (found, wanted))
        raise RequestError(
            f"teacher {teacher.address} tells apart {told}; labelled set {labelled.address} asks for {asked}: fine-tune the teacher on it"
        )
    check_vocabulary(teacher, f"model {base.address}", load_tokenizer(base).get_vocab())
