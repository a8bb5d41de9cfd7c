"""What a training remembers besides tensors: a JSON object in each checkpoint, the same on all ranks."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from spark_jobs.manifests import Frozen, Handle
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


# How ranks share the work, and how they are kept going: a checkpoint may be resumed under another choice of these.
FREE = frozenset({"ranks", "parallel", "checkpoint_mode", "max_restarts", "profile"})


def identity_of(spec: dict[str, Any], free: frozenset[str], *inputs: Handle | None) -> str:
    """What a checkpoint may be resumed under: the spec but for its `free` fields, and the inputs, in their order."""
    kept = {name: value for name, value in spec.items() if name not in free}
    text = json.dumps([kept, *(handle.digest if handle is not None else "" for handle in inputs)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
