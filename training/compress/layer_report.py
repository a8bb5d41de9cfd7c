"""What compression did to one layer: a row of report.parquet, of MLflow's table and of the model card."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerReport:
    """error_before, error_after: tr(D H D^T) / tr(W H W^T), the squared error of the layer's outputs on the calibration
    tokens as a share of their squares; D is what the weight changed by. Before: of the plain method at the same size
    (rounding to nearest, magnitude); after: of what is stored. bits: stored bits a weight. zeros: weights that are 0.
    damping: share of the mean diagonal that the Hessian was given, 0 where none was needed. fallback: the method could
    not be used and the plain one was.
    """

    name: str
    method: str
    num_outputs: int
    num_inputs: int
    error_before: float
    error_after: float
    damping: float
    fallback: bool
    zeros: int
    bits: float
    seconds: float

    @property
    def num_weights(self) -> int:
        return self.num_outputs * self.num_inputs
