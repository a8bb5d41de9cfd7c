"""How long GPTQ takes, against what its multiplications alone would take at the rate this machine multiplies at.

No peer runs here: the libraries that have GPTQ want CUDA, or other versions than those pinned. A layer's multiplications: the
Hessian 2 T I^2, its inverse and factor I^3 (4 / 3), the walk O I^2 (updates of later inputs). A model's: of all its layers,
and two forwards of all calibration tokens through every block.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.compression_models import Subject
from training.compress.gptq import gptq
from training.compress.hessian import InputStatistics
from training.compress.quantized import Grid
from training.compress.recipe import compress
from training.compress_spec import QuantizeSpec, RecipeSpec

SIDE, TOKENS, REPEATS = 768, 8192, 3


def measured(subjects: Sequence[Subject]) -> dict[str, Any]:
    rate = flops_per_second()
    weight, inputs = torch.randn(SIDE, SIDE), torch.randn(TOKENS, SIDE)
    statistics = InputStatistics(SIDE)
    hessian_s = fastest(lambda: statistics.add(inputs))
    solve_s = fastest(lambda: gptq(weight, statistics.hessian_II, Grid(4, 128), True, True, 0.01))
    limits = 2 * TOKENS * SIDE**2 / rate, (4 / 3 * SIDE**3 + SIDE**3) / rate
    print(
        f"\nmatrices of 1024 multiply at {rate / 1e9:.0f} GFLOP/s; GPTQ of a layer {SIDE} x {SIDE}, 4 bits, groups of 128, act-order: "
        f"{solve_s:.3f} s ({solve_s / limits[1]:.1f} times its multiplications), its Hessian of {TOKENS:,} tokens {hessian_s:.3f} s "
        f"({hessian_s / limits[0]:.1f} times)"
    )
    told: dict[str, Any] = {
        "gflops_per_s": round(rate / 1e9, 1), "layer_s": round(solve_s, 4), "layer_over_limit": round(solve_s / limits[1], 2),
        "hessian_s": round(hessian_s, 4), "hessian_over_limit": round(hessian_s / limits[0], 2),
    }  # fmt: skip
    for subject in subjects:
        if subject.name == "smollm2":
            told |= _whole(subject, rate)
    return told


def _whole(subject: Subject, rate: float) -> dict[str, Any]:
    model = subject.model()
    tokens = sum(len(ids) for ids in subject.sequences)
    recipe = RecipeSpec(name="timed", quantize=QuantizeSpec(method="gptq", bits=4, group_size=0))
    began = time.perf_counter()
    made = compress(model, subject.sequences, recipe)
    seconds = time.perf_counter() - began
    weights = sum(r.num_weights for r in made.reports)
    forwards = 2 * 2 * weights * tokens
    layers = sum(
        (7 / 3) * r.num_inputs**3
        if r.num_outputs <= r.num_inputs
        else (4 / 3) * r.num_inputs**3 + r.num_outputs * r.num_inputs**2
        for r in made.reports
    )
    hessians = sum(2 * tokens * r.num_inputs**2 for r in made.reports)
    limit = (forwards + layers + hessians) / rate
    solving = sum(r.seconds for r in made.reports)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(
        f"GPTQ of {subject.name} whole, {len(made.reports)} layers, {tokens:,} calibration tokens: {seconds:.1f} s, of which solving "
        f"{solving:.1f} s; {seconds / limit:.1f} times its multiplications ({limit:.1f} s); peak memory of this process {peak:.0f} MB"
    )
    return {
        "model_s": round(seconds, 1), "model_solving_s": round(solving, 1), "model_over_limit": round(seconds / limit, 2),
        "model_peak_mb": round(peak),
    }  # fmt: skip


def flops_per_second() -> float:
    left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return 2 * 1024**3 / fastest(lambda: left @ right, 10)


def fastest(work: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Seconds of the fastest of several runs, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
