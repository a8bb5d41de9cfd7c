"""AdaLoRA (arXiv:2303.10512) on the one trainer: ranks are moved to the layers where they matter while training.

peft's allocator scores every rank by sensitivity |w g| and its uncertainty, smoothed over steps, and zeroes singular
values until the budget is met. It wants the gradients of each step, so it runs after the optimizer and before they are
cleared. Its scores live here, in tensors of a checkpoint: a resumed run prunes what the unbroken one does.

The penalty that keeps singular vectors orthogonal is a part of the training loss (not of the held-out one): weight 0.5,
mean Frobenius norm of P^T P - I over layers, as in peft. So losses are not those of lora.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spark_jobs.errors import RequestError
from training.pretrain.loss import count_targets
from training.pretrain.parallel import OutputLoss

FEWEST_STEPS = 10  # of them a tenth without pruning, and half at the end with ranks as they are
SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # of peft's RankAllocator: by name of parameter


def check_steps(num_steps: int) -> None:
    """Raises: RequestError if there are too few to prune in."""
    if num_steps < FEWEST_STEPS:
        raise RequestError(
            f"method.kind adalora over {num_steps} steps: at least {FEWEST_STEPS} are wanted, or there is no time to move ranks; "
            "raise epochs, lower sequences_per_step, or choose lora"
        )


def with_penalty(loss: OutputLoss, model: nn.Module, weight: float) -> OutputLoss:
    """`loss` plus the penalty times the batch's targets: after division by the step's targets it is there once, on however
    many ranks and micro-batches. Without gradients, `loss` alone."""
    vectors = [(name, p) for name, p in model.named_parameters() if "lora_A" in name or "lora_B" in name]

    def penalised(output: Any, inputs: Any) -> Tensor:
        value = loss(output, inputs)
        if not torch.is_grad_enabled():
            return value
        return value + weight * count_targets(inputs.targets_BS) * orthogonality(vectors)

    return penalised


def orthogonality(vectors: list[tuple[str, nn.Parameter]]) -> Tensor:
    """Mean over matrices of |A A^T - I| and |B^T B - I|."""
    total = torch.zeros((), device=vectors[0][1].device, dtype=vectors[0][1].dtype)
    for name, p in vectors:
        products = p @ p.T if "lora_A" in name else p.T @ p
        eye = torch.eye(len(products), device=p.device, dtype=p.dtype)
        total = total + torch.linalg.matrix_norm(products - eye)
    return total / len(vectors)


class RankSchedule:
    """Steps peft's allocator after each step of an optimizer; `state` is what a checkpoint must hold of it."""

    def __init__(self, model: Any) -> None:
        self.adapter = model.base_model
        self.allocator, self.config = self.adapter.rankallocator, self.adapter.peft_config["default"]
        self.parameters = {name: p for name, p in self.adapter.model.named_parameters() if "lora_" in name}
        self.step = torch.zeros((), dtype=torch.int64)
        self.scores = {kind: {n: torch.zeros_like(p) for n, p in self.parameters.items()} for kind in SCORES}
        self.kept = {n: torch.ones_like(p, dtype=torch.uint8) for n, p in self.parameters.items() if "lora_E" in n}

    def follow(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Go along with `optimizer`; returns the state, into which a checkpoint may be loaded."""
        optimizer.register_step_post_hook(lambda *_: self.after_step())
        return self.state

    @property
    def state(self) -> dict[str, Tensor]:
        scores = {f"adalora.{kind}.{n}": t for kind, by_name in self.scores.items() for n, t in by_name.items()}
        return {"adalora.step": self.step, **scores, **{f"adalora.kept.{n}": t for n, t in self.kept.items()}}

    def after_step(self) -> None:
        for kind in SCORES:  # peft replaces the tensors in its table, and forgets them when it has settled on the ranks
            setattr(self.allocator, kind, dict(self.scores[kind]))
        self.config.rank_pattern = {name: mask.bool().flatten().tolist() for name, mask in self.kept.items()}
        self.step += 1
        self.adapter.update_and_allocate(int(self.step))
        for kind in SCORES:
            for name, score in getattr(self.allocator, kind).items():
                self.scores[kind][name].copy_(score)
        for name, kept in self.config.rank_pattern.items():
            self.kept[name].copy_(torch.tensor(kept, dtype=torch.uint8).view_as(self.kept[name]))

    @property
    def num_kept(self) -> int:
        """Ranks left, over all layers."""
        return int(sum(int(mask.sum()) for mask in self.kept.values()))
