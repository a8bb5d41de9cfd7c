"""Spikes of the loss: found, skipped, or undone by going back to a checkpoint and jumping over their rows.

All of it is a pure function of the global loss and gradient norm, which every rank has, so ranks always decide alike.
Rows that are jumped over are as if they had never been in the stream: all later ones move up, and the final weights
equal those of a run that never saw them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from spark_jobs.manifests import Frozen
from training.loop_spec import SpikeSpec

Window = tuple[int, int]  # positions of the stream of sequences, [first, end)


class Incident(Frozen):
    """One decision. `rows` are positions of the data stream that are not trained on, [first, end)."""

    step: int
    action: str  # skip | rollback
    reason: str
    rows: Window
    to_step: int  # the optimizer step training goes on from


class SpikeState(Frozen):
    """losses, norms: of the last accepted steps. in_a_row: steps skipped since the last accepted one."""

    losses: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()
    in_a_row: int = 0
    num_rollbacks: int = 0
    jumped: tuple[Window, ...] = ()
    incidents: tuple[Incident, ...] = ()

    def accepted(self, loss: float, norm: float, spec: SpikeSpec) -> SpikeState:
        """After a step that was applied."""
        if not spec.enabled:
            return self.model_copy(update={"in_a_row": 0})
        keep = spec.window
        losses, norms = (*self.losses, loss)[-keep:], (*self.norms, norm)[-keep:]
        return self.model_copy(update={"losses": losses, "norms": norms, "in_a_row": 0})

    def skipped(self, incident: Incident) -> SpikeState:
        """After a step that was not applied."""
        update = {"in_a_row": self.in_a_row + 1, "jumped": joined(self.jumped, incident.rows)}
        return self.model_copy(update=update | {"incidents": (*self.incidents, incident)})

    def rolled_back(self, before: SpikeState, incident: Incident) -> SpikeState:
        """`self` is what the checkpoint remembers, `before` what was known when it was returned to."""
        update = {"num_rollbacks": before.num_rollbacks + 1, "jumped": joined(before.jumped, incident.rows)}
        return self.model_copy(update=update | {"in_a_row": 0, "incidents": (*before.incidents, incident)})


def trouble_of(loss: float, norm: float, state: SpikeState, spec: SpikeSpec) -> str:
    """Why a step must not be applied; "" if it may.

    Limit: mean + sigma standard deviations of the last `window` accepted steps, for the loss and for the norm, once
    there are `active_after` of them (OLMo-core's SkipStepOptimizer).
    """
    if not (math.isfinite(loss) and math.isfinite(norm)):
        return f"loss {loss}, gradient norm {norm}"
    if spec.enabled and len(state.losses) >= spec.active_after:
        for name, value, past in (("loss", loss, state.losses), ("gradient norm", norm, state.norms)):
            limit = limit_of(past, spec.sigma)
            if value > limit:
                return f"{name} {value:.6g} above {limit:.6g}, {spec.sigma:g} sigma over the last {len(past)} steps"
    return ""


def limit_of(values: Sequence[float], sigma: float) -> float:
    """Mean + sigma sample standard deviations."""
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean + sigma * math.sqrt(variance)


def joined(windows: Sequence[Window], new: Window) -> tuple[Window, ...]:
    """Disjoint windows in ascending order, with `new` among them; those it touches become one with it."""
    first, end = new
    apart: list[Window] = []
    for window in windows:
        if window[1] < first or window[0] > end:
            apart.append(window)
        else:
            first, end = min(first, window[0]), max(end, window[1])
    return tuple(sorted([*apart, (first, end)]))


def position_of(index: int, jumped: Sequence[Window]) -> int:
    """Position in the stream of the sequence number `index` of those that are trained on."""
    position = index
    for first, end in jumped:
        if position >= first:
            position += end - first
    return position
