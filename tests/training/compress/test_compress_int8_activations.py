from __future__ import annotations

import torch
from torch import nn

from training.compress.int8_activations import rounded_per_token, with_int8_activations


def test_each_token_is_rounded_at_its_own_largest_activation() -> None:
    inputs_BTI = torch.tensor([[[127.0, 0.4, -63.6], [1.27, 0.004, -0.636], [0.0, 0.0, 0.0]]])
    expected = torch.tensor([[[127.0, 0.0, -64.0], [1.27, 0.0, -0.64], [0.0, 0.0, 0.0]]])
    torch.testing.assert_close(rounded_per_token(inputs_BTI), expected, atol=1e-6, rtol=0)
    assert rounded_per_token(inputs_BTI.bfloat16()).dtype == torch.bfloat16


def test_named_layers_see_rounded_inputs_until_the_handles_are_removed() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    inputs_TI = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    dense = model(inputs_TI)
    handles = with_int8_activations(model, ["1"])
    assert torch.equal(model(inputs_TI), model[1].forward(rounded_per_token(model[0](inputs_TI))))
    assert 0 < float((model(inputs_TI) - dense).detach().abs().max()) < 0.05
    for handle in handles:
        handle.remove()
    assert torch.equal(model(inputs_TI), dense)
