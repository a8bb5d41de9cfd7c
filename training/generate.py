"""The generate job: load a model folder the way a user would and let it write. The smoke test before a release."""

from __future__ import annotations

import torch
from transformers import AutoTokenizer

from spark_jobs.errors import QualityError
from spark_jobs.requests import Outcome, Request, send
from training.inputs import input_uri
from training.manifests import ModelFolder
from training.model_folder import load_model
from training.processes import num_threads
from training.specs import GenerateSpec


def run(request: Request) -> Outcome:
    """Input: model. Greedy, so that the text is a fact; fields: prompt, text, num_new_tokens.

    Raises: QualityError if a logit is not finite or nothing was generated.
    """
    spec = GenerateSpec.model_validate(request.spec)
    handle = ModelFolder.load(input_uri(request, "model"))
    torch.set_num_threads(num_threads())
    model = load_model(handle)
    tokenizer = AutoTokenizer.from_pretrained(handle.folder())
    ids = [model.config.bos_token_id, *tokenizer.encode(spec.prompt, add_special_tokens=False)]
    tokens_BT = torch.tensor([ids])
    with torch.no_grad():
        if not torch.isfinite(model(input_ids=tokens_BT).logits).all():
            raise QualityError(f"model {handle.address} gives logits that are not finite; keep the champion")
        output_BT = model.generate(
            tokens_BT, attention_mask=torch.ones_like(tokens_BT), max_new_tokens=spec.max_new_tokens, do_sample=False
        )
    new = output_BT[0, len(ids) :]
    if len(new) == 0:
        raise QualityError(f"model {handle.address} generated nothing after {spec.prompt!r}; keep the champion")
    text = tokenizer.decode(new, skip_special_tokens=True)
    fields = {"prompt": spec.prompt, "text": text, "num_new_tokens": len(new)}
    send("event", {"job": "generate"} | fields)
    return Outcome(num_rows=len(new), format="text", fields=fields)
