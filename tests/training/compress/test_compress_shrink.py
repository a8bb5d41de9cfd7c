"""Structured pruning: laws of slicing, what importance finds, configurations that plain transformers loads."""

from __future__ import annotations

import random
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
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
)

from spark_jobs.errors import RequestError
from training.compress.importance import measure_importance
from training.compress.shrink import Sizes, choose, shrink, sizes_of
from training.compress.slice_model import Kept, KeptBlock, slice_model
from training.compress_spec import ShrinkSpec

SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "rms_norm_eps": 1e-2,  # so large that a wrong one shows
}
KINDS: dict[str, Any] = {
    "llama with biases": LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
    "llama tied, wide heads": LlamaConfig(**SHAPE, tie_word_embeddings=True, head_dim=6),
    "mistral": MistralConfig(**SHAPE, sliding_window=None),
    "qwen2": Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=6, max_window_layers=1),
}
TOKENS_BT = torch.randint(0, 40, (3, 12), generator=torch.Generator().manual_seed(0))
CALIBRATION = [*TOKENS_BT, TOKENS_BT[0, :5]]


def make_model(config: Any) -> PreTrainedModel:
    """float64, with norms and biases that are not all alike."""
    torch.manual_seed(1)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) / 4)
    return model


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_model(KINDS[request.param])


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    found: Tensor = model(input_ids=TOKENS_BT).logits
    return found


def everything(model: PreTrainedModel, order: random.Random | None = None) -> Kept:
    def units(count: int) -> tuple[int, ...]:
        return tuple(order.sample(range(count), count) if order else range(count))

    config = model.config
    blocks = [
        KeptBlock(i, units(config.num_key_value_heads), units(config.intermediate_size))
        for i in range(config.num_hidden_layers)
    ]
    return Kept(units(config.hidden_size), tuple(blocks))


def assert_close(one: Tensor, other: Tensor) -> None:
    """RMS norms of transformers go through fp32."""
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_everything_in_another_order_has_the_same_logits(model: PreTrainedModel, seed: int) -> None:
    assert_close(logits(slice_model(model, everything(model, random.Random(seed)))), logits(model))


def zero_units(model: PreTrainedModel, sizes: Sizes) -> None:
    """Let all but `sizes` do nothing: the first groups, neurons and hidden units, other ones in each block, and blocks 1 on."""
    config, base = model.config, model.base_model
    group = base.layers[0].self_attn.v_proj.weight.shape[0] // config.num_key_value_heads
    for i, block in enumerate(base.layers):
        for g in range(config.num_key_value_heads - sizes.groups):
            at = (g + i) % config.num_key_value_heads
            zero_rows(block.self_attn.v_proj, slice(at * group, (at + 1) * group))
        for f in range(config.intermediate_size - sizes.neurons):
            zero_rows(block.mlp.up_proj, slice((f + i), (f + i) + 1))
        for layer in (block.self_attn.o_proj, block.mlp.down_proj):
            zero_rows(layer, slice(0, config.hidden_size - sizes.hidden))
            if 1 <= i < 1 + config.num_hidden_layers - sizes.blocks:
                zero_rows(layer, slice(None))
    base.embed_tokens.weight[:, : config.hidden_size - sizes.hidden] = 0


def zero_rows(layer: Any, rows: slice) -> None:
    layer.weight[rows] = 0
    if layer.bias is not None:
        layer.bias[rows] = 0


@pytest.mark.parametrize(
    "spec",
    [
        ShrinkSpec(heads=0.5),
        ShrinkSpec(neurons=0.5),
        ShrinkSpec(hidden=0.5),
        ShrinkSpec(blocks=0.5),
        ShrinkSpec(heads=0.75, neurons=0.67, hidden=0.75, blocks=0.75),
    ],
    ids=["heads", "neurons", "hidden", "blocks", "all"],
)
def test_units_that_are_zero_go_and_nothing_changes(model: PreTrainedModel, spec: ShrinkSpec) -> None:
    sizes = sizes_of(model.config, spec)
    with torch.no_grad():
        zero_units(model, sizes)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    smaller = shrink(model, CALIBRATION, spec)
    assert_close(logits(smaller), logits(model))
    assert smaller.num_parameters() < model.num_parameters()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_smaller_model_loads_in_plain_transformers(model: PreTrainedModel, tmp_path: Path) -> None:
    spec = ShrinkSpec(heads=0.5, neurons=0.5, hidden=0.5, blocks=0.5)
    smaller = shrink(model.float(), CALIBRATION, spec)
    smaller.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert torch.equal(logits(loaded), logits(smaller))
    config, dense = loaded.config, model.config
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (16, 24, 2)
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)
    assert config.head_dim == (getattr(dense, "head_dim", None) or 4)
    if dense.tie_word_embeddings:
        assert loaded.lm_head.weight is loaded.base_model.embed_tokens.weight


def test_blocks_keep_their_kind_of_attention() -> None:
    """Block 0 sees everything, 1 to 3 a window; 1 and 2 do nothing."""
    model = make_model(KINDS["qwen2"])
    assert model.config.layer_types == ["full_attention", *["sliding_attention"] * 3]
    with torch.no_grad():
        zero_units(model, Sizes(blocks=2, groups=4, neurons=48, hidden=32))
    assert shrink(model, CALIBRATION, ShrinkSpec(blocks=0.5)).config.layer_types == [
        "full_attention",
        "sliding_attention",
    ]


def test_sixteen_heads_on_two_groups_keep_their_ratio_and_their_width() -> None:
    """Half the groups are 8 query heads on 1; each 4 wide, though 32 / 8 would now be 4 and 64 / 8 is 8."""
    config = LlamaConfig(**SHAPE | {"hidden_size": 64, "num_attention_heads": 16, "num_key_value_heads": 2})
    smaller = shrink(make_model(config), CALIBRATION, ShrinkSpec(heads=0.5)).config
    assert (smaller.num_attention_heads, smaller.num_key_value_heads, smaller.head_dim) == (8, 1, 4)
    assert smaller.hidden_size == 64


def test_importance_is_the_mean_absolute_activation_of_all_tokens() -> None:
    model = make_model(KINDS["llama with biases"])
    found = measure_importance(model, CALIBRATION, 1)
    block, inputs = model.base_model.layers[2], {}
    hooks = [
        layer.register_forward_pre_hook(lambda m, args: inputs.setdefault(m, []).append(args[0].flatten(0, -2)))
        for layer in (block.mlp.down_proj, block.self_attn.o_proj)
    ]
    hidden = 0
    states = []
    with torch.no_grad():
        for tokens_T in CALIBRATION:
            states.append(model(input_ids=tokens_T[None], output_hidden_states=True).hidden_states)
    for hook in hooks:
        hook.remove()
    neurons_TF, heads_TQ = (torch.cat(inputs[m]).abs() for m in (block.mlp.down_proj, block.self_attn.o_proj))
    assert len(neurons_TF) == 3 * 12 + 5
    assert_close(found.neurons[2], neurons_TF.mean(0))
    assert_close(found.groups[2], heads_TQ.mean(0).reshape(4, 8).mean(1))
    before, after = (torch.cat([s[i][0] for s in states]) for i in (1, 2))
    assert found.runs[1] == pytest.approx(1 - float(torch.cosine_similarity(before, after, dim=-1).mean()), abs=1e-6)
    assert len(found.runs) == 4
    with torch.no_grad():
        for norm, i in ((model.base_model.layers[j].input_layernorm, j) for j in range(4)):
            hidden = hidden + norm(torch.cat([s[i][0] for s in states])).abs().mean(0)
    assert bool((found.hidden > hidden).all())  # these and those behind attention and at the end


def test_most_important_units_stay_in_their_order() -> None:
    model = make_model(KINDS["mistral"])
    importance = measure_importance(model, CALIBRATION, 2)
    kept = choose(importance, Sizes(blocks=2, groups=2, neurons=8, hidden=8))
    first = importance.runs.index(min(importance.runs))
    assert [block.index for block in kept.blocks] == [i for i in range(4) if i not in (first, first + 1)]
    for units, scores in [(kept.hidden, importance.hidden)] + [
        (block.neurons, importance.neurons[block.index]) for block in kept.blocks
    ]:
        assert list(units) == sorted(units)
        gone = [i for i in range(len(scores)) if i not in units]
        assert scores[list(units)].min() > scores[gone].max()


def test_important_units_are_the_better_ones_to_keep() -> None:
    """The least important neurons in place of the most: farther from the whole model's logits."""
    model = make_model(KINDS["llama with biases"])
    importance, sizes = measure_importance(model, CALIBRATION, 0), Sizes(blocks=4, groups=4, neurons=24, hidden=32)
    right = choose(importance, sizes)
    wrong = Kept(
        right.hidden,
        tuple(KeptBlock(b.index, b.groups, tuple(sorted(set(range(48)) - set(b.neurons)))) for b in right.blocks),
    )
    whole = logits(model)
    distance = [float((logits(slice_model(model, kept)) - whole).square().mean()) for kept in (right, wrong)]
    assert distance[0] < distance[1]


def test_other_families_are_refused_by_name() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=40))
    with pytest.raises(RequestError, match="llama, mistral, qwen2; this one is gpt2"):
        shrink(model, CALIBRATION, ShrinkSpec(neurons=0.5))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ShrinkSpec(heads=0.9), r"shrink\.heads 0\.9 of 4 key-value groups in steps of 1 keeps all"),
        (ShrinkSpec(neurons=0.99), r"shrink\.neurons 0\.99 of 48 neurons in steps of 8 keeps all"),
        (ShrinkSpec(heads=0.75), r"shrink\.heads 0\.75 leaves 6 query heads, which do not divide the hidden size 32"),
    ],
)
def test_sizes_that_cannot_be_are_refused(spec: ShrinkSpec, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        sizes_of(LlamaConfig(**SHAPE), spec)


def test_no_calibration_is_refused() -> None:
    with pytest.raises(RequestError, match="no calibration sequences"):
        shrink(LlamaForCausalLM(LlamaConfig(**SHAPE)), [], ShrinkSpec(neurons=0.5))
