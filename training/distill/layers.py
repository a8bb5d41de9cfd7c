"""A student's layers beside a teacher's.

Layer i of the student's S meets layer round(i L / S) of the teacher's L, so that both ends meet and no teacher layer is asked
for twice while S <= L (the uniform map of TinyBERT, arXiv:1909.10351). Of other width, a learned linear map without bias takes
the student's vectors to the teacher's; it is a part of the student while it trains, and of no published model.

Shapes: B examples, T tokens, H width of the student, W of the teacher.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spark_jobs.errors import RequestError
from training.distill.divergence import wide
from training.distill_spec import HiddenSpec
from training.pretrain.checkpointing import TRAINING_ONLY
from training.pretrain.loss import IGNORED

Map = tuple[tuple[int, int], ...]  # (layer of the student, layer of the teacher), from 1; 0 would be the embeddings


def uniform_map(num_student: int, num_teacher: int) -> Map:
    """Halves go up: layer 1 of 2 meets layer 2 of 3."""
    return tuple((i, (2 * i * num_teacher + num_student) // (2 * num_student)) for i in range(1, num_student + 1))


class HiddenStates(nn.Module):
    """The linear maps, one a student layer (none where widths are equal), and what they are for."""

    def __init__(self, student: Any, teacher: Any, spec: HiddenSpec, seed: int) -> None:
        """Raises: RequestError if one of the two is an encoder-decoder."""
        super().__init__()
        for model in (student, teacher):
            if model.config.is_encoder_decoder:
                raise RequestError(
                    f"distill.hidden: a {model.config.model_type} has two stacks of layers; leave it out, its answers can be learned"
                )
        self.spec = spec
        self.map = uniform_map(student.config.num_hidden_layers, teacher.config.num_hidden_layers)
        width, wanted = student.config.hidden_size, teacher.config.hidden_size
        torch.manual_seed(seed)
        self.linear = nn.ModuleList(nn.Linear(width, wanted, bias=False) for _ in (self.map if width != wanted else ()))

    def forward(self, states: tuple[Tensor, ...]) -> list[Tensor]:
        """The student's layers as the teacher's would be, in order of the map."""
        own = [states[layer] for layer, _ in self.map]
        return [linear(state) for linear, state in zip(self.linear, own, strict=True)] if len(self.linear) else own


def install_hidden(student: Any, teacher: Any, spec: HiddenSpec, seed: int) -> None:
    """Let every forward pass of the student also answer `mapped`, before it is spread over ranks.

    The maps are called inside the student's own forward pass, so that whatever gathers its weights gathers theirs too.
    """
    maps = HiddenStates(student, teacher, spec, seed)
    setattr(student, TRAINING_ONLY, maps)
    for model in (student, teacher):
        model.config.output_hidden_states = True

    def add_mapped(module: nn.Module, args: Any, output: Any) -> Any:
        output["mapped"] = maps(output.hidden_states)
        return output

    student.register_forward_hook(add_mapped)


def sum_hidden_distance(
    mapped: list[Tensor], teacher_states: tuple[Tensor, ...], layers: Map, spec: HiddenSpec, weights_BT: Tensor
) -> Tensor:
    """Mean over the map's layers of the distance of two vectors, summed over tokens by weight."""
    total = weights_BT.new_zeros(())
    for own_BTW, (_, layer) in zip(mapped, layers, strict=True):
        theirs_BTW = wide(teacher_states[layer])
        own_BTW = wide(own_BTW)
        if spec.distance == "mse":
            distance_BT = (own_BTW - theirs_BTW).square().mean(-1)
        else:
            distance_BT = 1 - F.cosine_similarity(own_BTW, theirs_BTW, dim=-1)
        total = total + (distance_BT * weights_BT).sum()
    return total / len(layers)


def token_weights(inputs: Any, logits: Tensor | None) -> Tensor:
    """fp32 (B, T): what each token counts, summing to the batch's number of targets, so that the step's divisor is right.

    Where answers are given at tokens, a real target counts 1; where they are given of a whole text, its real tokens share its
    targets alike. logits: of the answer, None where it has none of that name.
    """
    targets: Tensor = inputs.targets_BS
    if logits is not None and logits.ndim == 3 and targets.shape == logits.shape[:2]:
        return (targets != IGNORED).float()
    mask_BT: Tensor = inputs.model["attention_mask"].float()
    counts_B = (targets != IGNORED).float().reshape(len(mask_BT), -1).sum(1)
    return mask_BT / mask_BT.sum(1, keepdim=True).clamp(min=1) * counts_B[:, None]
