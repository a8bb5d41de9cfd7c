from __future__ import annotations

from training.pretrain.loss_scale import GROW_AFTER, LEAST, LossScale, first_scale


def fp16(scale: float, num_good: int = 0) -> LossScale:
    return LossScale(scale=scale, num_good=num_good, fixed=False)


def test_loss_scale_halves_on_overflow_and_doubles_after_a_long_good_run() -> None:
    scale = first_scale("fp16").after(finite=False).after(finite=False)
    assert scale == fp16(2.0**14)
    for _ in range(GROW_AFTER - 1):
        scale = scale.after(finite=True)
    assert scale == fp16(2.0**14, GROW_AFTER - 1)
    assert scale.after(finite=True) == fp16(2.0**15)
    assert scale.after(finite=False) == fp16(2.0**13)
    assert fp16(1.5).after(finite=False).scale == LEAST


def test_loss_scale_of_other_precisions_is_one_and_never_changes() -> None:
    scale = first_scale("bf16")
    assert scale == first_scale("fp32") == LossScale(scale=1.0)
    assert not scale.can_fall
    for _ in range(GROW_AFTER):
        scale = scale.after(finite=True)
    assert scale == LossScale(scale=1.0)
