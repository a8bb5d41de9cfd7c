"""Second-order statistics of a layer's inputs, and the factor of their inverse that GPTQ and SparseGPT walk along.

Shapes: T tokens, I inputs. Sources: GPTQ (arXiv 2210.17323) section 3, SparseGPT (arXiv 2301.00774) section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DAMPING_STEP = 0.0015  # added per failed try, as GPTQModel does
DAMPING_TRIES = 100
FLOOR_TRIES = 8  # each ten times the last, from a millionth of the largest diagonal


class InputStatistics:
    """Sums over the inputs a layer saw; every row given is a real token."""

    def __init__(self, num_inputs: int) -> None:
        self.num_tokens = 0
        self.gram_II = torch.zeros(num_inputs, num_inputs)
        self.abs_sum_I = torch.zeros(num_inputs)
        self.abs_max_I = torch.zeros(num_inputs)

    def add(self, inputs_TI: Tensor) -> None:
        inputs_TI = inputs_TI.detach().reshape(-1, inputs_TI.shape[-1]).to(torch.float32)
        self.num_tokens += len(inputs_TI)
        self.gram_II.addmm_(inputs_TI.T, inputs_TI)
        absolute = inputs_TI.abs()
        self.abs_sum_I += absolute.sum(0)
        self.abs_max_I = torch.maximum(self.abs_max_I, absolute.amax(0))

    @property
    def hessian_II(self) -> Tensor:
        """(2 / T) sum of x x^T, fp32."""
        return self.gram_II * (2 / max(self.num_tokens, 1))

    @property
    def norm_I(self) -> Tensor:
        """L2 norm over tokens of each input."""
        return self.gram_II.diagonal().sqrt()

    @property
    def abs_mean_I(self) -> Tensor:
        return self.abs_sum_I / max(self.num_tokens, 1)


@dataclass(frozen=True)
class Factor:
    """upper_II: H^-1 = U^T U of the damped Hessian, None if no damping made it positive definite. dead_I: inputs that were
    always zero. damping: share of the mean diagonal added."""

    upper_II: Tensor | None
    dead_I: Tensor
    damping: float


@dataclass(frozen=True)
class Solve:
    """How a layer was solved. damping: as of its Factor. fallback: there was no factor, and the plain method was used."""

    damping: float
    fallback: bool


def inverse_factor(hessian_II: Tensor, damping: float) -> Factor:
    """Cholesky factor of the inverse, with damping raised until there is one.

    A dead input's diagonal becomes 1, so that it is independent of all others. Tries: `damping`, then DAMPING_STEP more
    each time, then floors of the diagonal. A Hessian that is not finite has no factor.
    """
    hessian = hessian_II.clone()
    diagonal = hessian.diagonal()
    dead_I = diagonal == 0
    if not bool(torch.isfinite(hessian).all()):
        return Factor(None, dead_I, damping)
    diagonal[dead_I] = 1.0
    mean, largest = float(diagonal.mean()), float(diagonal.max())
    tries = [(damping + DAMPING_STEP * i) * mean for i in range(DAMPING_TRIES)]
    tries += [tries[-1] + largest * 1e-6 * 10**i for i in range(FLOOR_TRIES)]
    original = diagonal.clone()
    for added in tries:
        diagonal.copy_(original + added)
        upper = _upper(hessian)
        if upper is not None:
            return Factor(upper, dead_I, added / mean)
    return Factor(None, dead_I, tries[-1] / mean)


def _upper(hessian_II: Tensor) -> Tensor | None:
    lower, failed = torch.linalg.cholesky_ex(hessian_II)
    if int(failed):
        return None
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return upper if not int(failed) and bool(torch.isfinite(upper).all()) else None


def output_error(change_OI: Tensor, weight_OI: Tensor, hessian_II: Tensor) -> float:
    """tr(D H D^T) / tr(W H W^T): squared error of the outputs as a share of their squares; 0 where both are 0."""
    lost = float(((change_OI @ hessian_II) * change_OI).sum())
    whole = float(((weight_OI @ hessian_II) * weight_OI).sum())
    return lost / whole if whole else 0.0 if lost == 0 else float("inf")
