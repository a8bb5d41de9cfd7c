from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from spark_jobs.errors import RequestError
from training.compress.mixed_bits import assign, sensitivity
from training.compress_spec import QuantizeSpec

LOSSES = st.fixed_dictionaries({3: st.floats(0, 10), 4: st.floats(0, 10), 8: st.floats(0, 10)})
LAYERS = st.lists(st.tuples(LOSSES, st.sampled_from([1, 4, 7, 30])), min_size=1, max_size=5)


def test_bits_go_to_the_layer_whose_rounding_costs_most() -> None:
    lost = {"a": {3: 9.0, 4: 1.0, 8: 0.0}, "b": {3: 0.2, 4: 0.1, 8: 0.0}, "c": {3: 1.0, 4: 0.9, 8: 0.0}}
    assert assign(lost, dict.fromkeys("abc", 100), 3.4) == {"a": 4, "b": 3, "c": 3}
    assert assign(lost, dict.fromkeys("abc", 100), 8) == dict.fromkeys("abc", 8)
    assert assign(lost, {"a": 100, "b": 100, "c": 1}, 3.6) == {"a": 4, "b": 3, "c": 8}


def test_a_mean_below_the_fewest_bits_is_refused() -> None:
    with pytest.raises(RequestError, match=r"mixed_bits 2.5 cannot be met.* the mean is 3"):
        assign({"a": {3: 1.0, 8: 0.0}}, {"a": 4}, 2.5)


@settings(deadline=None)
@given(layers=LAYERS, mean_bits=st.sampled_from([3.0, 3.5, 4.0, 4.25, 5.0, 6.5, 8.0]))
def test_bits_keep_within_the_mean_and_lose_little_more_than_the_best_choice(
    layers: list[tuple[dict[int, float], int]], mean_bits: float
) -> None:
    lost = {str(i): losses for i, (losses, _) in enumerate(layers)}
    sizes = {str(i): size for i, (_, size) in enumerate(layers)}
    budget = mean_bits * sum(sizes.values())

    def total(chosen: dict[str, int]) -> float:
        return sum(lost[name][bits] for name, bits in chosen.items())

    def fits(chosen: dict[str, int]) -> bool:
        return sum(bits * sizes[name] for name, bits in chosen.items()) <= budget

    every = [dict(zip(lost, bits, strict=True)) for bits in itertools.product((3, 4, 8), repeat=len(lost))]
    best = min(total(chosen) for chosen in every if fits(chosen))
    chosen = assign(lost, sizes, mean_bits)
    assert fits(chosen)
    largest_step = max(max(0.0, losses[3] - min(losses.values()), losses[4] - losses[8]) for losses in lost.values())
    assert total(chosen) <= best + largest_step + 1e-9
    for bits in (3, 4, 8):
        uniform = dict.fromkeys(lost, bits)
        assert not fits(uniform) or total(chosen) <= total(uniform) + 1e-9


def test_sensitivity_is_nats_a_token_falls_with_bits_and_leaves_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calibration_NT = [torch.randint(40, (n,)) for n in (12, 12, 7)]
    lost = sensitivity(model, calibration_NT, QuantizeSpec(group_size=0))
    assert len(lost) == 14
    assert next(iter(lost)) == "model.layers.0.self_attn.q_proj"
    assert all(one[8] < one[4] < one[3] for one in lost.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def log_p(tokens_T: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.log_softmax(model(input_ids=tokens_T[None]).logits[0].double(), -1)

    dense = [log_p(tokens_T) for tokens_T in calibration_NT]
    layer = model.model.layers[1].mlp.down_proj
    scale_O1 = (layer.weight.detach().abs().amax(1, keepdim=True) / 7.5).half().float()
    layer.weight.data = (layer.weight.data / scale_O1).round().clamp(-8, 7) * scale_O1
    rounded = [log_p(tokens_T) for tokens_T in calibration_NT]
    total = sum(float((p.exp() * (p - q)).sum()) for p, q in zip(dense, rounded, strict=True))
    assert math.isclose(lost["model.layers.1.mlp.down_proj"][4], total / 31, rel_tol=1e-3)
