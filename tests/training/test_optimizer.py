from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from training.loop_spec import OptimizerSpec
from training.pretrain.optimizer import clip_gradients, make_optimizer


def test_weight_decay_leaves_norms_and_biases_alone() -> None:
    """Gradient 0, rate 0.1, decay 0.1: a gain of 1.0 stays, a weight of 1.0 becomes 0.99."""
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    for parameter in model.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    make_optimizer(model, OptimizerSpec(learning_rate=0.1, weight_decay=0.1)).step()
    values = {name: parameter.flatten()[0].item() for name, parameter in model.named_parameters()}
    assert values == pytest.approx({"0.weight": 0.99, "0.bias": 1.0, "1.weight": 1.0, "1.bias": 1.0})


def test_clipping_scales_to_the_limit_and_reports_the_norm_before() -> None:
    model = nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip_gradients(model, 1.0) == pytest.approx(5.0)
    assert model.weight.grad.norm().item() == pytest.approx(1.0, abs=1e-5)


def test_clipping_a_non_finite_gradient_reports_it_and_changes_nothing() -> None:
    model = nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[float("nan"), 1.0]])
    assert math.isnan(clip_gradients(model, 1.0))
    assert model.weight.grad[0, 1].item() == 1.0
