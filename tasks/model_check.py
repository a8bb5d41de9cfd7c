"""What a model must show before any pointer moves to it: its bytes are those that were published, it loads, it writes."""

from __future__ import annotations

from spark_jobs.errors import DataError, NightmillError
from spark_jobs.requests import Request
from tasks.application import Application
from tasks.specs import ReleaseSpec
from training.manifests import ModelFolder

CHECK_S = 600.0


def check_model(torch: Application, model: ModelFolder, digest: str, night: str, spec: ReleaseSpec) -> str:
    """Compare the folder with its manifest and the manifest with `digest`, load it in a fresh process and let it continue a text.

    Returns what it wrote. Raises: DataError if bytes changed; QualityError if its logits are not finite or it wrote nothing;
    NightmillError if it does not load.
    """
    if model.digest != digest:
        raise DataError(
            f"{model.uri}: manifest sha256 {model.digest[:12]}, decided was on {digest[:12]}; the champion stays, run that night again"
        )
    model.check_bytes()
    request = Request(
        job="generate", spec={"prompt": spec.smoke_prompt, "max_new_tokens": spec.smoke_tokens}, inputs={"model": model.uri},
        out="", night=night,
    )  # fmt: skip
    answer = torch.ask(request, CHECK_S)
    if not answer.fields.get("text"):
        raise NightmillError(
            f"{model.address} loads but writes nothing after {spec.smoke_prompt!r}; the champion stays"
        )
    return str(answer.fields["text"])
