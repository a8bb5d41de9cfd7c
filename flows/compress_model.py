"""Dense model -> quantised folders, each reloaded and compared. Deployment `compress-model`, pool `gpu`."""

from __future__ import annotations

from prefect import flow

from flows.night import FlowReport, open_night
from flows.specs import NightlySpec
from tasks.model_steps import compress_model as compress
from training.manifests import ModelFolder


@flow(name="compress-model")
def compress_model(spec: NightlySpec, night: str = "") -> FlowReport:
    """Quantise tonight's model by every scheme asked for.

    Args:
        spec: What to do; this flow reads `compress`.
        night: Logical night as YYYY-MM-DD, whose model is exported already. Empty: tonight (UTC).
    """
    with open_night(spec, night) as tonight:
        model = tonight.find("export", ModelFolder, "train-model")
        for scheme in spec.compress.schemes:
            compress(model, scheme, spec.compress)
        return tonight.report()
