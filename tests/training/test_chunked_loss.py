"""Loss and output layer in chunks: the numbers of the plain loss, and memory that does not follow the vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from spark_jobs.errors import RequestError
from training.loop_spec import LossSpec
from training.pretrain.chunked_loss import install_loss_head, sum_linear_cross_entropy
from training.pretrain.loss import IGNORED, sum_cross_entropy
from training.pretrain.mesh import Ranks

N, D, V = 37, 6, 50


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation inside made."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, list | tuple) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def inputs(num_tokens: int = N, vocab_size: int = V) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    hidden_ND, weight_VD, bias_V = (
        torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
        for shape in ((num_tokens, D), (vocab_size, D), (vocab_size,))
    )
    targets_N = torch.randint(0, vocab_size, (num_tokens,), generator=generator)
    targets_N[::5] = IGNORED
    return hidden_ND, weight_VD, bias_V, targets_N


@pytest.mark.parametrize("chunk_tokens", [1, 8, 36, 37, 1000, 0])
@pytest.mark.parametrize("fields", [{}, {"label_smoothing": 0.1, "z_loss": 1e-2}])
def test_chunked_loss_and_gradients_are_the_plain_ones(chunk_tokens: int, fields: dict[str, float]) -> None:
    spec = LossSpec.model_validate({"chunk_tokens": chunk_tokens} | fields)
    hidden_ND, weight_VD, bias_V, targets_N = inputs()
    plain = sum_cross_entropy(torch.nn.functional.linear(hidden_ND, weight_VD, bias_V), targets_N, spec) / 7
    expected = torch.autograd.grad(plain, (hidden_ND, weight_VD, bias_V))
    chunked = sum_linear_cross_entropy(hidden_ND, weight_VD, bias_V, targets_N, spec) / 7
    found = torch.autograd.grad(chunked, (hidden_ND, weight_VD, bias_V))
    torch.testing.assert_close(chunked, plain, atol=1e-12, rtol=0)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_chunked_loss_of_no_tokens_is_zero_with_zero_gradients() -> None:
    hidden_ND, weight_VD, bias_V, targets_N = inputs()
    loss = sum_linear_cross_entropy(hidden_ND[:0], weight_VD, bias_V, targets_N[:0], LossSpec(chunk_tokens=4))
    grad_VD, grad_V = torch.autograd.grad(loss, (weight_VD, bias_V))
    assert float(loss.detach()) == 0.0
    assert not grad_VD.any()
    assert not grad_V.any()


def test_chunked_loss_never_holds_the_logits_of_all_tokens() -> None:
    """512 tokens and 1,000 words: the plain loss makes 512,000 numbers, chunks of 32 make 32,000 at most."""
    hidden_ND, weight_VD, bias_V, targets_N = inputs(512, 1000)
    with LargestTensor() as chunked:
        sum_linear_cross_entropy(hidden_ND, weight_VD, bias_V, targets_N, LossSpec(chunk_tokens=32)).backward()
    with LargestTensor() as plain:
        sum_cross_entropy(torch.nn.functional.linear(hidden_ND, weight_VD, bias_V), targets_N).backward()
    assert (chunked.numel, plain.numel) == (32 * 1000, 512 * 1000)


def test_chunked_loss_in_bf16_sums_the_weight_gradient_in_fp32() -> None:
    hidden_ND, weight_VD, bias_V, targets_N = inputs()
    half = [t.detach().bfloat16().requires_grad_() for t in (hidden_ND, weight_VD, bias_V)]
    loss = sum_linear_cross_entropy(half[0], half[1], half[2], targets_N, LossSpec(chunk_tokens=1))
    assert loss.dtype == torch.float32
    grad = torch.autograd.grad(loss, half[1])[0]
    assert grad.dtype == torch.bfloat16
    wide = [t.detach().double().requires_grad_() for t in half]
    exact = torch.autograd.grad(sum_linear_cross_entropy(*wide, targets_N, LossSpec(chunk_tokens=1)), wide[1])[0]
    assert float((grad.double() - exact).norm() / exact.norm()) < 0.01


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True, attn_implementation="sdpa", use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).double()


def test_loss_head_inside_a_sharded_model_gives_the_gradients_of_the_plain_loss(run_ranks) -> None:
    """The head is tied to the embedding and gathered by FSDP; names of parameters stay."""
    tokens_BT = torch.arange(20).reshape(2, 10) % V

    def gradients(ranks: Ranks) -> dict[str, torch.Tensor]:
        model = llama()
        head = install_loss_head(model, LossSpec(chunk_tokens=3))
        fully_shard(model, mesh=init_device_mesh("cpu", (ranks.world_size,)))
        head.targets_BT = tokens_BT
        model(input_ids=tokens_BT).logits.backward()
        return {name: p.grad.full_tensor() for name, p in model.named_parameters()}

    plain = llama()
    sum_cross_entropy(plain(input_ids=tokens_BT).logits, tokens_BT).backward()
    for found in run_ranks(gradients, 2):
        assert set(found) == {name for name, _ in plain.named_parameters()}
        for name, parameter in plain.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-12, rtol=0)


def test_loss_head_without_targets_answers_with_logits() -> None:
    model, plain = llama(), llama()
    install_loss_head(model, LossSpec(chunk_tokens=3))
    tokens_BT = torch.arange(10)[None]
    assert torch.equal(model(input_ids=tokens_BT).logits, plain(input_ids=tokens_BT).logits)


def test_loss_head_of_bert_has_its_bias() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=V, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertForMaskedLM(config).double()
    torch.nn.init.normal_(model.get_output_embeddings().bias)
    tokens_BT = torch.arange(10)[None]
    targets_BT = tokens_BT.clone()
    targets_BT[0, 3:] = IGNORED
    plain = sum_cross_entropy(model(input_ids=tokens_BT).logits, targets_BT)
    head = install_loss_head(model, LossSpec(chunk_tokens=2))
    head.targets_BT = targets_BT
    torch.testing.assert_close(model(input_ids=tokens_BT).logits, plain, atol=1e-12, rtol=0)


def test_loss_head_for_a_model_that_changes_its_logits_is_refused() -> None:
    model = llama()
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(RequestError, match=r"final_logit_softcapping.*set it to 0"):
        install_loss_head(model, LossSpec(chunk_tokens=2))
