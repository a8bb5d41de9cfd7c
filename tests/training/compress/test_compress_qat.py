"""Training with rounded weights."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from spark_jobs.errors import RequestError
from training.compress.layers import set_weight, weight_OI
from training.compress.qat import prepare, restore, train_rounded
from training.compress.quantized import Grid
from training.compress.rounding import round_to_grid
from training.compress_spec import QuantizeSpec

torch.set_num_threads(1)


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 60, (length,), generator=generator) for length in (24, 24, 24, 24, 17)]


def spec(**fields: object) -> QuantizeSpec:
    return QuantizeSpec.model_validate({"method": "qat", "bits": 3, "group_size": 16, "qat_steps": 30} | fields)


def rounded(model: PreTrainedModel, grid: Grid) -> PreTrainedModel:
    copied = copy.deepcopy(model)
    for name, module in copied.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            set_weight(module, round_to_grid(weight_OI(module), grid).weight())
    return copied


def divergence(teacher: PreTrainedModel, student: PreTrainedModel, tokens_NT: list[Tensor]) -> float:
    with torch.no_grad():
        pairs = [(teacher(t[None]).logits.log_softmax(-1), student(t[None]).logits.log_softmax(-1)) for t in tokens_NT]
    return sum(float(F.kl_div(q, p, reduction="sum", log_target=True)) for p, q in pairs) / sum(map(len, tokens_NT))


@pytest.mark.parametrize(("bits", "group_size"), [(2, 16), (3, 16), (4, 0), (8, 16)])
def test_rounding_in_training_is_that_of_the_stored_codes(bits: int, group_size: int) -> None:
    """But for the scale, which is stored in 16 bits: a weight between two codes may go to either."""
    model, grid = tiny_llama(), Grid(bits, group_size)
    layer = model.model.layers[0].mlp.down_proj
    stored = round_to_grid(weight_OI(layer), grid)
    steps_OI = stored.scales_OG.float().repeat_interleave(64 // stored.scales_OG.shape[1], dim=1)
    in_training = prepare(model, grid)["model.layers.0.mlp.down_proj"](torch.eye(64)).T
    off_OI = (in_training - stored.weight()).abs() / steps_OI
    assert off_OI.max() < 1.01 + 2 ** (bits - 1) * 2**-11
    assert (off_OI > 2 ** (bits - 1) * 2**-11 + 0.01).float().mean() < 0.04


def test_training_with_rounded_weights_brings_the_rounded_model_nearer_to_the_dense_one() -> None:
    dense, model, grid = tiny_llama(), tiny_llama(), Grid(3, 16)
    before = divergence(dense, rounded(dense, grid), sequences())
    losses = train_rounded(model, sequences(), spec())
    after = divergence(dense, rounded(model, grid), sequences())
    assert len(losses) == 30
    assert after < 0.8 * before
    assert losses[0] == pytest.approx(before, rel=0.5)  # of one batch, with rounded weights already


def test_training_twice_with_one_seed_gives_the_same_weights_and_plain_modules() -> None:
    first, second, other = tiny_llama(), tiny_llama(), tiny_llama()
    for model, seed in ((first, 0), (second, 0), (other, 1)):
        train_rounded(model, sequences(), spec(qat_steps=3), seed)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert type(first.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert first.lm_head.weight is first.model.embed_tokens.weight


def test_zeros_and_everything_but_matrices_of_blocks_stay_as_they_were() -> None:
    model = tiny_llama()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate_proj.weight[:, ::2] = 0
    before = {name: value.clone() for name, value in model.named_parameters()}
    train_rounded(model, sequences(), spec(qat_steps=4))
    assert (model.model.layers[1].mlp.gate_proj.weight[:, ::2] == 0).all()
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) is not name.endswith("_proj.weight"), name


def test_prepared_and_restored_model_is_the_same_model() -> None:
    model = tiny_llama()
    before = model(sequences()[0][None]).logits
    restore(model, prepare(model, Grid(4, 16)))
    assert torch.equal(model(sequences()[0][None]).logits, before)


def test_layer_or_zero_points_that_torchao_cannot_train_are_refused_by_name() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=2, n_positions=32))
    with pytest.raises(RequestError, match=r"transformer.h.0.attn.c_attn is Conv1D: set it to gptq"):
        train_rounded(model, sequences(), spec())
    with pytest.raises(RequestError, match=r"has no zero points .* set quantize.symmetric true"):
        train_rounded(tiny_llama(), sequences(), spec().model_copy(update={"symmetric": False}))
