from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
)
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from spark_jobs.errors import RequestError
from training.compress.blocks import Block, first_block
from training.compress.folding import Edge, Smoothing, adds_one, find_edges, fold
from training.compress.layers import weight_OI

SMALL = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3,
}  # fmt: skip
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATED = ("mlp.gate_proj", "mlp.up_proj")
VALUES, PRODUCT = Edge("self_attn.v_proj", ("self_attn.o_proj",)), Edge("mlp.up_proj", ("mlp.down_proj",))


def llama(kv_heads: int = 4) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=kv_heads, attention_bias=True, mlp_bias=True))


def gemma3() -> PreTrainedModel:
    return Gemma3ForCausalLM(Gemma3TextConfig(**SMALL, num_key_value_heads=2, head_dim=4))


def cohere() -> PreTrainedModel:
    return CohereForCausalLM(CohereConfig(**SMALL))


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=4, bos_token_id=1, eos_token_id=2))


def bert() -> PreTrainedModel:
    return BertForMaskedLM(BertConfig(**SMALL))


FAMILIES = {"llama": llama, "shared": lambda: llama(2), "gemma3": gemma3, "cohere": cohere, "gpt2": gpt2}
EDGES = {
    "llama": [Edge("input_layernorm", QKV), VALUES, Edge("post_attention_layernorm", GATED), PRODUCT],
    "shared": [Edge("input_layernorm", QKV), Edge("post_attention_layernorm", GATED), PRODUCT],
    "gemma3": [Edge("input_layernorm", QKV), Edge("pre_feedforward_layernorm", GATED), PRODUCT],
    "cohere": [Edge("input_layernorm", QKV + GATED), VALUES, PRODUCT],
    "gpt2": [Edge("ln_1", ("attn.c_attn",)), Edge("ln_2", ("mlp.c_fc",))],
}


def only_block(make: Callable[[], PreTrainedModel]) -> tuple[PreTrainedModel, Block]:
    """A random model whose norms and biases are not all alike, and its block with the inputs of three sequences."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    block, _ = first_block(model, [torch.randint(3, 40, (n,)) for n in (9, 9, 5)])
    return model, block


@pytest.mark.parametrize("family", FAMILIES)
def test_edges_are_found_by_what_modules_hand_to_each_other(family: str) -> None:
    """Queries that share value heads leave no edge from values; both parts of Cohere's block read one norm."""
    _, block = only_block(FAMILIES[family])
    assert find_edges(block) == EDGES[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_folding_any_scales_leaves_the_models_answers_and_can_be_undone_on_paper(family: str) -> None:
    model, block = only_block(FAMILIES[family])
    tokens_BT = torch.randint(3, 40, (2, 12))
    with torch.no_grad():
        before = model(input_ids=tokens_BT).logits
    dense = {name: weight_OI(layer) for name, layer in block.layers.items()}
    edges = find_edges(block)
    made = torch.Generator().manual_seed(1)
    scales = [torch.exp(torch.randn(dense[edge.layers[0]].shape[1], generator=made)) for edge in edges]
    smoothing = fold(block, zip(edges, scales, strict=True))
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=tokens_BT).logits, before, atol=1e-5, rtol=1e-5)
    for name, layer in block.layers.items():
        torch.testing.assert_close(smoothing.undone(name, weight_OI(layer)), dense[name], atol=1e-6, rtol=1e-5)
    for name in edges[0].layers:
        assert not torch.allclose(weight_OI(block.layers[name]), dense[name], atol=0.01)


def test_a_norm_that_multiplies_by_one_and_its_weight_is_divided_as_a_whole() -> None:
    """1 + w = 1.5 over s = 2: w becomes -0.25, not 0.25."""
    parts = {"plain": LlamaRMSNorm(2), "offset": GemmaRMSNorm(2), "layer": nn.LayerNorm(2)}
    assert {name: adds_one(norm) for name, norm in parts.items()} == {"plain": False, "offset": True, "layer": False}
    for name, weight, expected in (("plain", 1.5, 0.75), ("offset", 0.5, -0.25), ("layer", 1.5, 0.75)):
        norm, layer = parts[name], nn.Linear(2, 2, bias=False)
        norm.weight.data.fill_(weight)
        if name == "layer":
            norm.bias.data.fill_(3.0)
        block = Block("block", nn.Sequential(norm, layer), [[0]], [torch.tensor([[[1.0, -3.0]]])], [_Nothing()])
        fold(block, [(Edge("0", ("1",)), torch.full((2,), 2.0))])
        assert norm.weight.tolist() == [expected] * 2
    assert parts["layer"].bias.tolist() == [1.5, 1.5]


class _Nothing:
    """A call with nothing besides the hidden states."""

    args: tuple[()] = ()
    kwargs: dict[str, object] = {}  # noqa: RUF012


@pytest.mark.parametrize(
    ("make", "name"), [(bert, "BertLayer"), (lambda: Olmo2ForCausalLM(Olmo2Config(**SMALL)), "Olmo2DecoderLayer")]
)
def test_a_block_without_a_norm_before_its_parts_is_refused_by_name(
    make: Callable[[], PreTrainedModel], name: str
) -> None:
    _, block = only_block(make)
    with pytest.raises(RequestError, match=f"{name} .* cannot be smoothed: its first matrix does not read a norm"):
        find_edges(block)


def test_folding_into_a_norm_that_is_read_elsewhere_too_is_refused() -> None:
    _, block = only_block(bert)
    edge = Edge("attention.output.LayerNorm", ("intermediate.dense",))
    with pytest.raises(RequestError, match="scales moved between its modules change its outputs by"):
        fold(block, [(edge, torch.full((16,), 2.0))])


def test_what_was_not_folded_is_undone_by_doing_nothing() -> None:
    assert Smoothing().undone("a", torch.ones(1, 2)).tolist() == [[1, 1]]
