"""Finished blocks kept on disk while others are still to be treated, so that a killed job goes on where it stopped.

A file a block, `0003.safetensors`: state.<name> of the block's tensors as they are now, codes.<layer> and the rest of each
quantised layer, and in the metadata the grids, the reports and the signature of what was asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from spark_jobs.requests import send
from training.compress.blocks import Block
from training.compress.layer_report import LayerReport
from training.compress.quantized import Grid, Quantized

PARTS = {"codes": "codes_OI", "scales": "scales_OG", "zeros": "zeros_OG", "groups": "group_I"}


@dataclass(frozen=True)
class Treated:
    """What became of a block besides its weights."""

    quantized: dict[str, Quantized] = field(default_factory=dict)
    reports: list[LayerReport] = field(default_factory=list)


def kept(
    folder: Path | None, signature: str, part: str, treat: Callable[[Block], Treated]
) -> Callable[[Block], Treated]:
    """`treat`, done once for each block: what an earlier process finished is read from `folder` (None: nothing is kept).

    signature: of all that the result depends on; files of another one are written anew. part: what the event that is sent
    behind each block treated here calls the work.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)

    def treat_or_read(block: Block) -> Treated:
        path = folder / f"{int(block.name.rpartition('.')[2]):04d}.safetensors" if folder is not None else None
        found = _read(path, signature, block) if path is not None else None
        if found is not None:
            return found
        treated = treat(block)
        if path is not None:
            _write(path, signature, block, treated)
        _tell(part, block, treated.reports)
        return treated

    return treat_or_read


def _tell(part: str, block: Block, rows: list[LayerReport]) -> None:
    error = sum(row.error_after for row in rows) / max(1, len(rows))
    seconds = sum(row.seconds for row in rows)
    send("event", {"job": "compress", "part": part, "block": block.name, "error": error, "seconds": seconds})


def _write(path: Path, signature: str, block: Block, treated: Treated) -> None:
    tensors = {f"state.{name}": value.contiguous() for name, value in block.module.state_dict().items()}
    for layer, quantized in treated.quantized.items():
        for part, name in PARTS.items():
            value: Tensor | None = getattr(quantized, name)
            if value is not None:
                tensors[f"{part}.{layer}"] = value.contiguous()
    facts = {
        "signature": signature,
        "grids": json.dumps({layer: asdict(quantized.grid) for layer, quantized in treated.quantized.items()}),
        "reports": json.dumps([asdict(report) for report in treated.reports]),
    }
    _save(path, tensors, facts)


def _save(path: Path, tensors: dict[str, Tensor], facts: dict[str, str]) -> None:
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata=facts)
    partial.replace(path)  # a file under its own name is a whole one


def _read(path: Path, signature: str, block: Block) -> Treated | None:
    """Put the kept weights into the block. None where there is no file, or one of another signature."""
    found = _load(path, signature)
    if found is None:
        return None
    tensors, facts = found
    block.module.load_state_dict({n.removeprefix("state."): t for n, t in tensors.items() if n.startswith("state.")})
    quantized = {
        layer: Quantized(
            Grid(**grid),
            tensors[f"codes.{layer}"],
            tensors[f"scales.{layer}"],
            tensors.get(f"zeros.{layer}"),
            tensors.get(f"groups.{layer}"),
        )
        for layer, grid in json.loads(facts["grids"]).items()
    }
    return Treated(quantized, [LayerReport(**row) for row in json.loads(facts["reports"])])


def _load(path: Path, signature: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        facts: dict[str, str] = file.metadata()
        if facts["signature"] != signature:
            return None
        return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118 no dict


def kept_weights(
    path: Path | None, signature: str, model: PreTrainedModel, layers: Iterable[str], train: Callable[[], object]
) -> None:
    """`train`, which changes the weights of `layers`, done once: later processes put what it gave in place."""
    found = _load(path, signature) if path is not None else None
    if found is not None:
        for name, weight in found[0].items():
            model.get_submodule(name).get_parameter("weight").data.copy_(weight)
        return
    train()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = {name: model.get_submodule(name).get_parameter("weight").detach().contiguous() for name in layers}
        _save(path, weights, {"signature": signature})
