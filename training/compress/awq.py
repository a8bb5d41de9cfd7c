"""AWQ: inputs that are large on average have their weights scaled up before rounding, and their sources scaled down.

Shapes: O outputs, I inputs, B T D hidden states. Source: arXiv 2306.00978 section 3.2, s = mean|x|^alpha with alpha searched
on a grid of 20. Here alphas are ranked by what they lose on the outputs of the edge's own layers, and the best few are tried on
the outputs of the whole block for some of the tokens, everything else in it being rounded too; no scales at all are what the
search begins with. What is found is kept if it loses less on all calibration tokens: a block with scales never loses more on
them than the block rounded to nearest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spark_jobs.errors import DataError
from training.compress.blocks import Block
from training.compress.folding import Edge, Smoothing, find_edges, fold
from training.compress.hessian import InputStatistics
from training.compress.layers import set_weight, weight_OI
from training.compress.quantized import Grid
from training.compress.rounding import round_to_grid

NUM_ALPHAS = 20
NUM_TRIED = 4  # on the whole block, of each edge: a forward of SEARCH_TOKENS each
SEARCH_TOKENS = 4096  # at most, in whole batches, but one batch at least
RANKED_OUTPUTS = 256  # rows of a weight, evenly spread, that alphas are ranked by
SMALLEST = 1e-4  # of a mean activation


def smooth(block: Block, statistics: dict[str, InputStatistics], grids: dict[str, Grid]) -> Smoothing:
    """Fold the scales found into a block, whose weights stay unrounded. By name inside the block: statistics, grids.

    Raises: RequestError where the block is not one that scales can be moved in; DataError if no scales, and none at all,
    give finite outputs.
    """
    wanted = block.run()
    dense = _state(block)
    found = search_scales(_first_tokens(block), statistics, grids, wanted)
    install_rounded(block, grids)
    rounded_loss = block_error(block, wanted)
    block.module.load_state_dict(dense)
    smoothing = fold(block, found)
    folded = _state(block)
    install_rounded(block, grids)
    kept = block_error(block, wanted) < rounded_loss
    block.module.load_state_dict(folded if kept else dense)
    return smoothing if kept else Smoothing()


def _state(block: Block) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in block.module.state_dict().items()}


def _first_tokens(block: Block) -> Block:
    """The block with its first batches alone."""
    num_batches, total = 0, 0
    for inputs_BTD in block.inputs:
        total += inputs_BTD.shape[0] * inputs_BTD.shape[1]
        if num_batches and total > SEARCH_TOKENS:
            break
        num_batches += 1
    return Block(
        block.name, block.module, block.rows[:num_batches], block.inputs[:num_batches], block.calls[:num_batches]
    )


def search_scales(
    block: Block, statistics: dict[str, InputStatistics], grids: dict[str, Grid], wanted: list[Tensor]
) -> list[tuple[Edge, Tensor]]:
    """Scales (I,) of the edges that gain from them. Leaves the weights as they were. wanted: outputs, of more batches perhaps."""
    edges = find_edges(block)
    dense = {name: weight_OI(layer) for name, layer in block.layers.items()}
    install_rounded(block, grids)
    best = block_error(block, wanted)
    found = []
    for edge in edges:
        scale_I = None
        for candidate_I in ranked_scales(edge, statistics, dense, grids)[:NUM_TRIED]:
            before = _install(block, {name: restored(dense[name], candidate_I, grids[name]) for name in edge.layers})
            loss = block_error(block, wanted)
            if loss < best or not best < float("inf"):
                scale_I, best = candidate_I, loss
            else:
                _install(block, before)
        if scale_I is not None:
            found.append((edge, scale_I))
    if not best < float("inf"):
        raise DataError(
            f"{block.name}: outputs are not finite with rounded weights, whatever their scales; check the model and its "
            "calibration sequences, or set quantize.method to rtn"
        )
    _install(block, dense)
    return found


def ranked_scales(
    edge: Edge, statistics: dict[str, InputStatistics], dense: dict[str, Tensor], grids: dict[str, Grid]
) -> list[Tensor]:
    """Scales of all alphas above 0 that are finite, those first that lose least on the outputs of the edge's layers."""
    seen = statistics[edge.layers[0]]
    hessian_II, candidates = seen.hessian_II, []
    for k in range(1, NUM_ALPHAS + 1):
        scale_I = awq_scales(seen.abs_mean_I, k / NUM_ALPHAS)
        if not bool(torch.isfinite(scale_I).all()):
            continue
        lost = 0.0
        for name in edge.layers:
            step = max(1, len(dense[name]) // RANKED_OUTPUTS)
            rows_OI = dense[name][::step]
            change_OI = restored(rows_OI, scale_I, grids[name]) - rows_OI
            lost += step * float(((change_OI @ hessian_II) * change_OI).sum())
        candidates.append((lost, k, scale_I))
    return [scale_I for _lost, _k, scale_I in sorted(candidates, key=lambda c: c[:2])]


def awq_scales(abs_mean_I: Tensor, alpha: float) -> Tensor:
    """mean|x|^alpha, around 1."""
    scale_I = (abs_mean_I**alpha).clamp(min=SMALLEST)
    return scale_I / (scale_I.max() * scale_I.min()).sqrt()


def restored(weight_OI: Tensor, scale_I: Tensor, grid: Grid) -> Tensor:
    """What a weight becomes that is scaled, rounded and scaled back; zeros stay."""
    return round_to_grid(weight_OI * scale_I, grid).weight() / scale_I


def install_rounded(block: Block, grids: dict[str, Grid]) -> None:
    for name, layer in block.layers.items():
        set_weight(layer, round_to_grid(weight_OI(layer), grids[name]).weight())


def _install(block: Block, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put weights in place; returns those that were there."""
    before = {name: weight_OI(block.module.get_submodule(name)) for name in weights}
    for name, weight in weights.items():
        set_weight(block.module.get_submodule(name), weight)
    return before


def block_error(block: Block, wanted: list[Tensor]) -> float:
    """Squared distance of the block's outputs from those wanted, as a share of their squares; infinite if not a number."""
    wanted = wanted[: len(block.inputs)]
    lost = sum(float((block.forward(i) - out).float().square().sum()) for i, out in enumerate(wanted))
    whole = sum(float(out.float().square().sum()) for out in wanted)
    share = lost / whole if whole else lost
    return share if torch.isfinite(torch.tensor(share)) else float("inf")
