"""The gradient-noise scale: the batch at which noise and signal of the gradient are equal (arXiv:1812.06162).

Two squared norms of the same step are compared: of the gradient of its first micro-batches (b targets over all
ranks) and of the whole one (B targets). With true gradient G and per-target covariance S, E|g_b|^2 = |G|^2 + tr(S) / b,
which gives both; the scale is tr(S) / |G|^2, in targets.
"""

from __future__ import annotations

from spark_jobs.manifests import Frozen
from training.loop_spec import AdaptiveBatchSpec


class NoiseState(Frozen):
    """Exponential means of tr(S) and |G|^2. Each is averaged by itself: a mean of ratios would be biased."""

    noise: float = 0.0
    signal: float = 0.0
    num_measured: int = 0
    ratio: int = 1  # the batch as a multiple of sequences_per_step

    @property
    def scale(self) -> float | None:
        """In targets; None before the first measurement, or where noise hides any signal."""
        return self.noise / self.signal if self.signal > 0 and self.noise > 0 else None

    def measured(self, small: tuple[float, float], large: tuple[float, float], smoothing: float) -> NoiseState:
        """small, large: (number of targets, squared gradient norm); see `noise_and_signal`."""
        noise, signal = noise_and_signal(small, large)
        weight = 1.0 - smoothing if self.num_measured else 1.0
        update = {
            "noise": self.noise + weight * (noise - self.noise),
            "signal": self.signal + weight * (signal - self.signal),
            "num_measured": self.num_measured + 1,
        }
        return self.model_copy(update=update)

    def adapted(self, targets_per_step: float, spec: AdaptiveBatchSpec) -> NoiseState:
        """The batch follows the scale; targets_per_step is what `sequences_per_step` sequences hold."""
        if self.scale is None:
            return self
        return self.model_copy(update={"ratio": max(1, min(spec.max_ratio, round(self.scale / targets_per_step)))})


def noise_and_signal(small: tuple[float, float], large: tuple[float, float]) -> tuple[float, float]:
    """Unbiased tr(S) and |G|^2 from squared norms of gradients that are means over b and B > b targets."""
    (b, norm_b), (B, norm_B) = small, large
    return (norm_b - norm_B) / (1 / b - 1 / B), (B * norm_B - b * norm_b) / (B - b)
