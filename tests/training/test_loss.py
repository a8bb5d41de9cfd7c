"""Golden values of the token-weighted loss."""

from __future__ import annotations

import math

import pytest
import torch

from training.loop_spec import LossSpec
from training.pretrain.loss import IGNORED, count_targets, sum_cross_entropy, targets_of


def logits_with_losses(losses: list[float]) -> torch.Tensor:
    """Two-class logits (1, T, 2) whose cross entropy with class 0 is the given number at each position."""
    right = torch.exp(-torch.tensor(losses, dtype=torch.float64))
    return torch.stack([torch.log(right), torch.log1p(-right)], dim=-1)[None]


def test_loss_of_unequal_micro_batches_is_the_mean_over_tokens() -> None:
    """One token of loss 4 and three of loss 2: 2.5, not the mean of means 3.0."""
    micro = [logits_with_losses([4.0]), logits_with_losses([2.0, 2.0, 2.0])]
    targets = [torch.zeros((1, 1), dtype=torch.int64), torch.zeros((1, 3), dtype=torch.int64)]
    total = sum(count_targets(t) for t in targets)
    loss = sum(float(sum_cross_entropy(m, t)) / total for m, t in zip(micro, targets, strict=True))
    assert loss == pytest.approx(2.5, abs=1e-12)


def test_targets_are_counted_after_the_shift() -> None:
    """Rows [5,6,7,-100] and [8,9,10,11] have 7 labels and 5 targets."""
    labels_BT = torch.tensor([[5, 6, 7, IGNORED], [8, 9, 10, 11]])
    targets_BT = targets_of(labels_BT)
    assert count_targets(targets_BT) == 5
    assert targets_BT.tolist() == [[6, 7, IGNORED, IGNORED], [9, 10, 11, IGNORED]]


def test_loss_without_any_target_is_zero_with_finite_gradients() -> None:
    logits_BTV = torch.randn((1, 2, 5), requires_grad=True)
    loss = sum_cross_entropy(logits_BTV, torch.full((1, 2), IGNORED))
    torch.autograd.backward(loss)
    assert float(loss.detach()) == 0.0
    assert logits_BTV.grad is not None
    assert torch.equal(logits_BTV.grad, torch.zeros_like(logits_BTV))


def test_loss_of_perfect_next_token_logits_is_zero() -> None:
    """Shifting twice would give 20."""
    labels_BT = torch.tensor([[0, 1, 2, 3]])
    logits_BTV = torch.zeros((1, 4, 4))
    for position, following in enumerate([1, 2, 3]):
        logits_BTV[0, position, following] = 20.0
    assert float(sum_cross_entropy(logits_BTV, targets_of(labels_BT))) == pytest.approx(0.0, abs=1e-6)


def test_loss_of_a_bf16_model_is_computed_in_fp32() -> None:
    logits_BTV = torch.randn((1, 3, 7)).bfloat16()
    assert sum_cross_entropy(logits_BTV, torch.zeros((1, 3), dtype=torch.int64)).dtype == torch.float32


def test_label_smoothing_and_z_loss_are_the_formulas() -> None:
    """Logits ln 1, ln 2, ln 5 and target 2: p = 5/8, sum of the exponentials 8."""
    logits_BTV = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).log()[None, None]
    smoothed = sum_cross_entropy(logits_BTV, torch.tensor([[2]]), LossSpec(label_smoothing=0.3))
    everywhere = -math.log(1 / 8 * 2 / 8 * 5 / 8) / 3
    assert float(smoothed) == pytest.approx(0.7 * -math.log(5 / 8) + 0.3 * everywhere, abs=1e-12)
    z_loss = sum_cross_entropy(logits_BTV, torch.tensor([[2]]), LossSpec(z_loss=0.1))
    assert float(z_loss) == pytest.approx(-math.log(5 / 8) + 0.1 * math.log(8) ** 2, abs=1e-12)


def test_label_smoothing_of_micro_batches_adds_up_to_that_of_all() -> None:
    """Smoothing that forgot the global count gave gradients four times as large under an accumulation of four."""
    spec = LossSpec(label_smoothing=0.1, z_loss=1e-2)
    logits_BTV = torch.randn((4, 3, 7), dtype=torch.float64)
    targets_BT = torch.randint(0, 7, (4, 3))
    targets_BT[1, 2] = IGNORED
    whole = sum_cross_entropy(logits_BTV, targets_BT, spec)
    parts = [sum_cross_entropy(logits_BTV[i : i + 1], targets_BT[i : i + 1], spec) for i in range(4)]
    assert float(sum(parts)) == pytest.approx(float(whole), abs=1e-12)
