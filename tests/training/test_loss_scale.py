from __future__ import annotations

from training.pretrain.loss_scale import GROW_AFTER, LEAST, LossScale, first_scale


def test_loss_scale_halves_on_overflow_and_doubles_after_a_long_good_run() -> None:
    scale = first_scale("fp16").after(finite=False).after(finite=False)
    assert scale == LossScale(2.0**14)
    for _ in range(GROW_AFTER - 1):
        scale = scale.after(finite=True)
    assert scale == LossScale(2.0**14, GROW_AFTER - 1)
    assert scale.after(finite=True) == LossScale(2.0**15)
    assert scale.after(finite=False) == LossScale(2.0**13)


def test_loss_scale_of_other_precisions_is_one_and_cannot_fall() -> None:
    assert first_scale("bf16") == LossScale(1.0)
    assert not first_scale("fp32").can_fall
    assert LossScale(1.5).after(finite=False).scale == LEAST
