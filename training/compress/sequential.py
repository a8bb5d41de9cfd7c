"""Block after block: each sees what the treated blocks before it give, and the inputs of one block are all that is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor
from transformers import PreTrainedModel

from training.compress.blocks import Block, blocks_of, first_block

T = TypeVar("T")


def over_blocks(model: PreTrainedModel, calibration_NT: Sequence[Tensor], treat: Callable[[Block], T]) -> list[T]:
    """What `treat` gave for each block, first to last. It may change the weights of the block it is given.

    calibration_NT: 1-D int64 each. None at all: blocks come without inputs, for treatments that look at weights alone.
    """
    model.eval()
    if not len(calibration_NT):
        return [treat(Block(name, module, [], [], [])) for name, module in blocks_of(model).items()]
    block, calls = first_block(model, calibration_NT)
    given = []
    for k, (name, module) in enumerate(blocks_of(model).items()):
        block = Block(name, module, block.rows, block.inputs, calls[k])
        given.append(treat(block))
        if k + 1 < len(calls):
            block.advance()
    return given
