"""What a training would need, told before it starts: parameters, memory of a rank by kind, FLOPs. Nothing is allocated.

The model is built on torch's meta device, which has shapes and no numbers, and one micro-batch is sent through it to
see what autograd would keep. So it holds for any architecture, and takes seconds for 8 billion parameters.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.fx.experimental import _config as fx_config

from spark_jobs.manifests import TokenizerFiles
from training.parallel_spec import Degrees
from training.pretrain.chunked_loss import install_loss_head
from training.pretrain.flops import matmul_parameters, memory_bytes, model_flops_per_token, peak_flops
from training.pretrain.loss import sum_cross_entropy
from training.pretrain.mesh import Mesh, Ranks
from training.pretrain.model import model_config, new_model
from training.pretrain.objectives import Examples, Inputs
from training.pretrain.optimizer import parameter_groups
from training.pretrain.parallel import HALF, RESHARD_FROM, blocks_of
from training.pretrain.token_shards import Batch
from training.specs import TrainSpec

USUAL_MFU = 0.4  # of a well-tuned run on the devices of the table; for the hours only


def estimate(spec: TrainSpec, vocab_size: int, seq_len: int, device_name: str = "H100") -> dict[str, Any]:
    """Numbers of one rank in bytes, of the whole training in FLOPs.

    Raises: RequestError for a model that cannot be trained, as training itself would.
    """
    degrees = spec.parallel.degrees(spec.ranks)
    construct: Any = TokenizerFiles.model_construct  # there are no files yet
    tokenizer: TokenizerFiles = construct(vocab_size=vocab_size, bos_id=1, eos_id=2, pad_id=0)
    with torch.device("meta"):
        model = new_model(model_config(spec.model, tokenizer, seq_len), spec.seed, spec.objective)
    num_parameters = sum(p.numel() for p in model.parameters())
    flops = model_flops_per_token(model, seq_len)
    tokens = spec.num_steps * spec.sequences_per_step * seq_len
    memory = memory_bytes(num_parameters, _memory_settings(model, spec, degrees, num_parameters))
    memory["activations"] = _activation_bytes(model, spec, degrees, tokenizer, seq_len)
    if spec.local is not None:
        memory["outer weights"] = 4 * num_parameters * (2 if spec.local.outer == "nesterov" else 1)
    peak = peak_flops(device_name)
    return {
        "parameters": num_parameters,
        "matmul_parameters": matmul_parameters(model),
        "tokens": tokens,
        "flops_per_token": flops,
        "flops": flops * tokens,
        "memory": memory | {"total": sum(memory.values())},
        "device": device_name,
        "device_hours": None if peak is None else flops * tokens / (peak * USUAL_MFU) / 3600,
    }


def _memory_settings(model: nn.Module, spec: TrainSpec, degrees: Degrees, num_parameters: int) -> dict[str, Any]:
    hidden = [g["params"] for g in parameter_groups(model, spec.optimizer) if g.get("orthogonal")]
    whole = spec.parallel.strategy == "ddp"
    cut = degrees.tp * degrees.pp
    return {
        "shards": cut * (1 if whole else degrees.fsdp),
        "optimizer": spec.optimizer.kind,
        "hidden_parameters": sum(p.numel() for group in hidden for p in group),  # type: ignore[attr-defined]
        "ema": spec.ema.decay > 0,
        "gathered": 0 if whole else _gathered_parameters(model, num_parameters, degrees) // cut,
        "gathered_bytes": 4 if spec.precision == "fp32" else 2,
    }


def _gathered_parameters(model: nn.Module, num_parameters: int, degrees: Degrees) -> int:
    """Weights that are whole at once: all of a small model or of a pipeline's stage; else what is in no block, and two
    blocks (one in use, one on its way)."""
    if num_parameters < RESHARD_FROM or degrees.pp > 1:
        return num_parameters
    blocks = [sum(p.numel() for p in block.parameters()) for block in blocks_of(model)]
    return num_parameters - sum(blocks) + 2 * max(blocks)


def _activation_bytes(model: Any, spec: TrainSpec, degrees: Degrees, tokenizer: TokenizerFiles, seq_len: int) -> int:
    """Bytes that autograd keeps of one micro-batch, parameters not counted.

    full checkpointing keeps the input of each block, and computes one block at a time again. selective lies between.
    """
    rows = (
        spec.micro_batch
        if degrees.pp == 1
        else spec.sequences_per_step // degrees.batch // spec.parallel.pp_micro_batches
    )
    rows = min(rows, spec.sequences_per_step // degrees.batch)
    blocks = len(blocks_of(model))
    head = install_loss_head(model, spec.loss) if spec.loss.chunk_tokens else None
    if spec.precision != "fp32":
        model = model.to(HALF[spec.precision])
    mesh: Any = Mesh(Ranks(0, 1, torch.device("meta")), Degrees(1, 1, 1, 1, 1), None, None)  # type: ignore[arg-type]
    inputs = Examples(spec, mesh, tokenizer).of(_one_document_a_row(rows, seq_len), range(rows))
    kept = _saved_bytes(model, inputs, functools.partial(sum_cross_entropy, spec=spec.loss), head)
    if spec.parallel.activation_checkpointing == "full":
        each = rows * seq_len * model.config.hidden_size * (4 if spec.precision == "fp32" else 2)
        kept = blocks * each + kept // max(1, blocks)
    return kept // (degrees.tp * degrees.cp)


def _one_document_a_row(rows: int, seq_len: int) -> Batch:
    places = torch.arange(seq_len).expand(rows, seq_len).contiguous()
    return Batch(places % 3, places, places, torch.zeros_like(places))


class _Kept:
    """A tensor that autograd keeps; alive as long as it does."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _saved_bytes(model: nn.Module, inputs: Inputs, loss: Any, head: Any) -> int:
    """Bytes kept between forward and backward. Probabilities of attention are left out: the meta device knows only the
    plain kernel, which keeps them; those of CUDA and CPU compute them again."""
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Kept:
        packed = _Kept(tensor)
        kept.add(packed)
        return packed

    meta = torch.device("meta")
    targets = inputs.targets_BS.to(meta)
    config: Any = fx_config
    every_target = config.patch(meta_nonzero_assume_all_nonzero=True)  # a meta tensor does not know how many
    with saved_tensors_hooks(pack, lambda packed: packed.tensor), every_target:
        if head is not None:
            head.targets_BT = targets
        answer = model(**inputs.model_inputs(meta)).logits
        total = loss(answer, targets) if head is None else answer
    seq_len = targets.shape[1]
    storages = {
        packed.tensor.untyped_storage()._cdata: packed.tensor.untyped_storage().nbytes()
        for packed in kept
        if not _are_probabilities(packed.tensor, seq_len)
    }
    assert total.ndim == 0
    return sum(size for storage, size in storages.items() if storage not in parameters)


def _are_probabilities(tensor: Tensor, seq_len: int) -> bool:
    """(B, H, T, T) or (B H, T, T); a mask (B, 1, T, T) is not."""
    square = tensor.ndim >= 3 and tuple(tensor.shape[-2:]) == (seq_len, seq_len)
    return square and (tensor.ndim == 3 or tensor.shape[1] > 1)
