from __future__ import annotations

from training.loop_spec import EarlyStopSpec
from training.pretrain.early_stopping import StopState


def looks(losses: list[float], spec: EarlyStopSpec) -> list[bool]:
    state, over = StopState(), []
    for loss in losses:
        state = state.after_look(loss, spec)
        over.append(state.is_over(spec))
    return over


def test_training_stops_after_patience_looks_without_a_gain() -> None:
    spec = EarlyStopSpec(patience=2, min_gain=0.1)
    assert looks([3.0, 2.0, 1.95, 1.89, 1.88, 1.85], spec) == [False, False, False, False, False, True]
    assert looks([3.0, 2.95, 2.92], spec) == [False, False, True]


def test_patience_zero_never_stops() -> None:
    assert not any(looks([1.0, 2.0, 3.0, 4.0], EarlyStopSpec()))


def test_without_a_held_out_loss_the_mean_training_loss_since_the_last_look_is_watched() -> None:
    spec = EarlyStopSpec(patience=1)
    state = StopState().after_step(4.0).after_step(2.0).after_look(None, spec)
    assert state == StopState(best=3.0)
    assert state.after_step(3.0).after_look(None, spec).is_over(spec)
