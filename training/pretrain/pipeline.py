"""Pipeline parallel: blocks of a Llama on several ranks, micro-batches on their way through them.

Shapes: B sequences, S tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B
from torch.distributed.tensor import DTensor
from transformers import LlamaForCausalLM

from training.parallel_spec import STAGES_PER_RANK, ParallelSpec
from training.pretrain.mesh import Mesh
from training.pretrain.micro_batch import MicroBatch, concatenate
from training.pretrain.objectives import Inputs
from training.pretrain.tensor_parallel import LossFunction, loss_context

SCHEDULES: dict[str, Any] = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B, "interleaved1f1b": ScheduleInterleaved1F1B}


def split_blocks(num_blocks: int, num_stages: int) -> list[list[int]]:
    """Blocks of each stage, in order, as even as can be; the first stages get the blocks left over, because the last has
    the head and the loss."""
    share, rest = divmod(num_blocks, num_stages)
    ends = [0]
    for stage in range(num_stages):
        ends.append(ends[-1] + share + (stage < rest))
    return [list(range(ends[stage], ends[stage + 1])) for stage in range(num_stages)]


class LlamaStage(nn.Module):
    """Some blocks of a Llama, with the embedding before the first and norm and head behind the last.

    Modules are those of `whole`, under their own names: `model.layers.7.mlp.up_proj.weight` is called so on any stage.
    A tied embedding is on the first stage and, for its head, on the last.
    """

    def __init__(self, whole: LlamaForCausalLM, blocks: Sequence[int], is_first: bool, is_last: bool) -> None:
        super().__init__()
        self.config, self.is_first, self.is_last = whole.config, is_first, is_last
        self.model: Any = nn.Module()
        if is_first or (is_last and whole.config.tie_word_embeddings):
            self.model.embed_tokens = whole.model.embed_tokens
        self.model.layers = nn.ModuleDict({str(i): whole.model.layers[i] for i in blocks})
        self.model.rotary_emb = whole.model.rotary_emb
        if is_last:
            self.model.norm = whole.model.norm
            self.lm_head: Any = whole.lm_head

    def get_output_embeddings(self) -> nn.Module | None:
        return self.lm_head if self.is_last else None

    def forward(self, x: Tensor, *, position_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids int64 (B, S) on the first stage, else hidden (B, S, H); gives hidden, or logits (B, S, V) on the
        last."""
        hidden_BSH: Tensor = self.model.embed_tokens(x) if self.is_first else x
        rotations = self.model.rotary_emb(hidden_BSH, position_ids=position_ids)
        for block in self.model.layers.values():
            hidden_BSH = block(
                hidden_BSH, attention_mask=attention_mask, position_embeddings=rotations, position_ids=position_ids
            )
        if not self.is_last:
            return hidden_BSH
        logits_BSV: Tensor = self.lm_head(self.model.norm(hidden_BSH))
        return logits_BSV


class PipelinedModel:
    """The stages of this rank, run by a schedule of torch.distributed.pipelining."""

    def __init__(
        self, whole: LlamaForCausalLM, mesh: Mesh, spec: ParallelSpec, loss: LossFunction,
        shard: Callable[[nn.Module], None],
    ) -> None:  # fmt: skip
        """`shard` cuts one stage over the ranks that share it."""
        split = split_blocks(whole.config.num_hidden_layers, spec.num_stages)
        mine = [mesh.at.pp + mesh.degrees.pp * i for i in range(STAGES_PER_RANK[spec.schedule])]
        last = spec.num_stages - 1
        modules = [LlamaStage(whole, split[i], i == 0, i == last) for i in mine]
        for module in modules:
            shard(module)
        self.has_first, self.has_last = 0 in mine, last in mine
        blocks = [block for i in mine for block in split[i]]
        self.module: Any = LlamaStage(_union(modules), blocks, self.has_first, self.has_last)
        self.mesh, self.loss, self.divisor = mesh, loss, 1.0
        tied = self.module.model.embed_tokens.weight if whole.config.tie_word_embeddings and self._is_end else None
        self.tied: nn.Parameter | None = tied
        self.copies: Sequence[nn.Parameter] = [tied] if tied is not None and self.has_last else []
        stages = [
            PipelineStage(module, i, spec.num_stages, mesh.ranks.device, group=mesh.stages)
            for i, module in zip(mine, modules, strict=True)
        ]
        make: Any = SCHEDULES[spec.schedule]
        # The loss is a share of the global mean already, so gradients are summed as they are.
        self.schedule = make(
            stages if len(stages) > 1 else stages[0], spec.pp_micro_batches, loss_fn=self._share, scale_grads=False
        )

    def _share(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.loss(logits, targets) / self.divisor

    def forward_backward(self, batches: Sequence[Inputs], divisor: float) -> float:
        """Make the gradients of a step's micro-batches, and return this rank's share of the mean loss (0 but on the last
        stage). One call a step: the gradient of a tied embedding is added up across stages in it."""
        self.divisor = divisor
        rows, device = concatenate([b for b in batches if isinstance(b, MicroBatch)]), self.mesh.ranks.device
        losses: list[Tensor] = []
        with loss_context(self.mesh.tp):
            self.schedule.step(
                *((rows.tokens_BS.to(device),) if self.has_first else ()),
                target=rows.targets_BS.to(device) if self.has_last else None,
                losses=losses,
                return_outputs=False,
                position_ids=rows.positions_BS.to(device),
                attention_mask=rows.attention_mask().to(device),
            )
        if self.tied is not None:
            self._add_gradient_of_other_end(self.tied)
        return float(torch.stack([loss.detach() for loss in losses]).sum()) if losses else 0.0

    @property
    def _is_end(self) -> bool:
        return self.has_first or self.has_last

    def _add_gradient_of_other_end(self, tied: nn.Parameter) -> None:
        """Both ends add the other's part, so that they stay equal to the bit: a + b is b + a."""
        grad = tied.grad.to_local() if isinstance(tied.grad, DTensor) else tied.grad
        assert grad is not None
        peer = self.mesh.degrees.pp - 1 if self.has_first else 0
        part = torch.empty_like(grad)
        operations = [
            dist.P2POp(dist.isend, grad, group=self.mesh.stages, group_peer=peer),
            dist.P2POp(dist.irecv, part, group=self.mesh.stages, group_peer=peer),
        ]
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        grad.add_(part)


def _union(stages: Sequence[LlamaStage]) -> Any:
    """Something LlamaStage can pick modules from: all that the stages have."""
    union: Any = nn.Module()
    union.config, union.model = stages[0].config, nn.Module()
    union.model.layers = {}
    for stage in stages:
        for name, module in stage.model.named_children():
            if name == "layers":
                union.model.layers.update({int(i): block for i, block in stage.model.layers.items()})
            else:
                setattr(union.model, name, module)
        if stage.is_last:
            union.lm_head = stage.lm_head
    return union
