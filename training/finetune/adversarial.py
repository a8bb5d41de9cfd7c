"""Steps on inputs moved so that the loss rises: FGM, PGD and FreeLB, on any number of ranks.

What is moved is what the word embedding answers with: a hook adds to it. The table itself is never written, so there is
nothing to put back, a head tied to it stays where it is, and a frozen or sharded table does as well as another.

    fgm     r = epsilon g / |g|, one for every entry of the table; the step's gradient is the clean one plus that at r
    pgd     the same in num_steps steps of step_size, each projected to |r| <= epsilon; only that at the last r is added
    freelb  one move a sequence, num_steps of them from 0; the gradient is the mean of all, the first of which is clean

g is the gradient of the whole step: over all micro-batches and ranks, so neither changes the numbers of fgm and pgd. Of
freelb g is a sequence's own, and needs no other rank. A gradient of zero moves nothing. All passes of a micro-batch drop
the same units, or the loss would rise by chance too.

Cost beside a plain step: fgm 2 times the forward and backward passes, pgd 1 + num_steps, freelb num_steps. Memory: fgm and
pgd two more tables and one more set of gradients, freelb two more embeddings of a micro-batch.

Shapes: B sequences, T tokens, H width, V entries of the table.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from spark_jobs.errors import TrainingError
from training.finetune_spec import AdversarialSpec
from training.pretrain.objectives import Inputs
from training.pretrain.optimizer import add_gradients, take_gradients
from training.pretrain.parallel import ParallelModel, WholeModel


def against(model: ParallelModel, spec: AdversarialSpec) -> ParallelModel:
    """`model`, whose steps are adversarial if the spec says so."""
    assert isinstance(model, WholeModel)  # FinetuneSpec refuses the rest
    match spec.kind:
        case "none":
            return model
        case "freelb":
            return FreeLB(model, spec)
        case "fgm" | "pgd":
            return MovedTable(model, spec)


class _Adversarial(WholeModel):
    def __init__(self, model: WholeModel, spec: AdversarialSpec) -> None:
        super().__init__(model.module, model.forward, model.mesh, model.loss, model.head)
        self.spec, self.embedding = spec, word_embedding(model.module)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, device=self.mesh.ranks.device, dtype=self.embedding.weight.dtype, requires_grad=True)


class MovedTable(_Adversarial):
    """FGM and PGD."""

    def forward_backward(self, batches: Sequence[Inputs], divisor: float) -> float:
        """As WholeModel's; the loss is that of the inputs as they are."""
        num_moves = 1 if self.spec.kind == "fgm" else self.spec.num_steps
        step_size = self.spec.epsilon if self.spec.kind == "fgm" else self.spec.step_size
        move_VH = self._zeros(self.embedding.num_embeddings, self.embedding.embedding_dim)
        before = take_gradients(self.module)
        with same_dropout(self.mesh.ranks.device) as again:
            share = self._pass(move_VH, batches, divisor)
            clean = take_gradients(self.module)
            for i in range(num_moves):
                step_up(move_VH, self._slope(move_VH), step_size, self.spec.epsilon)
                take_gradients(self.module)  # those at a move on the way lead nowhere
                again()
                self._pass(move_VH, batches, divisor, needs_slope=i < num_moves - 1)
        add_gradients(before, clean)
        return share

    def _pass(self, move_VH: Tensor, batches: Sequence[Inputs], divisor: float, needs_slope: bool = True) -> float:
        move_VH.requires_grad_(needs_slope)
        with added(self.embedding, lambda ids_BT: F.embedding(ids_BT, move_VH, self.embedding.padding_idx)):
            return super().forward_backward(batches, divisor)

    def _slope(self, move_VH: Tensor) -> Tensor:
        slope_VH = slope_of(move_VH)
        dist.all_reduce(slope_VH)
        return slope_VH


class FreeLB(_Adversarial):
    def forward_backward(self, batches: Sequence[Inputs], divisor: float) -> float:
        """As WholeModel's; the loss is the mean over moves."""
        share, num_steps = 0.0, self.spec.num_steps
        for i, batch in enumerate(batches):
            sent = batch.model_inputs(self.mesh.ranks.device)
            seen_BT1 = sent["attention_mask"][..., None]
            move_BTH = self._zeros(*sent["input_ids"].shape, self.embedding.embedding_dim)
            with same_dropout(self.mesh.ranks.device) as again:
                for k in range(num_steps):
                    again()
                    last = k == num_steps - 1
                    move_BTH.requires_grad_(not last)
                    with self._reduction(last and i == len(batches) - 1):
                        share += self._backward(batch, move_BTH, divisor * num_steps)
                    if not last:
                        slope_BTH = slope_of(move_BTH) * seen_BT1
                        step_up(move_BTH, slope_BTH, self.spec.step_size, self.spec.epsilon, dims=(1, 2))
        return share

    def _backward(self, batch: Inputs, move_BTH: Tensor, divisor: float) -> float:
        """Accumulate gradients at a move; the loss there. A decoder that shares the module calls it second."""
        moves = [move_BTH]
        with added(self.embedding, lambda _: moves.pop() if moves else None):
            loss = self._loss(batch) / divisor
        torch.autograd.backward(loss)
        return float(loss.detach())


def word_embedding(module: Any) -> nn.Embedding:
    """Of the encoder, where there is one: what a decoder reads is its own answer. Raises: TrainingError if there is none."""
    inner = module.get_base_model() if hasattr(module, "get_base_model") else module
    reader = inner.get_encoder() if inner.config.is_encoder_decoder else inner
    found = reader.get_input_embeddings()
    if not isinstance(found, nn.Embedding):
        raise TrainingError(
            f"adversarial: a {inner.config.model_type} does not read tokens by an embedding; set adversarial.kind to none"
        )
    return found


@contextlib.contextmanager
def added(embedding: nn.Embedding, move_of: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Inside, what `embedding` answers has move_of(its input) added, unless that is None."""

    def add(module: nn.Module, args: tuple[Tensor, ...], answer: Tensor) -> Tensor:
        move = move_of(args[0])
        return answer if move is None else answer + move.to(answer.dtype)

    hook = embedding.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


def slope_of(move: Tensor) -> Tensor:
    """The gradient with respect to a move, which is then clear for the next. Raises: TrainingError if there is none."""
    slope, move.grad = move.grad, None
    if slope is None:
        raise TrainingError(
            "adversarial: the loss does not depend on the word embeddings; set adversarial.kind to none"
        )
    return slope


@torch.no_grad()
def step_up(move: Tensor, slope: Tensor, step_size: float, epsilon: float, dims: tuple[int, ...] | None = None) -> None:
    """move += step_size slope / |slope|, then shortened to epsilon where it is longer; in place.

    dims: over which lengths are taken, all by default. Where the slope is zero, nothing moves. At the edge of the ball a
    shortened step may come back a rounding error behind where it began: then it is not taken.
    """
    before = move.clone()
    length = torch.linalg.vector_norm(slope, dim=dims, keepdim=True)
    move += torch.where(length > 0, step_size / torch.where(length > 0, length, 1.0), 0.0) * slope
    reach = torch.linalg.vector_norm(move, dim=dims, keepdim=True)
    move *= torch.where(reach > epsilon, epsilon / torch.where(reach > 0, reach, 1.0), 1.0)
    gain = torch.sum((move - before) * slope, dim=dims, keepdim=True)
    move.copy_(torch.where(gain < 0, before, move))


@contextlib.contextmanager
def same_dropout(device: torch.device) -> Iterator[Callable[[], None]]:
    """Gives a function that sets the random state back to where it was on entry."""
    host = torch.get_rng_state()
    card = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def again() -> None:
        torch.set_rng_state(host)
        if card is not None:
            torch.cuda.set_rng_state(card, device)

    yield again
