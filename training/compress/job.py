"""The compress job: one scheme, one output folder, verified by a reload in a fresh process."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from spark_jobs.errors import DataError, RequestError
from spark_jobs.requests import Outcome, Request
from training.compress.packed import load_packed, save_packed
from training.compress.quantize import BITS, LayerReport, check_group_size, dequantize, effective_bits, quantize
from training.export import probe_logits
from training.inputs import input_uri
from training.manifests import ModelFolder
from training.model_folder import copy_tokenizer, model_class, weight_bytes
from training.processes import in_fresh_process
from training.specs import CompressJobSpec

MAX_LOGIT_DIFFERENCE = 1e-6  # between the in-memory dequantised model and the reloaded one: both compute the same


def run(request: Request) -> Outcome:
    """Input: model (dense). Embeddings and the output head stay as they are, tied or not."""
    spec = CompressJobSpec.model_validate(request.spec)
    dense = ModelFolder.load(input_uri(request, "model"))
    if dense.scheme != "dense":
        raise RequestError(f"model {dense.address} is {dense.scheme} already; compress the dense one it came from")
    if not model_class(Path(dense.folder())).__name__.endswith("ForCausalLM"):
        raise RequestError(f"model {dense.address} is no causal language model: set compress.schemes to []")
    data, scratch = Path(request.out) / "data", Path(request.out) / "scratch"
    data.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(exist_ok=True)

    def write() -> dict[str, Any]:
        return write_packed(dense, spec, data, scratch / "logits.pt")

    def verify() -> dict[str, Any]:
        return verify_packed(data, scratch / "logits.pt")

    written = in_fresh_process(write)
    difference = in_fresh_process(verify)["max_logit_difference"]
    size = weight_bytes(data)
    if size >= dense.weight_bytes:
        raise DataError(f"{spec.scheme} weights take {size} bytes, the dense ones {dense.weight_bytes}: nothing gained")
    fields = {
        "scheme": spec.scheme,
        "num_parameters": dense.num_parameters,
        "weight_bytes": size,
        "effective_bits": effective_bits(BITS[spec.scheme], spec.group_size),
        "max_logit_difference": difference,
    }
    return Outcome(num_rows=written["num_tensors"], format="safetensors", fields=fields)


def quantized_layers(model: PreTrainedModel) -> dict[str, torch.nn.Linear]:
    """Every linear layer but the output head, by name of its weight."""
    head = model.get_output_embeddings()
    return {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def write_packed(dense: ModelFolder, spec: CompressJobSpec, data: Path, logits: Path) -> dict[str, Any]:
    """Quantise, write the folder, and keep the logits of the model with dequantised weights."""
    source, bits = Path(dense.folder()), BITS[spec.scheme]
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    layers = quantized_layers(model)
    check_group_size({name: (m.out_features, m.in_features) for name, m in layers.items()}, spec.group_size)
    packed, reports = {}, []
    for name, module in layers.items():
        weight_OI = module.weight.detach()
        packed[name] = quantize(weight_OI, bits, spec.group_size)
        restored = dequantize(*packed[name])
        reports.append(
            LayerReport(
                name=name,
                num_weights=weight_OI.numel(),
                error=float((restored - weight_OI).norm() / weight_OI.norm().clamp(min=1e-12)),
                bits=effective_bits(bits, spec.group_size),
            )
        )
        module.weight.data.copy_(restored)
    rest = {name: p.detach() for name, p in model.named_parameters() if name not in packed}
    facts = {
        "scheme": spec.scheme,
        "group_size": spec.group_size,
        "symmetric": True,
        "skipped": sorted(name for name, p in rest.items() if p.ndim == 2),
        "layers": [dataclasses.asdict(r) for r in reports],
    }
    num_tensors = save_packed(data, packed, rest, bits, facts)
    for name in ("config.json", "generation_config.json"):
        (data / name).write_bytes((source / name).read_bytes())
    copy_tokenizer(source, data)
    torch.save(probe_logits(model), logits)
    return {"num_tensors": num_tensors}


def verify_packed(data: Path, logits: Path) -> dict[str, Any]:
    """Raises: DataError if the reloaded model's logits differ by more than MAX_LOGIT_DIFFERENCE."""
    difference = float((probe_logits(load_packed(data)) - torch.load(logits, weights_only=True)).abs().max())
    if not difference <= MAX_LOGIT_DIFFERENCE:
        raise DataError(
            f"{data}: logits after reload differ by {difference:g}, at most {MAX_LOGIT_DIFFERENCE:g} wanted"
        )
    return {"max_logit_difference": difference}
