"""The compress job: one recipe, or one stage of it, on one model; the folder is verified by a reload in a fresh process."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spark_jobs.errors import DataError, RequestError
from spark_jobs.requests import Outcome, Request
from training.compress import calibration, files
from training.compress.already_quantized import refuse_quantized, stored_format
from training.compress.compressed import Compressed
from training.compress.layer_report import LayerReport
from training.compress.model_card import Lineage, write_card
from training.compress.recipe import quantize, shrink_and_prune
from training.compress.report_table import write_reports
from training.compress.verify import Verified, verify_folder
from training.compress_spec import CompressStepSpec, RecipeSpec
from training.inputs import input_uri
from training.manifests import Calibration, ModelFolder
from training.model_folder import load_model, model_class
from training.processes import in_fresh_process, num_threads


def run(request: Request) -> Outcome:
    """Inputs: model (dense); calibration, where the recipe measures layers.

    Raises: RequestError if the model holds codes already, or the recipe does not fit it; DataError if the folder is not what
    was in memory, or not smaller than the model.
    """
    spec = CompressStepSpec.model_validate(request.spec)
    recipe = stage_of(spec)
    model = ModelFolder.load(input_uri(request, "model"))
    refuse_quantized(Path(model.folder()), model.address)
    refuse_other_objectives(model)
    texts = Calibration.load(request.inputs["calibration"]) if "calibration" in request.inputs else None
    data, scratch = Path(request.out) / "data", Path(request.out) / "scratch"
    data.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(exist_ok=True)

    def write() -> dict[str, Any]:
        torch.set_num_threads(num_threads())
        dense, sequences_NT = load_model(model), calibration.load(texts) if texts else []
        check_vocabulary(dense, model, sequences_NT)
        compressed = follow(dense, sequences_NT, spec, scratch / "blocks")
        written = files.write(data, Path(model.folder()), compressed, recipe, scratch)
        write_reports(data, compressed.reports)
        return {"written": asdict(written), "reports": [asdict(report) for report in compressed.reports]}

    def verify() -> dict[str, Any]:
        torch.set_num_threads(num_threads())
        return asdict(verify_folder(data, scratch))

    answer = in_fresh_process(write)
    written, verified = files.Written(**answer["written"]), Verified(**in_fresh_process(verify))
    if recipe.quantize is not None and recipe.export != "safetensors" and written.weight_bytes >= model.weight_bytes:
        raise DataError(
            f"recipe {recipe.name}: its weights take {written.weight_bytes} bytes, those of {model.address} "
            f"{model.weight_bytes}: nothing gained; set fewer quantize.bits or a larger group_size"
        )
    reports = [LayerReport(**row) for row in answer["reports"]]
    write_card(data, recipe, lineage_of(model, texts), written, verified, reports)
    fields = {
        "scheme": recipe.name,
        "file_format": stored_format(data),
        "num_parameters": written.num_parameters,
        "weight_bytes": written.weight_bytes,
        "effective_bits": written.effective_bits,
        "max_logit_difference": verified.max_logit_difference,
    }
    return Outcome(num_rows=written.num_tensors, format="safetensors", fields=fields)


def stage_of(spec: CompressStepSpec) -> RecipeSpec:
    """The recipe as far as the step follows it: a thinned model is written as numbers."""
    if spec.stage != "thin":
        return spec.recipe
    return spec.recipe.model_copy(update={"quantize": None, "export": "safetensors"})


def follow(model: PreTrainedModel, sequences_NT: list[Tensor], spec: CompressStepSpec, scratch: Path) -> Compressed:
    """thin: shrink and prune. finish: quantise what was recovered. all: both, one after the other."""
    reports: list[LayerReport] = []
    if spec.stage != "finish":
        model, reports = shrink_and_prune(model, sequences_NT, spec.recipe, scratch)
    if spec.stage == "thin":
        return Compressed(model, {}, reports)
    return quantize(model, sequences_NT, spec.recipe, scratch, reports)


def refuse_other_objectives(model: ModelFolder) -> None:
    """Raises: RequestError unless the model says the next token: calibration and verification show it texts from the left."""
    name = model_class(Path(model.folder())).__name__
    if not name.endswith(("ForCausalLM", "LMHeadModel")):
        raise RequestError(
            f"model {model.address} ({name}) is no causal language model, which is what is compressed: set compress.recipes to []"
        )


def check_vocabulary(model: PreTrainedModel, folder: ModelFolder, sequences_NT: list[Tensor]) -> None:
    """Raises: RequestError if a sequence holds an id that the model has no embedding for."""
    highest = max((int(tokens_T.max()) for tokens_T in sequences_NT), default=0)
    if highest >= model.config.vocab_size:
        raise RequestError(
            f"model {folder.address} has {model.config.vocab_size} token ids, the calibration sequences use {highest}: "
            "calibrate with the tokenizer of the model"
        )


def lineage_of(model: ModelFolder, texts: Calibration | None) -> Lineage:
    if texts is None:
        return Lineage(model.address, model.weight_bytes)
    return Lineage(
        model.address, model.weight_bytes, texts.address, texts.corpus, texts.num_sequences, texts.num_tokens
    )
