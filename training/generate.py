"""The generate job: load a model folder the way a user would and let it write. The smoke test before a release."""

from __future__ import annotations

import torch
from transformers import AutoTokenizer, PreTrainedModel

from spark_jobs.errors import QualityError
from spark_jobs.requests import Outcome, Request, send
from training.export import probe_logits
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
    if not torch.isfinite(probe_logits(model)).all():
        raise QualityError(f"model {handle.address} gives logits that are not finite; keep the champion")
    new = continued(model, tokens_BT, spec.max_new_tokens)
    if len(new) == 0:
        raise QualityError(f"model {handle.address} generated nothing after {spec.prompt!r}; keep the champion")
    text = tokenizer.decode(new, skip_special_tokens=True)
    fields = {"prompt": spec.prompt, "text": text, "num_new_tokens": len(new)}
    send("event", {"job": "generate"} | fields)
    return Outcome(num_rows=len(new), format="text", fields=fields)


def continued(model: PreTrainedModel, tokens_BT: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
    """What follows the one row of `tokens_BT`, greedily. A masked model fills in one hidden token after another."""
    config = model.config
    with torch.no_grad():
        if model.can_generate():
            output_BT: torch.Tensor = model.generate(
                tokens_BT, attention_mask=torch.ones_like(tokens_BT), max_new_tokens=max_new_tokens, do_sample=False
            )
            return output_BT[0, 1 if config.is_encoder_decoder else tokens_BT.shape[1] :]
        start = tokens_BT.shape[1]
        while tokens_BT.shape[1] < min(start + max_new_tokens, config.max_position_embeddings):
            hidden_BT = torch.cat([tokens_BT, torch.full((1, 1), config.pad_token_id)], dim=1)
            seen_BT = torch.ones_like(hidden_BT)  # the mask has padding's id and is no padding
            following = model(input_ids=hidden_BT, attention_mask=seen_BT).logits[:, -1:].argmax(-1)
            tokens_BT = torch.cat([tokens_BT, following], dim=1)
            if int(following) == config.eos_token_id:
                break
    return tokens_BT[0, start:]
