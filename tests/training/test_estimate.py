"""The estimate of `--dry-run` against what a training really keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from spark_jobs.manifests import TokenizerFiles
from training.pretrain.estimate import estimate
from training.pretrain.loss import sum_cross_entropy
from training.pretrain.model import model_config, new_model
from training.pretrain.optimizer import make_optimizer, optimizer_state
from training.specs import TrainSpec

SEQ_LEN, VOCAB = 128, 500
LLAMA_8B = {
    "hidden_size": 4096,
    "num_layers": 32,
    "num_heads": 32,
    "num_kv_heads": 8,
    "intermediate_size": 14336,
    "tie_embeddings": False,
}


def really_kept(spec: TrainSpec) -> int:
    """Bytes of different storages that autograd keeps of one micro-batch on the CPU, parameters not counted."""
    tokenizer: Any = TokenizerFiles.model_construct(vocab_size=VOCAB, bos_id=1, eos_id=2, pad_id=0)
    model = new_model(model_config(spec.model, tokenizer, SEQ_LEN), 0)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    tokens_BT = torch.arange(2 * SEQ_LEN).reshape(2, SEQ_LEN) % VOCAB
    mask = torch.ones((2, 1, SEQ_LEN, SEQ_LEN), dtype=torch.bool).tril()
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(input_ids=tokens_BT, attention_mask=mask, position_ids=tokens_BT % SEQ_LEN).logits
        loss = sum_cross_entropy(logits, tokens_BT)
    assert loss.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_activations_are_what_autograd_keeps_on_the_cpu(architecture: str) -> None:
    """Within a tenth: the attention kernel of the CPU keeps a number a row and head more, and a copy less."""
    fields = {"hidden_size": 64, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "architecture": architecture}
    spec = TrainSpec.model_validate({"model": fields, "micro_batch": 2, "ranks": 1})
    assert estimate(spec, VOCAB, SEQ_LEN)["memory"]["activations"] == pytest.approx(really_kept(spec), rel=0.1)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw", "muon", "adafactor"])
def test_memory_of_weights_and_optimizer_is_that_of_the_tensors(kind: str) -> None:
    spec = TrainSpec.model_validate({"optimizer": {"kind": kind}, "ema": {"decay": 0.9}, "ranks": 1})
    tokenizer: Any = TokenizerFiles.model_construct(vocab_size=VOCAB, bos_id=1, eos_id=2, pad_id=0)
    model = new_model(model_config(spec.model, tokenizer, SEQ_LEN), 0)
    optimizer = make_optimizer(model, spec.optimizer)
    weights = sum(p.nbytes for p in model.parameters())
    states = [optimizer_state(optimizer, p).values() for p in model.parameters()]
    moments = sum(value.nbytes for state in states for value in state if value.ndim)
    memory = estimate(spec, VOCAB, SEQ_LEN)["memory"]
    assert (memory["weights"], memory["gradients"], memory["average"]) == (2 * weights, weights, weights)
    assert memory["optimizer"] == pytest.approx(moments, abs=0.02 * weights)


def test_memory_of_replicas_that_train_on_their_own_is_that_of_whole_models() -> None:
    """And the outer weights, with momentum, beside them."""
    alone = estimate(TrainSpec(ranks=1), VOCAB, SEQ_LEN)
    fields = {"ranks": 4, "parallel": {"dp_replicate": 4}, "local": {"outer": "nesterov"}, "micro_batch": 1}
    memory = estimate(TrainSpec.model_validate(fields), VOCAB, SEQ_LEN)["memory"]
    assert memory["outer weights"] == 8 * alone["parameters"]
    assert all(memory[name] == alone["memory"][name] for name in ("weights", "gradients", "optimizer"))


def test_chunks_take_the_logits_out_of_the_estimate() -> None:
    whole = estimate(TrainSpec(ranks=1), 50_000, SEQ_LEN)["memory"]["activations"]
    chunked = estimate(TrainSpec.model_validate({"loss": {"chunk_tokens": 64}, "ranks": 1}), 50_000, SEQ_LEN)
    assert chunked["memory"]["activations"] < whole / 2


def test_estimate_of_8_billion_parameters_on_eight_ranks() -> None:
    """Weights, gradients and moments are sharded: 16 bytes a parameter over 8 ranks, and two blocks and the outer layers
    gathered in bf16. Full checkpointing keeps 32 inputs of 64 MB and one block. No gigabyte is allocated for it."""
    fields = {
        "model": LLAMA_8B, "ranks": 8, "precision": "bf16", "micro_batch": 1, "sequences_per_step": 64, "num_steps": 10,
        "parallel": {"activation_checkpointing": "full"},
    }  # fmt: skip
    told = estimate(TrainSpec.model_validate(fields), 128256, 8192)
    memory = told["memory"]
    assert told["parameters"] == 8_030_261_248
    assert told["flops"] == pytest.approx(5.79e10 * 10 * 64 * 8192, rel=1e-3)
    assert memory["gradients"] == told["parameters"] * 4 // 8
    assert memory["optimizer"] == told["parameters"] * 8 // 8
    block = 218_112_000
    gathered = 2 * (told["parameters"] - 32 * block + 2 * block)
    assert memory["weights"] == told["parameters"] * 4 // 8 + gathered
    assert 32 * 8192 * 4096 * 2 < memory["activations"] < 32 * 8192 * 4096 * 2 + 4e9
