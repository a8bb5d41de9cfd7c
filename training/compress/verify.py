"""A written folder, loaded by a fresh process as a stranger would: logits, tie, zeros and size are what they were in memory."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spark_jobs.errors import DataError
from training.compress.already_quantized import stored_format
from training.compress.blocks import blocks_of
from training.compress.compressed import Compressed
from training.compress.layers import is_matrix, prunable_layers, weight_OI
from training.compress.sizes import memory_bytes, tensor_bytes
from training.compress_spec import RecipeSpec
from training.export import probe_logits
from training.model_folder import load_folder

MAX_LOGIT_DIFFERENCE = 1e-6  # share of the largest logit; between models that compute the same
MAX_REORDERED_DIFFERENCE = 1e-4  # torchao multiplies codes first and scales sums: fp32 rounds elsewhere
MAX_SIZE_ERROR = 0.01
EXPECTED = "expected.pt"


@dataclass(frozen=True)
class Verified:
    """max_logit_difference: with weights alone rounded, as in memory. activation_difference: what rounding activations
    adds, 0 where they are not. memory_bytes: distinct storage as loaded, before the first forward. running_bytes: after
    it (compressed-tensors unpacks its codes then). num_zeros: in the matrices of linear layers."""

    max_logit_difference: float
    activation_difference: float
    memory_bytes: int
    running_bytes: int
    num_zeros: int
    tied: bool


def save_expected(scratch: Path, compressed: Compressed, recipe: RecipeSpec, expected_bytes: int) -> None:
    """Raises: DataError if a report's number of zeros is not the model's: the report is of another state."""
    scratch.mkdir(parents=True, exist_ok=True)
    zeros = layer_zeros(compressed.model)
    last = {report.name: report for report in compressed.reports}
    for name, report in last.items():
        if name in zeros and report.zeros != zeros[name]:
            raise DataError(f"{name}: the report counts {report.zeros} zeros, the model has {zeros[name]}")
    pattern = recipe.prune.pattern if recipe.prune else "unstructured"
    facts = {
        "logits": probe_logits(compressed.model),
        "zeros": zeros,
        "pattern": pattern,
        "patterned": _block_layers(compressed.model) if pattern != "unstructured" else [],
        "bytes": expected_bytes,
    }
    torch.save(facts, scratch / EXPECTED)


def _block_layers(model: PreTrainedModel) -> list[str]:
    """Names of all that pruning treats."""
    return [f"{block}.{name}" for block, module in blocks_of(model).items() for name in prunable_layers(module)]


def verify_folder(folder: Path, scratch: Path) -> Verified:
    """Call it in a process that has not seen the model.

    Raises: DataError naming what differs: logits, the tie of the head, zeros of a layer, a group of an n:m pattern, the size.
    """
    expected: dict[str, Any] = torch.load(scratch / EXPECTED, weights_only=True)
    model = load_folder(folder)
    loaded = memory_bytes(model)
    with_activations = probe_logits(model)
    with WeightsAlone(model):
        logits = probe_logits(model)
    difference = float((logits - expected["logits"]).abs().max())
    share = MAX_REORDERED_DIFFERENCE if stored_format(folder) == "torchao" else MAX_LOGIT_DIFFERENCE
    allowed = share * max(1.0, float(expected["logits"].abs().max()))
    if not difference <= allowed:
        raise DataError(f"{folder}: logits after reload differ by {difference:g}, at most {allowed:g} wanted")
    check_size(folder, expected["bytes"])
    check_zeros(model, expected)
    return Verified(
        max_logit_difference=difference,
        activation_difference=float((with_activations - logits).abs().max()),
        memory_bytes=loaded,
        running_bytes=memory_bytes(model),
        num_zeros=sum(expected["zeros"].values()),
        tied=check_tie(folder, model),
    )


def check_size(folder: Path, expected_bytes: int) -> None:
    """Tensors against the formula of codes, scales and the rest."""
    found = tensor_bytes(folder)
    if abs(found - expected_bytes) > MAX_SIZE_ERROR * expected_bytes:
        raise DataError(
            f"{folder}: tensors take {found} bytes, codes, scales and the rest should take {expected_bytes}"
        )


def check_tie(folder: Path, model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    if head is not None and tied != bool(model.config.tie_word_embeddings):
        raise DataError(f"{folder}: config says tie_word_embeddings={model.config.tie_word_embeddings}, found {tied}")
    return tied


def check_zeros(model: PreTrainedModel, expected: dict[str, Any]) -> None:
    """As many zeros a layer as in memory; every group of an n:m pattern valid."""
    found = layer_zeros(model)
    for name, zeros in expected["zeros"].items():
        if found.get(name) != zeros:
            raise DataError(f"{name}: {found.get(name)} zeros after reload, {zeros} before")
    for name in expected["patterned"]:
        dropped, group = (int(number) for number in expected["pattern"].split(":"))
        module = model.get_submodule(name)
        short = bad_groups(dense_weight(module), dropped, group)
        if short:
            raise DataError(f"{name}: {short} groups of {group} inputs have fewer than {dropped} zeros")


def bad_groups(weight: Tensor, dropped: int, group: int) -> int:
    """Groups of `group` neighbouring inputs of weight (O, I) with fewer than `dropped` zeros."""
    zeros_OGg = (weight == 0).reshape(len(weight), -1, group)
    return int((zeros_OGg.sum(-1) < dropped).sum())


def layer_zeros(model: PreTrainedModel) -> dict[str, int]:
    """Zeros in each matrix of a linear layer, the head left out."""
    head = model.get_output_embeddings()
    return {
        name: int((dense_weight(module) == 0).sum())
        for name, module in model.named_modules()
        if is_matrix(module) and module is not head
    }


def dense_weight(module: nn.Module) -> Tensor:
    """Weight (O, I) in numbers, whatever the module keeps it as."""
    weight: Any = module.weight
    return weight.dequantize() if hasattr(weight, "qdata") else weight_OI(module)


class WeightsAlone:
    """While it lasts, activations are not rounded: compressed-tensors and torchao alike."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.modules = [m for m in model.modules() if hasattr(m, "quantization_scheme")]
        self.weights = [p for p in model.parameters() if getattr(p, "act_quant_kwargs", None) is not None]
        self.kept: dict[int, Any] = defaultdict(lambda: None)

    def __enter__(self) -> None:
        for module in self.modules:
            module.quantization_enabled = False
        for weight in self.weights:
            self.kept[id(weight)] = weight.act_quant_kwargs
            weight.act_quant_kwargs = None

    def __exit__(self, *_: object) -> None:
        for module in self.modules:
            module.quantization_enabled = True
        for weight in self.weights:
            weight.act_quant_kwargs = self.kept[id(weight)]
