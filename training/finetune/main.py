"""The finetune job: encode the training split, put the head and the method on the base, train on the ranks.

Inputs: labelled (LabelledSet), base (ModelFolder), teacher (ModelFolder of the same task) where the spec says distill.
Output: a TaskCheckpoint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoConfig, PreTrainedModel

from spark_jobs.errors import RequestError, TrainingError
from spark_jobs.manifests import LabelledSet
from spark_jobs.requests import Outcome, Request
from training.distill.loss import taught
from training.distill.tasks import check_teacher, task_divergence
from training.distill.teacher import teacher_of
from training.finetune.adalora import RankSchedule, check_steps, with_penalty
from training.finetune.adversarial import against
from training.finetune.base import load_base, load_tokenizer
from training.finetune.examples import TaskMaterial, encode_rows, heldout_inputs, read_rows, training_examples
from training.finetune.kinds import make_task
from training.finetune.methods import apply_method, check_task, num_trainable
from training.finetune.task import Example, Task
from training.finetune_spec import FinetuneSpec, MethodSpec, TaskSpec
from training.inputs import input_uri
from training.manifests import ModelFolder
from training.pretrain.flops import model_flops_per_token
from training.pretrain.launch import launch_ranks
from training.pretrain.mesh import Ranks, make_mesh
from training.pretrain.parallel import OutputLoss, parallelize
from training.pretrain.run_state import FREE, identity_of
from training.pretrain.trainer import Companion, Plan, train_rank

SPEC = FinetuneSpec


def run(request: Request) -> Outcome:
    """Train on as many ranks as the spec says."""
    spec = FinetuneSpec.model_validate(request.spec)
    check_request(request, spec)
    return launch_ranks(request, spec, train)


def check_request(request: Request, spec: FinetuneSpec) -> None:
    """Refuse early, from manifests alone; no model is built.

    Raises: RequestError, DataError, each naming the thing, the value and what was wanted.
    """
    labelled, base = inputs_of(request)
    if labelled.task != spec.task.kind:
        raise RequestError(
            f"labelled set {labelled.address} is for {labelled.task}, task.kind is {spec.task.kind}: make them equal"
        )
    if labelled.num_train < spec.sequences_per_step:
        raise RequestError(
            f"labelled set {labelled.address} has {labelled.num_train} rows to train on, one step wants "
            f"{spec.sequences_per_step}: add rows or lower sequences_per_step"
        )
    if spec.early_stop.watch == "heldout" and not labelled.num_validation:
        raise RequestError(
            f"early_stop.watch heldout: labelled set {labelled.address} has no validation split; set validation_share or "
            "watch train"
        )
    task = make_task_of(spec.task, labelled, base)
    check_task(spec.method, task.peft_type)
    if spec.distill is not None:
        task_divergence(spec.task.kind, spec.distill.temperature)
    teacher = teacher_of(request, spec.distill)
    if teacher is not None:
        check_teacher(teacher, task, labelled, base)


def inputs_of(request: Request) -> tuple[LabelledSet, ModelFolder]:
    return LabelledSet.load(input_uri(request, "labelled")), ModelFolder.load(input_uri(request, "base"))


def make_task_of(spec: TaskSpec, labelled: LabelledSet, base: ModelFolder) -> Task:
    config = AutoConfig.from_pretrained(base.folder())
    return make_task(spec, load_tokenizer(base), labelled.label_set, config)


def num_steps(spec: FinetuneSpec, num_examples: int) -> int:
    return max(1, math.ceil(spec.epochs * num_examples / spec.sequences_per_step))


def train(request: Request, ranks: Ranks, why_restarted: str) -> Outcome:
    """One rank's part: encode, build, spread, train, publish."""
    spec = FinetuneSpec.model_validate(request.spec)
    labelled, base = inputs_of(request)
    if ranks.world_size != spec.ranks:
        raise TrainingError(
            f"the launcher started {ranks.world_size} ranks, the spec says {spec.ranks}: make them equal"
        )
    task = make_task_of(spec.task, labelled, base)
    task.loss_spec = spec.loss
    examples, unusable = training_examples(task, labelled)
    steps = num_steps(spec, len(examples))
    mesh = make_mesh(ranks, spec.parallel.degrees(ranks.world_size))
    model = load_base(base, task, spec)
    examples = task.prepare(model.to(ranks.device), examples, ranks.device)
    watched = task.prepare(model, _heldout_examples(task, labelled, spec), ranks.device)
    model.train()
    trained = apply_method(model, spec.method, task.peft_type, steps)
    trainable, total = num_trainable(trained)
    out = Path(request.out)
    if ranks.is_first:
        (out / "data").mkdir(parents=True, exist_ok=True)
        (out / "scratch").mkdir(exist_ok=True)
        model.config.save_pretrained(out / "data")
    learned = with_teacher(task.loss, trained, request, spec, ranks)
    loss, companion = with_method(learned, trained, spec.method, steps)
    shared = against(parallelize(trained, mesh, spec.parallel, spec.precision, output_loss=loss), spec.adversarial)
    material = TaskMaterial(
        task, examples, spec.seed, spec.sequences_per_step, mesh.degrees.batch,
        heldout_inputs(task, watched, spec.micro_batch, mesh.at.batch, mesh.degrees.batch),
    )  # fmt: skip
    teacher = teacher_of(request, spec.distill)
    identity = identity_of(request.spec, FREE | {"micro_batch"}, labelled, base, *([teacher] if teacher else []))
    plan = Plan(steps, spec.optimizer.learning_rate, identity)
    flops = _flops_per_token(model, examples)
    facts = train_rank(shared, material, spec, plan, out, flops, why_restarted, companion)
    fields = facts | {
        "model_type": model.config.model_type,
        "num_parameters": total,
        "num_trainable": trainable,
        "task": spec.task.kind,
        "method": spec.method.kind,
        "base": base.address,
    }
    counts = {"in": labelled.num_train, "out": labelled.num_train - sum(unusable.values())}
    counts |= {f"reject.{reason}": count for reason, count in sorted(unusable.items())}
    return Outcome(num_rows=facts.get("num_steps", 0), format="safetensors", counts=counts, fields=fields)


def _heldout_examples(task: Task, labelled: LabelledSet, spec: FinetuneSpec) -> list[Example]:
    if spec.early_stop.watch != "heldout":
        return []
    return encode_rows(task, read_rows(labelled, "validation", spec.early_stop.num_sequences))[0]


def with_method(
    loss: OutputLoss, trained: PreTrainedModel, method: MethodSpec, num_steps: int
) -> tuple[OutputLoss, Companion | None]:
    """The loss with what the method adds to it, and what goes along with the optimizer's steps."""
    if method.kind != "adalora":
        return loss, None
    check_steps(num_steps)
    ranks = RankSchedule(trained)
    return with_penalty(loss, trained, ranks.config.orth_reg_weight), ranks.follow


def with_teacher(
    loss: OutputLoss, trained: PreTrainedModel, request: Request, spec: FinetuneSpec, ranks: Ranks
) -> OutputLoss:
    """The loss with the teacher's part, if there is one; layers that are learned too get their maps in `trained`."""
    folder = teacher_of(request, spec.distill)
    if spec.distill is None or folder is None:
        return loss
    divergence = task_divergence(spec.task.kind, spec.distill.temperature)
    return taught(loss, trained, folder, spec.distill, divergence, spec.seed, ranks.device)


def _flops_per_token(model: PreTrainedModel, examples: Sequence[Example]) -> float:
    """At the examples' mean length."""
    return model_flops_per_token(model, round(sum(example.num_tokens for example in examples) / len(examples)))
