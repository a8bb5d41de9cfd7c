"""Whole models pruned block by block: reports, real perplexities, and zeros that quantisation leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from spark_jobs.errors import RequestError
from training.compress.blocks import Block, blocks_of
from training.compress.gptq import gptq
from training.compress.hessian import output_error
from training.compress.layer_report import LayerReport
from training.compress.layers import prunable_layers, weight_OI
from training.compress.masks import num_zeros, valid_groups
from training.compress.prune_block import prune_block
from training.compress.quantized import Grid
from training.compress.sequential import over_blocks
from training.compress_spec import PruneSpec

torch.set_num_threads(1)

STORIES = Path(__file__).parents[4] / "shared/data/models/stories260k"
TOKENS_BT = torch.randint(0, 50, (6, 24), generator=torch.Generator().manual_seed(0))
CALIBRATION = [*TOKENS_BT, TOKENS_BT[0, :7]]


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2))


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=4, n_positions=32))


def prune(model: PreTrainedModel, calibration_NT: list[Tensor], **asked: object) -> list[LayerReport]:
    spec = PruneSpec.model_validate(asked)
    return [row for rows in over_blocks(model, calibration_NT, lambda block: prune_block(block, spec)) for row in rows]


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Of every layer that is pruned, (O, I): GPT-2 stores (I, O)."""
    return {
        f"{block}.{name}": weight_OI(layer)
        for block, module in blocks_of(model).items()
        for name, layer in prunable_layers(module).items()
    }


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_every_layer_of_every_block_has_the_pattern_and_a_row(make: Callable[[], PreTrainedModel], method: str) -> None:
    model = make()
    others = {n: p.clone() for n, p in model.named_parameters() if not any(n.startswith(b) for b in blocks_of(model))}
    rows = prune(model, CALIBRATION, method=method, pattern="2:4")
    found = weights(model)
    assert [row.name for row in rows] == list(found)
    for row in rows:
        weight = found[row.name]
        assert valid_groups(weight, "2:4") == 1.0
        assert (row.method, row.num_outputs, row.num_inputs) == (f"{method} 2:4", *weight.shape)
        assert row.zeros == num_zeros(weight) == row.num_weights // 2
        assert 0 < row.error_after < 1
        assert (row.error_after == row.error_before) == (method == "magnitude")
        assert (row.damping, row.bits, row.fallback) == (0.01 if method == "sparsegpt" else 0.0, 32.0, False)
    assert all(torch.equal(others[n], p) for n, p in model.named_parameters() if n in others)


def test_errors_of_a_row_are_those_of_its_outputs() -> None:
    """Against the outputs themselves: what the first block's queries were, and are."""
    model = llama()
    layer = model.base_model.layers[0].self_attn.q_proj
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        for tokens_T in CALIBRATION:
            model(input_ids=tokens_T[None])
    hook.remove()
    before = layer.weight.detach().clone()
    row = prune(model, CALIBRATION, method="wanda", pattern="unstructured", sparsity=0.3)[0]
    inputs, after = torch.cat(seen), layer.weight.detach()
    lost, whole = inputs @ (after - before).T, inputs @ before.T
    assert row.error_after == pytest.approx(float(lost.square().sum() / whole.square().sum()), rel=1e-4)


def test_later_blocks_are_measured_behind_pruned_ones() -> None:
    """The second block alone, behind a dense first one, loses other weights."""
    whole, second = llama(), llama()
    prune(whole, CALIBRATION, method="wanda")
    spec = PruneSpec(method="wanda")
    over_blocks(second, CALIBRATION, lambda b: prune_block(b, spec) if b.name.endswith(".1") else [])
    name = "model.layers.1.mlp.down_proj"
    assert not torch.equal(weights(whole)[name] == 0, weights(second)[name] == 0)


def test_pattern_that_does_not_divide_changes_nothing() -> None:
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2)
    )
    before = weights(model)
    with pytest.raises(RequestError, match=r"4:8.*model\.layers\.0\.mlp\.down_proj \(20 inputs\)"):
        prune(model, CALIBRATION, pattern="4:8")
    assert all(torch.equal(before[name], weight) for name, weight in weights(model).items())


def test_methods_that_look_at_inputs_want_some() -> None:
    assert prune(llama(), [], method="magnitude")[0].zeros == 128
    with pytest.raises(RequestError, match=r"prune\.method wanda wants inputs of model\.layers\.0\.self_attn\.q_proj"):
        prune(llama(), [], method="wanda")


def test_gptq_with_the_mask_keeps_every_zero_and_group_of_a_pruned_layer() -> None:
    """Without it the errors of rounding fill some: an eighth of the groups and more."""
    kept, filled = [], []

    def treat(block: Block) -> None:
        prune_block(block, PruneSpec(method="sparsegpt", pattern="2:4"))
        layers = prunable_layers(block.module)
        statistics = block.statistics(layers)
        for name, layer in layers.items():
            weight, hessian = weight_OI(layer), statistics[name].hessian_II
            solve = (weight, hessian, Grid(4, 8), True, True, 0.01)
            masked, _ = gptq(*solve, mask_OI=weight == 0)
            plain, _ = gptq(*solve)
            assert bool((masked.weight()[weight == 0] == 0).all())
            assert num_zeros(masked.weight()) >= weight.numel() // 2
            kept.append(valid_groups(masked.weight(), "2:4"))
            filled.append(valid_groups(plain.weight(), "2:4"))
            assert output_error(weight - masked.weight(), weight, hessian) < 0.05

    over_blocks(llama(), CALIBRATION, treat)
    assert set(kept) == {1.0}
    assert sum(filled) / len(filled) < 0.875


@pytest.mark.skipif(not STORIES.is_dir(), reason="no ../shared/data/models/stories260k")
@pytest.mark.parametrize("asked", [{"pattern": "unstructured"}, {"pattern": "2:4"}], ids=["half", "2:4"])
def test_trained_model_loses_least_by_methods_that_look_at_inputs(asked: dict[str, object]) -> None:
    """Nats a token on texts the model itself tells: dense < Wanda, SparseGPT < magnitude; calibrated on other ones."""
    dense = AutoModelForCausalLM.from_pretrained(STORIES)
    torch.manual_seed(0)
    told = dense.generate(
        input_ids=torch.ones(48, 1, dtype=torch.int64), do_sample=True, max_new_tokens=96, min_new_tokens=96
    )
    calibration, unseen = list(told[:32]), told[32:]
    nats = {"dense": loss(dense, unseen)}
    for method in ("magnitude", "wanda", "sparsegpt"):
        model = AutoModelForCausalLM.from_pretrained(STORIES)
        prune(model, calibration, method=method, **asked)
        nats[method] = loss(model, unseen)
    assert nats["dense"] < min(nats["wanda"], nats["sparsegpt"]), nats
    assert max(nats["wanda"], nats["sparsegpt"]) < nats["magnitude"], nats


@torch.no_grad()
def loss(model: PreTrainedModel, tokens_BT: Tensor) -> float:
    return float(model(input_ids=tokens_BT, labels=tokens_BT).loss)
