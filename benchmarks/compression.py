"""Compression methods side by side: perplexity and layer errors of three trained models, and the orderings they must show.

    python -m benchmarks.compression [--models stories260k trained smollm2] [--home FOLDER] [--smoke]

Perplexity is exp of the mean loss of tokens: texts are tokenised once, cut into windows that do not overlap, and every token
of a window but its first is scored once. Numbers of two models, or of other windows, cannot be compared. Layer errors are the
mean over layers of tr(D H D^T) / tr(W H W^T), on the calibration tokens. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import logging as transformers_logging

from benchmarks import compression_speed
from benchmarks.compression_models import SUBJECTS, Subject
from benchmarks.compression_orderings import Row, orderings, ratios
from spark_jobs.errors import RequestError
from training.compress.int8_activations import with_int8_activations
from training.compress.recipe import compress
from training.compress_spec import PruneSpec, QuantizeSpec, RecipeSpec

HOLDS = {True: "holds", False: "DOES NOT HOLD", None: "nothing to compare"}
PATTERNS = ("unstructured", "4:8", "2:4")
OTHERWISE = {"symmetric": "-asymmetric", "act_order": "-inorder"}  # what False of a setting is called
PRUNERS = ("magnitude", "wanda", "sparsegpt")


def pruned(method: str, pattern: str) -> RecipeSpec:
    spec = PruneSpec.model_validate({"method": method, "pattern": pattern})
    return RecipeSpec(name=f"{method}-{pattern.replace(':', '')}", prune=spec, export="safetensors")


def rounded(method: str, bits: int, group: int = 0, **other: Any) -> RecipeSpec:
    """group 0: a scale a row."""
    told = {"method": method, "bits": bits, "group_size": group, "tail": "short", "max_fallbacks": 1.0} | other
    tail = "".join(OTHERWISE[name] for name in other)
    return RecipeSpec(
        name=f"{method}-{bits}-{group or 'row'}{tail}", quantize=QuantizeSpec.model_validate(told), export="safetensors"
    )


ALL = (
    *(pruned(method, pattern) for pattern in PATTERNS for method in PRUNERS),
    *(rounded("rtn", bits) for bits in (8, 4, 3, 2)),
    *(rounded("rtn", bits, group) for bits in (4, 3) for group in (128, 32)),
    *(rounded("rtn", bits, symmetric=False) for bits in (4, 3, 2)),
    *(rounded("gptq", bits) for bits in (4, 3, 2)),
    *(rounded("gptq", bits, group) for bits in (4, 3) for group in (128, 32)),
    *(rounded("gptq", bits, act_order=False) for bits in (4, 3)),
    *(rounded("awq", bits, group) for bits in (4, 3) for group in (0, 128)),
    rounded("smoothquant", 8), rounded("dynamic", 8),
)  # fmt: skip
LARGE = (  # of the 135 M model, whose calibration takes half a minute a pass
    *(pruned(method, pattern) for pattern in ("unstructured", "2:4") for method in PRUNERS),
    *(rounded("rtn", bits, 128) for bits in (8, 4, 3)), rounded("rtn", 4, 32), rounded("rtn", 2, 128),
    rounded("gptq", 4, 128), rounded("gptq", 3, 128), rounded("awq", 4, 128), rounded("dynamic", 8),
)  # fmt: skip


@dataclass
class Table:
    """All rows of one model."""

    subject: Subject
    rows: list[Row] = field(default_factory=list)

    def add(self, recipe: RecipeSpec | None) -> None:
        """None: the dense model. A recipe that does not fit the model's shapes is said, and left out."""
        began = time.monotonic()
        model = self.subject.model()
        reports: Sequence[Any] = ()
        if recipe is not None:
            try:
                made = compress(model, self.subject.sequences, recipe)
            except RequestError as err:
                print(f"| {recipe.name} | does not fit: {str(err)[:110]} ||||||", flush=True)
                return
            model, reports = made.model, made.reports
            if recipe.quantize is not None and recipe.quantize.rounds_activations:
                with_int8_activations(model, list(made.quantized))
        seconds = time.monotonic() - began
        value = perplexity(model, self.subject.windows)
        row = Row.of(recipe, value, reports, seconds)
        self.rows.append(row)
        dense = self.rows[0].perplexity
        print(
            f"| {row.name} | {value:.3f} | {value / dense - 1:+.1%} | {row.error_before:.3g} | {row.error_after:.3g} | {row.bits:.3f} | "
            f"{row.zeros:.1%} | {seconds:.1f} |",
            flush=True,
        )


@torch.no_grad()
def perplexity(model: Any, windows_NT: Tensor, batch: int = 8) -> float:
    """exp of the mean over all scored tokens; float64 sums. The first token of a window is not scored."""
    total, count = 0.0, 0
    for tokens_BT in windows_NT.split(batch):
        logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits[:, :-1].float()
        losses = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten(), reduction="none")
        total, count = total + float(losses.double().sum()), count + losses.numel()
    return float(torch.tensor(total / count, dtype=torch.float64).exp())


def tabulated(subject: Subject, recipes: Sequence[RecipeSpec]) -> Table:
    scored = subject.windows[:, 1:].numel()
    print(f"\n{subject.name}: {subject.protocol}; {scored:,} tokens scored")
    print(
        "| recipe | perplexity | against dense | layer error, plain | layer error | bits a weight | zeros | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|")
    table = Table(subject)
    for recipe in (None, *recipes):
        table.add(recipe)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(SUBJECTS), choices=list(SUBJECTS))
    parser.add_argument("--home", type=Path, help="where models are kept for another run; default: a temporary folder")
    parser.add_argument("--smoke", action="store_true", help="few steps and recipes: that it runs, not how well")
    asked = parser.parse_args()
    transformers_logging.disable_progress_bar()
    began = time.monotonic()
    print(f"{datetime.now(UTC):%Y-%m-%d} on {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    with tempfile.TemporaryDirectory(prefix="nightmill-compression-") as temporary:
        home = asked.home or Path(temporary)
        tables = []
        for name in asked.models:
            recipes = LARGE if name == "smollm2" else ALL
            chosen = recipes[::6] if asked.smoke else recipes
            tables.append(
                tabulated(
                    SUBJECTS[name](home=home, **({"num_steps": 20} if asked.smoke and name == "trained" else {})),
                    chosen,
                )
            )
        speed = compression_speed.measured([table.subject for table in tables])
    found = orderings({table.subject.name: table.rows for table in tables})
    for name, told in found.items():
        print(f"{name}: {HOLDS[told.holds]}: {told.text}")
    print(
        f"{time.monotonic() - began:.0f} s in all, peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB"
    )
    result = {
        "orderings": {name: told.holds for name, told in found.items()},
        **ratios({table.subject.name: table.rows for table in tables}),
        "tables": {table.subject.name: [row.as_json() for row in table.rows] for table in tables},
        "speed": speed,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
