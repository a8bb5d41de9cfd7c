"""Settings of training that do not go together are refused before anything starts."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from training.specs import TrainSpec

UNTIED = {"tie_embeddings": False}
REPLICAS: dict[str, Any] = {"local": {"every": 10}, "parallel": {"dp_replicate": 2}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": {"architecture": "gpt2"}, "parallel": {"tp": 2}}, "parallel.tp 2 is for architecture llama"),
        ({"objective": "masked_lm", "parallel": {"cp": 2}}, "parallel.cp 2 is for architecture llama and objective"),
        ({"loss": {"label_smoothing": 0.1}, "parallel": {"tp": 2}}, "loss.label_smoothing does not go with"),
        ({"loss": {"chunk_tokens": 8}, "parallel": {"tp": 2}}, "loss.chunk_tokens does not go with parallel.tp 2"),
        (
            {"early_stop": {"watch": "heldout"}, "parallel": {"pp": 2, "pp_micro_batches": 2}, "model": UNTIED},
            "early_stop.watch heldout does not go with",
        ),
        (
            {"optimizer": {"layer_rate_decay": 0.9}, "parallel": {"pp": 2, "pp_micro_batches": 2}, "model": UNTIED},
            "optimizer.layer_rate_decay does not go with",
        ),
        ({"adaptive_batch": {"max_ratio": 4}}, "max_ratio 4 wants a measurement"),
        ({"adaptive_batch": {"measure_every": 1}}, "2 sequences of a rank are one micro-batch of 8"),
        (
            {"adaptive_batch": {"measure_every": 1}, "micro_batch": 1, "parallel": {"strategy": "ddp"}},
            "measure_every wants strategy fsdp",
        ),
        ({"spikes": {"active_after": 64, "window": 32}}, "active_after 64 is more than the window of 32 steps"),
        ({"precision": "fp16", "parallel": {"strategy": "ddp"}}, "ddp trains in fp32, not fp16"),
        ({"local": {}}, "parallel.dp_shard 2 does not go with train.local.*set parallel.dp_replicate to 2"),
        ({"local": {}, "parallel": {"tp": 2}}, "parallel.tp 2 does not go with train.local"),
        ({"local": {}, "parallel": {"dp_replicate": 2, "strategy": "ddp"}}, "parallel.strategy ddp does not go with"),
        (REPLICAS | {"ema": {"decay": 0.9}}, "ema.decay 0.9 does not go with train.local"),
        (REPLICAS | {"adaptive_batch": {"measure_every": 1}, "micro_batch": 1}, "measure_every 1 does not go with"),
        (REPLICAS | {"checkpoint_every": 25}, "checkpoint_every 25 is not a multiple of local.every 10"),
        (REPLICAS | {"early_stop": {"patience": 1, "every": 5}}, "early_stop.every 5 is not a multiple of local.every"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainSpec.model_validate(fields)


def test_settings_that_do_go_together_are_accepted() -> None:
    TrainSpec.model_validate({"adaptive_batch": {"measure_every": 5, "max_ratio": 8}, "micro_batch": 1})
    TrainSpec.model_validate({"optimizer": {"kind": "muon"}, "parallel": {"tp": 2}, "ema": {"decay": 0.9}})
    TrainSpec.model_validate(REPLICAS | {"precision": "bf16", "early_stop": {"every": 5}, "spikes": {"enabled": True}})
