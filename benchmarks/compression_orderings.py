"""Which method must beat which, on a trained model: orderings O1 to O10, each from the rows of the tables.

Sources: Wanda (arXiv 2306.11695), SparseGPT (2301.00774), GPTQ (2210.17323), AWQ (2306.00978), SmoothQuant (2211.10438). Orderings
of perplexity between SparseGPT and Wanda are not among them: the papers' own tables disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

import torch

from training.compress.layer_report import LayerReport
from training.compress.quantized import Grid
from training.compress.rounding import round_to_grid
from training.compress.smoothquant import smoothing_scales
from training.compress_spec import RecipeSpec

NEAR = 0.01  # int8 may cost so much of the perplexity
BROKEN = 2.0  # two bits, rounded to nearest: at least so many times the dense perplexity


@dataclass(frozen=True)
class Row:
    """A line of a table. Errors are means over layers; bits and zeros are over all weights of those layers."""

    name: str
    perplexity: float
    error_before: float
    error_after: float
    bits: float
    zeros: float
    seconds: float

    @classmethod
    def of(cls, recipe: RecipeSpec | None, perplexity: float, reports: Sequence[LayerReport], seconds: float) -> Row:
        if recipe is None or not reports:
            return cls("dense", perplexity, 0.0, 0.0, 32.0, 0.0, seconds)
        weights = sum(r.num_weights for r in reports)
        return cls(
            recipe.name, perplexity, fmean(r.error_before for r in reports), fmean(r.error_after for r in reports),
            sum(r.bits * r.num_weights for r in reports) / weights, sum(r.zeros for r in reports) / weights, seconds,
        )  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Told:
    """holds: None where nothing could be compared."""

    holds: bool | None
    text: str


class Found:
    """Comparisons under one ordering, over models; a row that a model has not is not compared."""

    def __init__(self, tables: Mapping[str, Sequence[Row]]) -> None:
        self.tables = {model: {row.name: row for row in rows} for model, rows in tables.items()}
        self.compared: list[tuple[bool, str]] = []

    def rising(self, part: str, *names: str) -> None:
        """The values of `part` rise along those of `names` that a model has."""
        for model, rows in self.tables.items():
            have = [name for name in names if name in rows]
            for low, high in pairwise(have):
                left, right = getattr(rows[low], part), getattr(rows[high], part)
                self.compared.append((left < right, f"{model} {part} {low} {left:.4g} < {high} {right:.4g}"))

    def claim(self, holds: bool, text: str) -> None:
        self.compared.append((holds, text))

    def told(self) -> Told:
        wrong = [text for right, text in self.compared if not right]
        text = f"{len(self.compared) - len(wrong)} of {len(self.compared)} comparisons"
        return Told(not wrong if self.compared else None, text + "".join(f"; not: {w}" for w in wrong))


def orderings(tables: Mapping[str, Sequence[Row]]) -> dict[str, Told]:
    found = {f"O{i}": Found(tables) for i in range(1, 11) if i != 7}
    for pattern in ("unstructured", "24"):
        for method in ("wanda", "sparsegpt"):
            for part in ("perplexity", "error_after"):
                found["O1"].rising(part, "dense", f"{method}-{pattern}", f"magnitude-{pattern}")
    for pattern in ("unstructured", "48", "24"):
        found["O2"].rising("error_after", f"sparsegpt-{pattern}", f"wanda-{pattern}")
    for method in ("magnitude", "wanda", "sparsegpt"):
        found["O3"].rising("perplexity", *(f"{method}-{pattern}" for pattern in ("unstructured", "48", "24")))
    for bits in (4, 3, 2):
        for part in ("error_after", "perplexity"):
            found["O4"].rising(part, f"gptq-{bits}-row", f"rtn-{bits}-row")
    found["O4"].rising("perplexity", "gptq-4-128", "rtn-4-128")
    for method in ("rtn", "gptq"):
        for bits in (4, 3):
            found["O5"].rising("error_after", *(f"{method}-{bits}-{group}" for group in (32, 128, "row")))
    for bits in (4, 3):
        found["O6"].rising("error_after", f"gptq-{bits}-row", f"gptq-{bits}-row-inorder")
        for group in ("row", "128"):
            found["O8"].rising("error_after", f"awq-{bits}-{group}", f"rtn-{bits}-{group}")
    _smoothing(found["O9"])
    _bits(found["O10"], tables)
    return {name: ordering.told() for name, ordering in found.items()}


def _smoothing(found: Found) -> None:
    """On inputs with one large channel the best share to move is neither none nor all of it."""
    torch.manual_seed(0)
    inputs_TI, weight_OI = torch.randn(512, 64), torch.randn(64, 64)
    inputs_TI[:, 5] *= 60
    wanted = inputs_TI @ weight_OI.T
    errors = {}
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        scales_I = (
            smoothing_scales(inputs_TI.abs().amax(0), weight_OI.abs().amax(0), share) if share else torch.ones(64)
        )
        smooth = inputs_TI / scales_I
        step = smooth.abs().max() / 127
        rounded = (smooth / step).round().clamp(-127, 127) * step
        errors[share] = float(
            (rounded @ round_to_grid(weight_OI * scales_I, Grid(8)).weight().T - wanted).square().mean()
        )
    best = min(errors, key=lambda share: errors[share])
    found.claim(
        0 < best < 1, f"smoothing best at {best:g} of {', '.join(f'{s:g}: {e:.3g}' for s, e in errors.items())}"
    )


def _bits(found: Found, tables: Mapping[str, Sequence[Row]]) -> None:
    """Eight bits cost next to nothing, four in groups of 32 little, three clearly more, two without compensation all."""
    for model, rows in tables.items():
        have = {row.name: row.perplexity for row in rows}
        for name in ("rtn-8-row", "rtn-8-128"):
            if name in have:
                cost = have[name] / have["dense"] - 1
                found.claim(abs(cost) < NEAR, f"{model} {name} costs {cost:+.2%}")
        for name in ("rtn-2-row", "rtn-2-128"):
            if name in have:
                found.claim(
                    have[name] > BROKEN * have["dense"], f"{model} {name} {have[name]:.4g}, dense {have['dense']:.4g}"
                )
    found.rising("perplexity", "rtn-8-row", "rtn-4-32", "rtn-3-32", "rtn-2-row")
    found.rising("perplexity", "rtn-8-128", "rtn-4-128", "rtn-3-128", "rtn-2-128")


def ratios(tables: Mapping[str, Sequence[Row]]) -> dict[str, float | None]:
    """Loss in perplexity of GPTQ over that of rounding (4 bits, groups of 128), and of SparseGPT over magnitude (2:4), on the
    largest model there is."""
    rows = {row.name: row.perplexity for row in tables.get("smollm2", [])}

    def over(ours: str, theirs: str) -> float | None:
        if ours not in rows or theirs not in rows:
            return None
        return round((rows[ours] - rows["dense"]) / (rows[theirs] - rows["dense"]), 4)

    return {
        "gptq_over_rtn": over("gptq-4-128", "rtn-4-128"),
        "sparsegpt_over_magnitude": over("sparsegpt-24", "magnitude-24"),
    }
