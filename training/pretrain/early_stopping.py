"""When to stop before the plan's end: the watched loss has not fallen for long enough."""

from __future__ import annotations

from spark_jobs.manifests import Frozen
from training.loop_spec import EarlyStopSpec


class StopState(Frozen):
    """best: lowest watched loss so far. total, count: of training losses since the last look."""

    best: float | None = None
    num_without_gain: int = 0
    total: float = 0.0
    count: int = 0

    def after_step(self, loss: float) -> StopState:
        return self.model_copy(update={"total": self.total + loss, "count": self.count + 1})

    def after_look(self, validation_loss: float | None, spec: EarlyStopSpec) -> StopState:
        """Compare the held-out loss, or else the mean training loss since the last look, with the best so far."""
        watched = self.total / max(1, self.count) if validation_loss is None else validation_loss
        if self.best is None or watched < self.best - spec.min_gain:
            return StopState(best=watched)
        return StopState(best=self.best, num_without_gain=self.num_without_gain + 1)

    def is_over(self, spec: EarlyStopSpec) -> bool:
        return 0 < spec.patience <= self.num_without_gain
