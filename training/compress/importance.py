"""How much a model of the Llama family uses its units, measured on calibration sequences, for structured pruning.

Minitron (arXiv 2407.14679, section 2.2): the mean absolute activation over all real tokens of
    hidden units    behind every norm, summed over norms
    neurons         before a feed-forward layer's way down
    KV groups       before attention's output projection, the mean over the group's query heads
and of runs of blocks 1 - cos(input, output), the block influence of ShortGPT (arXiv 2403.03853) taken over a whole run.
Shapes: B sequences, T tokens, H hidden units, F neurons, K groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spark_jobs.errors import RequestError
from training.compress.blocks import batches_of


@dataclass(frozen=True)
class Importance:
    """hidden (H,); of each block neurons (F,) and groups (K,); of each run of blocks its influence, by the run's first block."""

    hidden: Tensor
    neurons: list[Tensor]
    groups: list[Tensor]
    runs: list[float]


def measure_importance(model: PreTrainedModel, calibration_NT: Sequence[Tensor], run_length: int) -> Importance:
    """Of a model with Llama's module names. calibration_NT: 1-D int64 each. run_length: blocks of a run; 0: no runs.

    Raises: RequestError without sequences.
    """
    if not len(calibration_NT):
        raise RequestError("shrink measures what a model uses, and got no calibration sequences: give it some")
    seen = _Seen(model, run_length)
    model.eval()
    try:
        for batch in batches_of(list(calibration_NT)):
            tokens_BT = torch.stack([calibration_NT[i] for i in batch]).to(model.device)
            with torch.no_grad():
                model.base_model(input_ids=tokens_BT, use_cache=False)
            seen.end_batch()
    finally:
        seen.remove()
    return seen.importance()


class _Seen:
    """Sums over tokens, in float64, taken by hooks."""

    def __init__(self, model: PreTrainedModel, run_length: int) -> None:
        base: Any = model.base_model
        self.blocks, self.run_length = list(base.layers), run_length
        self.num_groups = model.config.num_key_value_heads
        self.num_tokens = 0
        self.sums: dict[nn.Module, Tensor] = {}
        self.borders: list[Tensor] = []  # of this batch: the input of each block, and the last one's output
        self.alike = torch.zeros(max(len(self.blocks) - run_length + 1, 0), dtype=torch.float64)
        self.norms: list[nn.Module] = [base.norm]
        for block in self.blocks:
            self.norms += [block.input_layernorm, block.post_attention_layernorm]
        self.hooks = [norm.register_forward_hook(lambda m, _, output: self._add(m, output)) for norm in self.norms]
        for block in self.blocks:
            for layer in (block.mlp.down_proj, block.self_attn.o_proj):
                self.hooks.append(layer.register_forward_pre_hook(lambda m, args: self._add(m, args[0])))
            self.hooks.append(block.register_forward_pre_hook(self._border, with_kwargs=True))
        self.hooks.append(self.blocks[-1].register_forward_hook(lambda _m, _a, out: self.borders.append(_hidden(out))))

    def _add(self, module: nn.Module, activations: Tensor) -> None:
        added = activations.flatten(0, -2).abs().sum(0, dtype=torch.float64)
        self.sums[module] = self.sums[module] + added if module in self.sums else added

    def _border(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.borders.append(args[0] if args else kwargs["hidden_states"])

    def end_batch(self) -> None:
        self.num_tokens += self.borders[0].shape[:-1].numel()
        if self.run_length:
            for first in range(len(self.alike)):
                before, after = self.borders[first], self.borders[first + self.run_length]
                cosine = torch.cosine_similarity(before.double(), after.double(), dim=-1)
                self.alike[first] += cosine.sum().cpu()
        self.borders.clear()

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def importance(self) -> Importance:
        means = {module: total.cpu() / self.num_tokens for module, total in self.sums.items()}
        groups = [means[block.self_attn.o_proj].reshape(self.num_groups, -1).mean(1) for block in self.blocks]
        return Importance(
            hidden=torch.stack([means[norm] for norm in self.norms]).sum(0),
            neurons=[means[block.mlp.down_proj] for block in self.blocks],
            groups=groups,
            runs=(1 - self.alike / self.num_tokens).tolist() if self.run_length else [],
        )


def _hidden(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
