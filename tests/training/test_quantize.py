from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_jobs.errors import RequestError
from training.compress.quantize import check_group_size, dequantize, effective_bits, pack, quantize, unpack


def test_int4_of_known_weights_gives_known_values() -> None:
    """scale = 0.7 / 7.5; the largest positive weight is clipped by half a step."""
    codes_OI, scales_OG = quantize(torch.tensor([[0.7, -0.7, 0.35, 0.1]]), bits=4, group_size=4)
    assert codes_OI.tolist() == [[7, -8, 4, 1]]
    assert scales_OG.item() == pytest.approx(0.7 / 7.5, rel=1e-3)
    restored = dequantize(codes_OI, scales_OG)
    torch.testing.assert_close(restored, torch.tensor([[0.6533, -0.7467, 0.3733, 0.0933]]), atol=1e-3, rtol=0)


def test_a_group_of_zeros_stays_zero() -> None:
    codes_OI, scales_OG = quantize(torch.zeros((2, 64)), bits=4, group_size=32)
    assert torch.equal(dequantize(codes_OI, scales_OG), torch.zeros((2, 64)))


@settings(deadline=None)
@given(bits=st.sampled_from([4, 8]), rows=st.integers(1, 5), groups=st.integers(1, 3), seed=st.integers(0, 99))
def test_quantization_is_within_half_a_step_and_packing_loses_nothing(
    bits: int, rows: int, groups: int, seed: int
) -> None:
    weight_OI = torch.randn((rows, groups * 8), generator=torch.Generator().manual_seed(seed))
    codes_OI, scales_OG = quantize(weight_OI, bits, group_size=8)
    error = (dequantize(codes_OI, scales_OG) - weight_OI).abs().reshape(rows, groups, 8)
    # The stored scale is rounded to fp16 (2^-11): the largest weight may move that far times its code.
    steps = 0.5 + 2 ** (bits - 1) * 2**-11 + 0.001
    assert (error <= scales_OG.float()[..., None] * steps).all()
    packed = pack(codes_OI, bits)
    assert packed.numel() == codes_OI.numel() * bits // 8
    assert torch.equal(unpack(packed, bits), codes_OI)


def test_int4_packs_the_first_code_into_the_low_half() -> None:
    assert pack(torch.tensor([[-8, 7]], dtype=torch.int8), 4).tolist() == [[0xF0]]


@pytest.mark.parametrize(("bits", "group_size", "stored"), [(4, 32, 4.5), (8, 32, 8.5), (4, 128, 4.125)])
def test_effective_bits_count_the_scales(bits: int, group_size: int, stored: float) -> None:
    assert effective_bits(bits, group_size) == stored


def test_group_size_that_does_not_fit_names_the_layers() -> None:
    with pytest.raises(RequestError, match=re.escape("group_size 32 must be even and divide")) as caught:
        check_group_size({"a.weight": (8, 100), "b.weight": (8, 64)}, 32)
    assert "a.weight (100 inputs)" in str(caught.value)
    assert "b.weight" not in str(caught.value)
