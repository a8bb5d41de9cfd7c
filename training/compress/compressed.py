"""What a recipe made of a model, in memory: what the writers of files take."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import PreTrainedModel

from training.compress.layer_report import LayerReport
from training.compress.quantized import Quantized


@dataclass(frozen=True)
class Compressed:
    """model: its weights are what the codes decode to, in the model's own dtype. quantized: by name of the module
    ("model.layers.0.self_attn.q_proj"), in order of the model; empty where nothing was quantised. A tied head that was
    quantised once stands under the embedding's name ("model.embed_tokens") alone.
    """

    model: PreTrainedModel
    quantized: dict[str, Quantized] = field(default_factory=dict)
    reports: list[LayerReport] = field(default_factory=list)
