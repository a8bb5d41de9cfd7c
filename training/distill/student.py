"""The make-student job: a smaller model that reads the teacher's tokens.

Input: teacher (ModelFolder). Output: a ModelFolder with the teacher's tokenizer, which any training can begin from.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
)

from spark_jobs.errors import RequestError
from spark_jobs.requests import Outcome, Request
from training.distill.layers import uniform_map
from training.finetune.export import TOKENIZER
from training.inputs import input_uri
from training.manifests import ModelFolder
from training.model_folder import load_model, model_class, weight_bytes
from training.pretrain.model import model_config
from training.pretrain.optimizer import BLOCK
from training.processes import in_fresh_process
from training.student_spec import CutSpec, MadeStudentSpec


def run(request: Request) -> Outcome:
    """Raises: RequestError if the teacher cannot be cut so, or transformers knows no such architecture."""
    spec = MadeStudentSpec.model_validate(request.spec)
    teacher = ModelFolder.load(input_uri(request, "teacher"))
    data = Path(request.out) / "data"
    data.mkdir(parents=True, exist_ok=True)

    def write() -> dict[str, Any]:
        model = cut(teacher, spec.cut) if spec.cut is not None else new(teacher, spec)
        model.save_pretrained(data)
        return {"tensors": len(model.state_dict()), "parameters": sum(p.numel() for p in model.parameters())}

    written = in_fresh_process(write)
    for name in TOKENIZER:
        if (Path(teacher.folder()) / name).is_file():
            shutil.copyfile(Path(teacher.folder()) / name, data / name)
    fields = {
        "scheme": "dense",
        "num_parameters": written["parameters"],
        "weight_bytes": weight_bytes(data),
        "effective_bits": 32.0,
    }
    return Outcome(num_rows=written["tensors"], format="safetensors", fields=fields)


def cut(teacher: ModelFolder, spec: CutSpec) -> PreTrainedModel:
    """The teacher with some of its blocks, numbered anew. Raises: RequestError if it has fewer, or two stacks of them."""
    model = load_model(teacher)
    config = model.config
    if config.is_encoder_decoder:
        raise RequestError(
            f"student.cut: teacher {teacher.address} is an encoder-decoder, with two stacks of blocks; take student.new"
        )
    num_blocks = int(config.num_hidden_layers)
    if spec.num_layers > num_blocks:
        raise RequestError(
            f"student.cut.num_layers {spec.num_layers}: teacher {teacher.address} has {num_blocks} blocks"
        )
    kept = kept_blocks(spec, num_blocks)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[block] for block in kept]
    config.num_hidden_layers = len(kept)
    student: PreTrainedModel = type(model)(config)
    student.load_state_dict(renumbered(model.state_dict(), kept))
    return student


def kept_blocks(spec: CutSpec, num_blocks: int) -> list[int]:
    """From 0. Those spread are the ones that the student's layers are compared with."""
    if spec.blocks == "lowest":
        return list(range(spec.num_layers))
    return [block - 1 for _, block in uniform_map(spec.num_layers, num_blocks)]


def renumbered(tensors: dict[str, Tensor], kept: list[int]) -> dict[str, Tensor]:
    """Tensors of the kept blocks under their new numbers, and all that are in no block."""
    places = {block: place for place, block in enumerate(kept)}
    chosen: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        found = BLOCK.search(name)
        if found is None:
            chosen[name] = tensor
        elif int(found[2]) in places:
            chosen[f"{name[: found.start(2)]}{places[int(found[2])]}{name[found.end(2) :]}"] = tensor
    return chosen


@dataclass(frozen=True)
class TokenIds:
    """What an architecture's configuration says about a vocabulary."""

    vocab_size: int
    pad_id: int
    bos_id: int
    eos_id: int


def new(teacher: ModelFolder, spec: MadeStudentSpec) -> PreTrainedModel:
    """With a head for tokens where the teacher has one, else none; a task puts its own."""
    assert spec.new is not None
    tokenizer = AutoTokenizer.from_pretrained(teacher.folder())
    theirs = AutoConfig.from_pretrained(teacher.folder())
    known = [number for number in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if number is not None]
    first = [n for n in (tokenizer.bos_token_id, tokenizer.cls_token_id, 0) if n is not None]
    last = [n for n in (tokenizer.eos_token_id, tokenizer.sep_token_id, 0) if n is not None]
    ids = TokenIds(theirs.vocab_size, known[0], first[0], last[0])
    config = model_config(spec.new, ids, getattr(theirs, "max_position_embeddings", 512))
    torch.manual_seed(spec.seed)
    kind = model_class(Path(teacher.folder()))
    for auto in (AutoModelForCausalLM, AutoModelForMaskedLM):
        if kind in auto._model_mapping.values() and type(config) in auto._model_mapping:
            made: PreTrainedModel = auto.from_config(config)
            return made
    backbone: PreTrainedModel = AutoModel.from_config(config)
    return backbone
