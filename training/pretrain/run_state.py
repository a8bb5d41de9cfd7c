"""What a training remembers besides tensors: a JSON object in each checkpoint, the same on all ranks."""

from __future__ import annotations

from spark_jobs.manifests import Frozen
from training.pretrain.early_stopping import StopState
from training.pretrain.loss_scale import LossScale
from training.pretrain.noise_scale import NoiseState
from training.pretrain.spikes import SpikeState


class RunState(Frozen):
    """step: optimizer steps done. drawn: sequences they were made of; the learning rate follows these."""

    step: int = 0
    drawn: int = 0
    scale: LossScale = LossScale()
    spikes: SpikeState = SpikeState()
    noise: NoiseState = NoiseState()
    stop: StopState = StopState()
