"""README.md of a compressed model: measured facts alone, and how to load it. No torch operation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from spark_jobs.errors import DataError
from training.compress.already_quantized import GGUF_FILE, stored_format
from training.compress.files import Written
from training.compress.layer_report import LayerReport
from training.compress.sizes import weight_files
from training.compress.verify import Verified
from training.compress_spec import RecipeSpec

CARD = "README.md"
WORST = 5  # layers that the card names
TRANSFORMERS = """```python
from transformers import {names}

model = AutoModelForCausalLM.from_pretrained("{folder}"{extra})
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```"""
NEEDS = {"compressed-tensors": "compressed-tensors", "torchao": "torchao", "gguf": "gguf", "dense": ""}


@dataclass(frozen=True)
class Lineage:
    """Addresses of what the model was made from; calibration is "" where the recipe needed none."""

    model: str
    model_bytes: int
    calibration: str = ""
    corpus: str = ""
    num_sequences: int = 0
    num_tokens: int = 0


def write_card(
    folder: Path,
    recipe: RecipeSpec,
    lineage: Lineage,
    written: Written,
    verified: Verified,
    reports: list[LayerReport],
) -> None:
    """Raises: DataError if the folder's weights are not, to the byte, as large as when they were written."""
    found = sum(path.stat().st_size for path in weight_files(folder))
    if found != written.weight_bytes:
        raise DataError(f"{folder}: {found} bytes of weights, {written.weight_bytes} when written; compress again")
    parts = [
        f"# {recipe.name}",
        f"Made from `{lineage.model}` ({lineage.model_bytes:,} bytes).",
        _sizes(folder, lineage, written, verified),
        _checks(recipe, verified),
        _recipe(recipe),
        _calibration(lineage),
        _layers(reports),
        _loading(folder, recipe),
    ]
    (folder / CARD).write_text("\n\n".join(part for part in parts if part) + "\n")


def _sizes(folder: Path, lineage: Lineage, written: Written, verified: Verified) -> str:
    rows = [(f"`{path.name}` on disk, bytes", f"{path.stat().st_size}") for path in weight_files(folder)]
    rows += [
        ("share of the dense model's bytes", f"{written.weight_bytes / lineage.model_bytes:.4f}"),
        ("in memory as loaded, bytes of distinct storage", f"{verified.memory_bytes}"),
        ("in memory after a forward, bytes of distinct storage", f"{verified.running_bytes}"),
        ("parameters", f"{written.num_parameters}"),
        ("bits a weight, quantised layers, scales included", f"{written.effective_bits:.3f}"),
        ("bits a weight, whole model on disk", f"{written.model_bits:.3f}"),
    ]
    return _table("Size", ("what", "value"), rows)


def _checks(recipe: RecipeSpec, verified: Verified) -> str:
    lines = [
        "## Checked by loading it in a fresh process",
        f"- largest difference of a logit from the model in memory: {verified.max_logit_difference:g}",
        f"- head tied to the embedding: {'yes' if verified.tied else 'no'}",
        f"- zeros in linear layers, as many as before: {verified.num_zeros}",
    ]
    if verified.activation_difference:
        lines.append(f"- rounding activations changes a logit by at most {verified.activation_difference:g}")
    if recipe.prune and not recipe.quantize:
        lines.append("- zeros are stored like other numbers: they save no bytes in this file")
    if recipe.prune and recipe.quantize:
        lines.append("- zeros are codes like others: they save no bytes in this file")
    return "\n".join(lines)


def _recipe(recipe: RecipeSpec) -> str:
    said = yaml.safe_dump(recipe.model_dump(exclude_none=True), sort_keys=False).rstrip()
    return f"## Recipe\n```yaml\n{said}\n```"


def _calibration(lineage: Lineage) -> str:
    if not lineage.calibration:
        return ""
    return (
        f"## Calibration\n`{lineage.calibration}`: {lineage.num_sequences} sequences, {lineage.num_tokens} tokens of the "
        f"training corpus `{lineage.corpus}`."
    )


def _layers(reports: list[LayerReport]) -> str:
    """Totals a method, and the layers whose outputs changed most."""
    if not reports:
        return ""
    rows = []
    for method in dict.fromkeys(report.method for report in reports):
        some = [report for report in reports if report.method == method]
        weights = sum(report.num_weights for report in some)
        bits = sum(report.bits * report.num_weights for report in some) / weights
        zeros = sum(report.zeros for report in some) / weights
        before, after = (sum(getattr(r, name) for r in some) / len(some) for name in ("error_before", "error_after"))
        fallbacks = sum(report.fallback for report in some)
        rows.append((method, len(some), f"{bits:.3f}", f"{zeros:.4f}", f"{before:.3g}", f"{after:.3g}", fallbacks))
    names = ("method", "layers", "bits", "zeros", "error of the plain method", "error", "fallbacks")
    worst = sorted(reports, key=lambda report: report.error_after, reverse=True)[:WORST]
    changed = [(f"`{r.name}`", r.method, f"{r.bits:.3f}", f"{r.error_after:.3g}") for r in worst]
    note = "Errors: squared error of a layer's outputs as a share of their squares, a mean over layers."
    return "\n\n".join(
        [_table("Layers", names, rows), note, _table("Changed most", ("layer", "method", "bits", "error"), changed)]
    )


def _loading(folder: Path, recipe: RecipeSpec) -> str:
    found = stored_format(folder)
    extra = f', gguf_file="{GGUF_FILE}"' if found == "gguf" else ""
    if found == "compressed-tensors" and recipe.quantize and not recipe.quantize.symmetric:
        extra = ", quantization_config=CompressedTensorsConfig(dequantize=True)"
    names = "AutoModelForCausalLM, AutoTokenizer" + (", CompressedTensorsConfig" if "Config" in extra else "")
    needs = f" and {NEEDS[found]}" if NEEDS[found] else ""
    lines = [f"## Loading\nWith transformers{needs}:\n", TRANSFORMERS.format(folder="FOLDER", extra=extra, names=names)]
    if found == "gguf":
        lines.append(f"\nWith llama.cpp: `llama-cli -m FOLDER/{GGUF_FILE} -p PROMPT`.")
    if "Config" in extra:
        lines.append(
            "\nWithout `dequantize`, transformers 5.24 and compressed-tensors 0.20 mistake packed zero points' shape."
        )
    if found in ("compressed-tensors", "dense"):
        lines.append("\nWith vLLM: `vllm serve FOLDER`." + _vllm_limits(recipe))
    return "\n".join(lines)


def _vllm_limits(recipe: RecipeSpec) -> str:
    """What is known to keep vLLM from a folder that transformers loads."""
    spec = recipe.quantize
    if spec is None:
        return ""
    if spec.mixed_bits:
        return " It joins q, k and v, and gate and up: it refuses them where their bits differ."
    if spec.bits in (2, 3):
        return f" Its kernels for packed weights are for 4 and 8 bits; {spec.bits} bits may be refused."
    return ""


def _table(title: str, names: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    lines = [f"## {title}", "", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    return "\n".join(lines + [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows])
