"""Blocks of small Llamas whose inputs differ in size, quantised by every method."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from spark_jobs.errors import DataError, RequestError, TrainingError
from training.compress import awq
from training.compress.blocks import Block, first_block
from training.compress.hessian import output_error
from training.compress.int8_activations import with_int8_activations
from training.compress.layer_report import LayerReport
from training.compress.layers import weight_OI
from training.compress.quantize_block import check_fallbacks, grid_of, quantize_block
from training.compress.quantized import Grid
from training.compress.rounding import round_to_grid
from training.compress.sequential import over_blocks
from training.compress.smoothquant import smoothing_scales
from training.compress_spec import QuantizeSpec

STORIES = Path(__file__).parents[4] / "shared/data/models/stories260k"
METHODS = ("rtn", "gptq", "awq", "smoothquant", "dynamic")


def spec_of(method: str, bits: int = 4, **settings: Any) -> QuantizeSpec:
    return QuantizeSpec(
        method=method, bits=8 if method in ("smoothquant", "dynamic") else bits, group_size=8, **settings
    )  # type: ignore[arg-type]


def llama(seed: int = 0, num_layers: int = 1) -> tuple[LlamaForCausalLM, list[Tensor]]:
    """Norms whose weights spread over two orders of magnitude make some inputs far larger than others."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=num_layers, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, initializer_range=0.2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for layer in model.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.data = torch.exp(1.2 * torch.randn(32))
    return model, [torch.randint(40, (24,)) for _ in range(6)]


def block_of(seed: int = 0) -> Block:
    model, calibration_NT = llama(seed)
    return first_block(model, calibration_NT)[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_block_holds_what_its_codes_decode_to_and_says_what_each_layer_lost(method: str) -> None:
    block = block_of()
    dense = copy.deepcopy(block)
    quantized, reports = quantize_block(block, spec_of(method), {})
    names = [f"model.layers.0.{name}" for name in block.layers]
    assert [list(quantized), [row.name for row in reports]] == [names, names]
    statistics, outputs = dense.statistics(dense.layers), {}
    dense.visit(dense.layers, lambda name, inputs: outputs.setdefault(name, inputs))
    for (name, layer), row in zip(block.layers.items(), reports, strict=True):
        codes = quantized[row.name]
        assert torch.equal(weight_OI(layer), codes.weight())
        assert (row.num_outputs, row.num_inputs, row.method) == (*codes.codes_OI.shape, method)
        assert row.bits == (8 + 16 / row.num_inputs if method in ("smoothquant", "dynamic") else 4 + 16 / 8)
        before_OI = weight_OI(dense.layers[name])
        plain_OI = round_to_grid(before_OI, codes.grid).weight()
        lost = output_error(plain_OI - before_OI, before_OI, statistics[name].hessian_II)
        assert row.error_before == pytest.approx(lost, rel=1e-4)
        assert 0 < row.error_after < 0.05
        if method in ("rtn", "dynamic"):
            assert row.error_after == pytest.approx(lost, rel=1e-4)
        if method == "gptq":
            assert row.error_after < row.error_before
            assert row.damping == pytest.approx(0.01)


def test_gpt2s_transposed_matrices_are_quantised_along_their_inputs() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2))
    block, _ = first_block(model.eval(), [torch.randint(40, (20,))])
    quantized, _ = quantize_block(block, spec_of("gptq"), {})
    codes = quantized["transformer.h.0.mlp.c_fc"]
    assert codes.codes_OI.shape == (64, 16)
    assert torch.equal(model.transformer.h[0].mlp.c_fc.weight.detach().T, codes.weight())


@pytest.mark.parametrize("method", METHODS)
def test_2_to_4_zeros_survive_every_method(method: str) -> None:
    block = block_of()
    masks = {}
    for name, layer in block.layers.items():
        grouped = layer.weight.data.reshape(-1, 4)
        grouped.scatter_(1, grouped.abs().argsort(1)[:, :2], 0)
        masks[name] = layer.weight.data == 0
    quantized, reports = quantize_block(block, spec_of(method, symmetric=False), {})
    for name, mask_OI in masks.items():
        decoded_OI = quantized[f"model.layers.0.{name}"].weight()
        assert (decoded_OI[mask_OI] == 0).all()
    assert all(row.zeros >= row.num_weights // 2 for row in reports)


def test_bits_of_single_layers_are_taken_by_their_names_in_the_model() -> None:
    quantized, reports = quantize_block(block_of(), spec_of("gptq"), {"model.layers.0.mlp.down_proj": 8})
    assert [row.bits for row in reports] == [6.0] * 6 + [10.0]
    assert quantized["model.layers.0.mlp.down_proj"].grid == Grid(8, 8)


def test_methods_that_round_activations_have_one_symmetric_scale_an_output() -> None:
    for method in ("smoothquant", "dynamic"):
        assert grid_of(spec_of(method, symmetric=False), 8) == Grid(8, 0, symmetric=True)
    assert grid_of(spec_of("awq", symmetric=False), 3) == Grid(3, 8, symmetric=False)


def test_groups_that_do_not_fit_are_refused_before_anything_changes() -> None:
    block = block_of()
    before = {name: value.clone() for name, value in block.module.state_dict().items()}
    with pytest.raises(
        RequestError, match=r"group_size 32 does not divide .* model.layers.0.mlp.down_proj \(48 inputs\)"
    ):
        quantize_block(block, QuantizeSpec(method="awq", group_size=32), {})
    assert all(torch.equal(value, before[name]) for name, value in block.module.state_dict().items())


def test_without_inputs_rounding_works_and_other_methods_say_what_is_missing() -> None:
    model, _ = llama()
    given = over_blocks(model, [], lambda block: quantize_block(block, spec_of("rtn"), {}))
    assert all(0 < row.error_after < 0.05 for _, rows in given for row in rows)
    for method in ("gptq", "awq", "smoothquant"):
        with pytest.raises(
            RequestError, match=f"quantize.method {method} wants inputs of model.layers.0.self_attn.q_proj"
        ):
            over_blocks(model, [], lambda block: quantize_block(block, spec_of(method), {}))  # noqa: B023


def test_too_many_layers_rounded_to_nearest_fail() -> None:
    def row(fallback: bool) -> LayerReport:
        return LayerReport("a.b", "gptq", 1, 1, 0.0, 0.0, 0.0, fallback, 0, 4.0, 0.0)

    check_fallbacks([row(False)] * 19 + [row(True)], 0.05)
    with pytest.raises(TrainingError, match=r"2 of 20 layers were rounded to nearest.*a.b"):
        check_fallbacks([row(False)] * 18 + [row(True)] * 2, 0.05)


@pytest.mark.parametrize("bits", [4, 3])
def test_gptq_of_a_whole_model_is_nearer_to_it_than_rounding(bits: int) -> None:
    """Answers to tokens that were not calibrated on, mean over seeds."""
    lost = dict.fromkeys(("rtn", "gptq"), 0.0)
    for seed in range(3):
        for method in lost:
            model, calibration_NT = llama(seed, num_layers=2)
            tokens_BT = torch.randint(40, (4, 24), generator=torch.Generator().manual_seed(99))
            with torch.no_grad():
                dense = model(input_ids=tokens_BT).logits
                over_blocks(model, calibration_NT, lambda block: quantize_block(block, spec_of(method, bits), {}))  # noqa: B023
                lost[method] += float((model(input_ids=tokens_BT).logits - dense).square().mean())
    assert lost["gptq"] < lost["rtn"]


@pytest.mark.skipif(not STORIES.is_dir(), reason="no ../shared/data/models/stories260k")
def test_a_trained_model_keeps_8_bits_feels_4_and_breaks_at_2_and_gptq_is_ahead_of_rounding() -> None:
    """Perplexity of texts that the dense model wrote itself; other such texts calibrate."""
    dense = LlamaForCausalLM.from_pretrained(STORIES).eval()
    torch.manual_seed(0)
    begin = torch.full((48, 1), dense.config.bos_token_id)
    texts_NT = dense.generate(begin, do_sample=True, top_k=0, min_new_tokens=63, max_new_tokens=63, pad_token_id=0)
    calibration_NT, told_NT = list(texts_NT[:24]), texts_NT[24:]

    def perplexity(method: str = "", bits: int = 0) -> float:
        model = copy.deepcopy(dense)
        spec = QuantizeSpec(method=method or "rtn", bits=bits or 8, group_size=0)  # type: ignore[arg-type]
        if method:
            over_blocks(model, calibration_NT, lambda block: quantize_block(block, spec, {}))
        with torch.no_grad():
            log_p_NTV = model(input_ids=told_NT).logits[:, :-1].log_softmax(-1)
        return float((-log_p_NTV.gather(-1, told_NT[:, 1:, None])).mean().exp())

    base = perplexity()
    rounded = {bits: perplexity("rtn", bits) / base for bits in (8, 4, 3, 2)}
    assert abs(rounded[8] - 1) < 0.01 < rounded[4] - 1 < 0.5
    assert rounded[4] + 0.5 < rounded[3]
    assert rounded[2] > 20
    for bits in (4, 3):
        assert perplexity("gptq", bits) / base < rounded[bits]


# AWQ


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_awq_loses_no_more_on_the_blocks_outputs_than_rounding(bits: int, seed: int) -> None:
    rounded, scaled = block_of(seed), block_of(seed)
    wanted = rounded.run()
    quantize_block(rounded, spec_of("rtn", bits), {})
    quantize_block(scaled, spec_of("awq", bits), {})
    assert awq.block_error(scaled, wanted) < awq.block_error(rounded, wanted)


def test_awq_scales_are_powers_of_the_mean_activation_around_one() -> None:
    torch.testing.assert_close(awq.awq_scales(torch.tensor([16.0, 1.0, 1.0]), 0.5), torch.tensor([2.0, 0.5, 0.5]))
    assert torch.isfinite(awq.awq_scales(torch.tensor([0.0, 1.0]), 1.0)).all()


def test_awq_of_a_block_that_gives_no_numbers_is_an_error() -> None:
    block = block_of()
    block.module.input_layernorm.weight.data[3] = float("nan")
    with pytest.raises(DataError, match=r"model.layers.0: outputs are not finite with rounded weights"):
        quantize_block(block, spec_of("awq"), {})


# SmoothQuant


def test_smoothing_scales_balance_activations_with_weights_where_there_are_both() -> None:
    input_max_I, weight_max_I = torch.tensor([8.0, 2.0, 0.0, 5.0]), torch.tensor([2.0, 8.0, 3.0, 0.0])
    assert smoothing_scales(input_max_I, weight_max_I, 0.5).tolist() == [2.0, 0.5, 1.0, 1.0]
    assert smoothing_scales(input_max_I, weight_max_I, 1.0).tolist() == [8.0, 2.0, 1.0, 1.0]


def outlier_model(seed: int) -> tuple[LlamaForCausalLM, list[Tensor]]:
    model, calibration_NT = llama(seed)
    for layer in model.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.data = torch.ones(32)
            norm.weight.data[5] = 60.0
    return model, calibration_NT


def test_with_an_outlier_input_the_best_smoothing_lies_between_none_and_all() -> None:
    """Error of a block's outputs with weights and activations in 8 bits, mean over seeds."""
    lost = dict.fromkeys((0.0, 0.25, 0.5, 0.75, 1.0), 0.0)
    for alpha in lost:
        for seed in range(3):
            block = first_block(*outlier_model(seed))[0]
            wanted = block.run()
            quantize_block(block, spec_of("smoothquant", smoothing=alpha), {})
            with_int8_activations(block.module, block.layers)
            lost[alpha] += awq.block_error(block, wanted)
    best = min(lost, key=lambda alpha: lost[alpha])
    assert 0 < best < 1
    assert lost[best] < 0.5 * min(lost[0.0], lost[1.0])


def test_smoothing_a_block_with_an_outlier_input_beats_rounding_it_as_it_is() -> None:
    lost = {}
    for method in ("smoothquant", "dynamic"):
        block = first_block(*outlier_model(0))[0]
        wanted = block.run()
        quantize_block(block, spec_of(method), {})
        with_int8_activations(block.module, block.layers)
        lost[method] = awq.block_error(block, wanted)
    assert lost["smoothquant"] < 0.5 * lost["dynamic"]
