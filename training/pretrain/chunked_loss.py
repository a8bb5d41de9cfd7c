"""The output layer and the loss in one, a chunk of tokens at a time: logits (N, V) of a whole micro-batch never exist.

With a vocabulary of 128,256 and 8,192 tokens those are 4 GB in fp32, and as much again for their gradient. A chunk's
logits are used at once for its part of both gradients and dropped, so that nothing is computed twice.
Shapes: N tokens, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spark_jobs.errors import RequestError
from training.loop_spec import LossSpec
from training.pretrain.loss import IGNORED, sum_cross_entropy

# Configuration fields of models that change logits after the output layer, where a loss would be changed instead.
CHANGES_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class LossHead(nn.Linear):
    """An output layer that answers with the summed loss (a scalar) of the `targets_BT` it was told, else with logits.

    It stands inside the model, so that whatever gathers the model's weights for a forward pass gathers its own too.
    """

    def __init__(self, head: nn.Linear, spec: LossSpec) -> None:
        super().__init__(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
        self.weight, self.bias = head.weight, head.bias  # the same tensors: a tied embedding stays tied
        self.spec = spec
        self.targets_BT: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.targets_BT is None:
            return F.linear(input, self.weight, self.bias)
        hidden_ND, targets_N = input.flatten(0, -2), self.targets_BT.flatten()
        wanted = (
            (targets_N != IGNORED).nonzero().squeeze(-1)
        )  # of masked models one in seven, and no others cost anything
        return sum_linear_cross_entropy(hidden_ND[wanted], self.weight, self.bias, targets_N[wanted], self.spec)


def install_loss_head(model: nn.Module, spec: LossSpec) -> LossHead:
    """Put a LossHead in the place of the model's output layer, before weights are sharded.

    Raises: RequestError if the model has no plain output layer, or does something to its logits.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    changed = [name for name in CHANGES_LOGITS if getattr(model.config, name, None) not in (None, 1.0)]
    if not isinstance(head, nn.Linear) or changed:
        found = ", ".join(changed) or type(head).__name__
        raise RequestError(
            f"train.loss.chunk_tokens: this model's output is not a plain linear layer ({found}); set it to 0"
        )
    new = LossHead(head, spec)
    model.set_output_embeddings(new)  # type: ignore[operator]
    return new


def sum_linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, spec: LossSpec
) -> Tensor:
    """`sum_cross_entropy` of `hidden @ weight.T + bias`, in chunks of spec.chunk_tokens."""
    loss: Tensor = _ChunkedLoss.apply(hidden_ND, weight_VD, bias_V, targets_N, spec)  # type: ignore[no-untyped-call]
    return loss


class _ChunkedLoss(torch.autograd.Function):
    """Gradients are made in the forward pass, where the logits are, and only scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, spec: LossSpec
    ) -> Tensor:
        total_dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
        total = torch.zeros((), dtype=total_dtype, device=hidden_ND.device)
        differentiate = any(ctx.needs_input_grad[:3])
        grads: list[Tensor | None] = [None, None, None]
        if differentiate:
            grads[0] = torch.zeros_like(hidden_ND)
            grads[1] = torch.zeros_like(weight_VD, dtype=total_dtype)
            grads[2] = None if bias_V is None else torch.zeros_like(bias_V, dtype=total_dtype)
        for first in range(0, len(hidden_ND), spec.chunk_tokens or max(1, len(hidden_ND))):
            part = slice(first, first + (spec.chunk_tokens or len(hidden_ND)))
            logits_CV = F.linear(hidden_ND[part], weight_VD, bias_V).detach().requires_grad_(differentiate)
            with torch.set_grad_enabled(differentiate):
                loss = sum_cross_entropy(logits_CV, targets_N[part], spec)
            total += loss.detach()
            if differentiate:
                _add_gradients(grads, part, torch.autograd.grad(loss, logits_CV)[0], hidden_ND, weight_VD)
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden_ND, weight_VD, bias_V)]
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = grad_outputs
        grads = [
            None if grad is None else (grad * scale).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *grads, None, None


def _add_gradients(
    grads: list[Tensor | None], part: slice, grad_CV: Tensor, hidden_ND: Tensor, weight_VD: Tensor
) -> None:
    """Add one chunk's share of the gradients of hidden, weight and bias, given that of its logits."""
    hidden, weight, bias = grads
    assert hidden is not None
    assert weight is not None
    torch.mm(grad_CV, weight_VD, out=hidden[part])
    if weight.dtype == grad_CV.dtype:
        weight.addmm_(grad_CV.T, hidden_ND[part])
    else:  # 16-bit chunks, summed in fp32
        weight += grad_CV.T @ hidden_ND[part]
    if bias is not None:
        bias += grad_CV.sum(0)
