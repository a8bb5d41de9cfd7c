"""Checkpoint -> a Hugging Face folder that plain `from_pretrained` loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from spark_jobs.errors import DataError
from spark_jobs.manifests import TokenizerFiles
from spark_jobs.requests import Outcome, Request
from training.inputs import input_uri
from training.manifests import Checkpoint
from training.model_folder import copy_tokenizer, model_class, weight_bytes
from training.pretrain.model import AUTO_CLASSES, load_weights
from training.processes import in_fresh_process

PROBE_TOKENS = 16  # tokens of the fixed input on which two models are compared


def run(request: Request) -> Outcome:
    """Inputs: checkpoint, tokenizer. The folder is reloaded in a fresh process before it counts as exported.

    What is exported is the average of weights where the checkpoint says so.
    """
    checkpoint = Checkpoint.load(input_uri(request, "checkpoint"))
    tokenizer = TokenizerFiles.load(input_uri(request, "tokenizer"))
    data, scratch = Path(request.out) / "data", Path(request.out) / "scratch"
    data.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(exist_ok=True)

    def write() -> dict[str, Any]:
        return write_folder(checkpoint, tokenizer, data, scratch / "logits.pt")

    def verify() -> dict[str, Any]:
        return verify_folder(data, scratch / "logits.pt")

    written = in_fresh_process(write)
    difference = in_fresh_process(verify)["max_logit_difference"]
    fields = {
        "scheme": "dense",
        "num_parameters": written["num_parameters"],
        "weight_bytes": weight_bytes(data),
        "effective_bits": 32.0,
        "max_logit_difference": difference,
    }
    return Outcome(num_rows=written["num_tensors"], format="safetensors", fields=fields)


def write_folder(checkpoint: Checkpoint, tokenizer: TokenizerFiles, data: Path, logits: Path) -> dict[str, Any]:
    source = Path(checkpoint.folder())
    config = AutoConfig.from_pretrained(source)
    objective = str(checkpoint.spec.get("objective", "causal_lm"))
    model = AUTO_CLASSES[objective].from_config(config).eval()
    load_weights(model, source / f"{checkpoint.exported}.safetensors")
    config.use_cache = True  # training had no use for it
    if model.can_generate():
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
            decoder_start_token_id=tokenizer.bos_id if config.is_encoder_decoder else None,
        )  # fmt: skip
    model.save_pretrained(data)
    copy_tokenizer(Path(tokenizer.folder()), data)
    torch.save(probe_logits(model), logits)
    with safe_open(data / "model.safetensors", "pt") as file:
        names = list(file.keys())
    return {"num_tensors": len(names), "num_parameters": sum(p.numel() for p in model.parameters())}


def verify_folder(data: Path, logits: Path) -> dict[str, Any]:
    """Reload the way a stranger would and compare.

    Raises: DataError if the tokenizer's vocabulary, the tie of the head, or a logit differs.
    """
    model = model_class(data).from_pretrained(data).eval()
    tokenizer = AutoTokenizer.from_pretrained(data)
    if len(tokenizer) != model.config.vocab_size:
        raise DataError(f"{data}: tokenizer has {len(tokenizer)} tokens, model {model.config.vocab_size}")
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    if tied != model.config.tie_word_embeddings:
        raise DataError(f"{data}: config says tie_word_embeddings={model.config.tie_word_embeddings}, found {tied}")
    difference = float((probe_logits(model) - torch.load(logits, weights_only=True)).abs().max())
    if difference != 0.0:
        raise DataError(f"{data}: logits after reload differ by {difference:g} from those before, 0 wanted")
    return {"max_logit_difference": difference}


def probe_logits(model: torch.nn.Module) -> torch.Tensor:
    """Logits (1, PROBE_TOKENS, V) fp32 on token ids spread over the vocabulary."""
    vocab_size: int = model.config.vocab_size  # type: ignore[union-attr, assignment]
    tokens_BT = (torch.arange(PROBE_TOKENS) * 7919 % vocab_size)[None]
    inputs = {"input_ids": tokens_BT}
    if model.config.is_encoder_decoder:  # type: ignore[union-attr]
        inputs["decoder_input_ids"] = tokens_BT.flip(1)
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs).logits
    return logits.float()
