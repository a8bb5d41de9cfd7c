"""Task checkpoint -> a Hugging Face folder that plain `from_pretrained` loads.

Inputs: checkpoint, base, labelled. lora, adalora and ia3 are merged into the weights, in fp32: in bf16 an update of
1e-3 beside weights of 1 would mostly be rounded away. prefix, prompt and adapter cannot become weights: their
folder holds the base with its head, and the trained part in `adapter/`, as peft saves it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from spark_jobs.errors import DataError, TrainingError
from spark_jobs.manifests import LabelledSet
from spark_jobs.requests import Outcome, Request
from training.compress.already_quantized import ADAPTER
from training.finetune.base import load_base
from training.finetune.examples import encode_rows, read_rows
from training.finetune.generation import TextTask
from training.finetune.main import make_task_of
from training.finetune.methods import MERGED, apply_method
from training.finetune.similarity import MEASURED
from training.finetune.task import Example, Task
from training.finetune_spec import FinetuneSpec
from training.inputs import input_uri
from training.manifests import ModelFolder, TaskCheckpoint
from training.model_folder import load_folder, weight_bytes
from training.processes import in_fresh_process

PROBES = 4  # rows on which the model before and after are compared
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "merges.txt",
             "vocab.json", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja")  # fmt: skip
MERGE_TOLERANCE = 1e-3  # largest difference of logits that adding an update to fp32 weights may make


def run(request: Request) -> Outcome:
    """The folder is reloaded in a fresh process before it counts as exported."""
    checkpoint = TaskCheckpoint.load(input_uri(request, "checkpoint"))
    base = ModelFolder.load(input_uri(request, "base"))
    labelled = LabelledSet.load(input_uri(request, "labelled"))
    spec = FinetuneSpec.model_validate(checkpoint.spec)
    data, scratch = Path(request.out) / "data", Path(request.out) / "scratch"
    data.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(exist_ok=True)

    def write() -> dict[str, Any]:
        task = make_task_of(spec.task, labelled, base)
        model = trained_model(checkpoint, base, task, spec)
        return write_folder(model, task, labelled, base, data, scratch / "answers.pt")

    def verify() -> dict[str, Any]:
        task = make_task_of(spec.task, labelled, base)
        model = load_folder(data)
        return {"difference": compare(model, task, labelled, scratch / "answers.pt", 0.0)}

    written = in_fresh_process(write)
    in_fresh_process(verify)
    fields = {
        "scheme": _scheme(spec),
        "num_parameters": written["num_parameters"],
        "weight_bytes": weight_bytes(data),
        "effective_bits": 32.0,
        "max_logit_difference": written["merge_difference"],
    }
    return Outcome(num_rows=written["num_tensors"], format="safetensors", fields=fields)


def _scheme(spec: FinetuneSpec) -> str:
    return "dense" if spec.method.kind == "full" or spec.method.kind in MERGED else ADAPTER


def trained_model(checkpoint: TaskCheckpoint, base: ModelFolder, task: Task, spec: FinetuneSpec) -> PreTrainedModel:
    """The base with its head and method, holding the checkpoint's weights; in eval mode.

    An update trained on 4-bit weights (qlora) is put on the base's own: it is merged in fp32, on any machine.
    """
    if spec.method.kind == "qlora":
        spec = spec.model_copy(update={"method": spec.method.model_copy(update={"kind": "lora"})})
    model, trained = load_base(base, task, spec), AutoConfig.from_pretrained(checkpoint.folder())
    model.config.update({name: getattr(trained, name) for name in MEASURED if hasattr(trained, name)})
    wrapped = apply_method(model, spec.method, task.peft_type, checkpoint.num_steps)
    load_trained(wrapped, load_file(Path(checkpoint.folder()) / f"{checkpoint.exported}.safetensors"))
    return wrapped.eval()


def load_trained(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy what was trained into `model`. Raises: TrainingError if the two do not have the same trained tensors."""
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if set(wanted) != set(tensors):
        wrong = ", ".join(sorted(set(wanted) ^ set(tensors))[:5])
        raise TrainingError(f"the checkpoint's tensors are not those that the method trains: {wrong}; train again")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(tensors[name])


def write_folder(
    model: Any, task: Task, labelled: LabelledSet, base: ModelFolder, data: Path, answers: Path
) -> dict[str, Any]:
    before = probe(model, task, labelled)
    difference = 0.0
    if hasattr(model, "merge_and_unload") and model.active_peft_config.peft_type.value.lower() in MERGED:
        model = model.merge_and_unload(safe_merge=True).eval()
        difference = largest_difference(before, probe(model, task, labelled))
        if not difference <= MERGE_TOLERANCE:
            raise DataError(
                f"merged weights answer otherwise: logits differ by {difference:g}, at most {MERGE_TOLERANCE:g} wanted"
            )
    elif hasattr(model, "peft_config"):
        model.save_pretrained(data / ADAPTER, safe_serialization=True)
        if hasattr(model.base_model, "disable_adapter_layers"):  # adapter: attention layers go back to their own names
            model.base_model.disable_adapter_layers()
        model = model.get_base_model()
    model.config.use_cache = bool(model.can_generate())
    if isinstance(task, TextTask):
        task.settle(model, data)
    model.save_pretrained(data)
    for name in TOKENIZER:
        if (Path(base.folder()) / name).is_file():
            shutil.copyfile(Path(base.folder()) / name, data / name)
    final = before if (data / ADAPTER).exists() else probe(model, task, labelled)
    torch.save(final, answers)
    return {
        "num_tensors": len(model.state_dict()),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "merge_difference": difference,
    }


def compare(model: nn.Module, task: Task, labelled: LabelledSet, answers: Path, tolerance: float) -> float:
    """Raises: DataError if the reloaded model answers otherwise than the one that was saved."""
    difference = largest_difference(torch.load(answers, weights_only=True), probe(model, task, labelled))
    if not difference <= tolerance:
        raise DataError(f"logits after reload differ by {difference:g} from those before, {tolerance:g} wanted")
    return difference


@torch.no_grad()
def probe(model: nn.Module, task: Task, labelled: LabelledSet) -> list[Tensor]:
    """What the model answers to the first few rows that can be used: every float tensor of its output, fp32."""
    examples: list[Example] = []
    for row in read_rows(labelled, "train"):
        examples += encode_rows(task, iter([row]))[0]
        if len(examples) >= PROBES:
            break
    output = model(**task.collate(examples).model)
    return [value.float() for value in output.values() if isinstance(value, Tensor) and value.is_floating_point()]


def largest_difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max((float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)), default=float("nan"))
