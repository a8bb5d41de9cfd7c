"""Every optimizer against torch's own or the formula, on two ranks against one, and through a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from benchmarks.parity import Layout, batches_at, on_ranks, tiny_llama
from training.loop_spec import OptimizerSpec
from training.pretrain import checkpointing
from training.pretrain.mesh import Ranks, make_mesh
from training.pretrain.muon import Muon, orthogonalised
from training.pretrain.optimizer import depths_of, make_optimizer, parameter_groups, set_rate
from training.pretrain.parallel import parallelize
from training.pretrain.trainer import train_step

KINDS = get_args(OptimizerSpec.model_fields["kind"].annotation)


class Small(nn.Module):
    """An embedding, two matrices of uneven size, a norm, a bias, a head; 5 and 7 rows do not divide by two ranks."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Embedding(11, 5, dtype=dtype)
        self.up = nn.Linear(5, 7, dtype=dtype)
        self.norm = nn.LayerNorm(7, dtype=dtype)
        self.down = nn.Linear(7, 5, bias=False, dtype=dtype)
        self.head = nn.Linear(5, 11, bias=False, dtype=dtype)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.down(self.norm(self.up(self.embed(tokens)))))


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, steps: int) -> dict[str, torch.Tensor]:
    """The same rows on every rank, so that a sharded mean of gradients is the gradient of one rank."""
    for step in range(first, first + steps):
        tokens = torch.randint(0, 11, (4,), generator=torch.Generator().manual_seed(step))
        model(tokens).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {n: (p.full_tensor() if isinstance(p, DTensor) else p).detach() for n, p in model.named_parameters()}


def spec_of(kind: str, **fields: Any) -> OptimizerSpec:
    return OptimizerSpec.model_validate({"kind": kind, "learning_rate": 0.01, "weight_decay": 0.1} | fields)


def reference(kind: str, model: Small) -> list[torch.optim.Optimizer]:
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    if kind == "sgd":
        return [torch.optim.SGD(groups, lr=0.01, momentum=0.95)]
    if kind in ("adam", "adamw"):
        cls = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
        return [cls(groups, lr=0.01, betas=(0.9, 0.95))]
    if kind == "adafactor":
        return [torch.optim.Adafactor(groups, lr=0.01)]
    hidden = [model.up.weight, model.down.weight]
    rest = [
        {"params": [model.embed.weight, model.head.weight], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(hidden, lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=0.01, betas=(0.9, 0.95)),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_optimizer_gives_the_numbers_of_torch(kind: str) -> None:
    ours, theirs = Small(), Small()
    optimizer, references = make_optimizer(ours, spec_of(kind)), reference(kind, theirs)
    if isinstance(optimizer, Muon):
        optimizer.dtype = torch.bfloat16  # in which torch always iterates
    found = trained(ours, optimizer, 0, 8)
    for step in range(8):
        tokens = torch.randint(0, 11, (4,), generator=torch.Generator().manual_seed(step))
        theirs(tokens).square().mean().backward()
        for one in references:
            one.step()
            one.zero_grad()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(found[name], parameter.detach(), atol=1e-12, rtol=0)


def sharded(ranks: Ranks) -> Small:
    model = Small()
    mesh = init_device_mesh("cpu", (ranks.world_size,))
    fully_shard(model.up, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_optimizer_on_two_ranks_gives_the_numbers_of_one_also_after_a_resume(
    run_ranks, tmp_path: Path, kind: str
) -> None:
    """Three steps, a checkpoint, three more in a model and an optimizer made anew: six steps of one rank."""

    def before(ranks: Ranks) -> None:
        torch.set_default_dtype(torch.float64)
        model = sharded(ranks)
        optimizer = make_optimizer(model, spec_of(kind))
        trained(model, optimizer, 0, 3)
        state = checkpointing.train_state(model, optimizer)
        checkpointing.save_step(tmp_path, 3, state, {"identity": "a"}, ranks, keep=2)

    def after(ranks: Ranks) -> dict[str, torch.Tensor]:
        torch.set_default_dtype(torch.float64)
        model = sharded(ranks)
        optimizer = make_optimizer(model, spec_of(kind))
        checkpointing.load_newest(tmp_path, checkpointing.train_state(model, optimizer), "a", ranks)
        return trained(model, optimizer, 3, 3)

    run_ranks(before, 2)
    found = run_ranks(after, 2)
    alone = Small()
    expected = trained(alone, make_optimizer(alone, spec_of(kind)), 0, 6)
    for weights in found:
        for name, weight in expected.items():
            torch.testing.assert_close(weights[name], weight, atol=1e-12, rtol=0)


def test_orthogonalised_matrix_has_the_singular_vectors_and_singular_values_near_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((6, 9), (9, 6)):
        matrix = torch.randn(shape, dtype=torch.float64, generator=generator)
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        core = left.T @ orthogonalised(matrix) @ right.T
        assert torch.allclose(core, torch.diag(core.diagonal()), atol=1e-10)
        assert 0.6 < core.diagonal().min() <= core.diagonal().max() < 1.3


def test_embeddings_are_not_decayed_if_so_chosen() -> None:
    model = Small()
    kept = {
        id(p)
        for group in parameter_groups(model, spec_of("adamw", decay_embeddings=False))
        for p in group["params"]
        if group["weight_decay"] == 0
    }
    names = {name for name, p in model.named_parameters() if id(p) in kept}
    assert names == {"embed.weight", "up.bias", "norm.weight", "norm.bias"}


def test_layer_rate_decay_gives_each_block_a_share_of_the_one_above() -> None:
    """Two blocks and a decay of 0.5: head 1, blocks 1/2 and 1/4, embedding 1/8 of the rate."""
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = make_optimizer(model, spec_of("adamw", layer_rate_decay=0.5))
    set_rate(optimizer, 1.0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: rates[id(p)] for name, p in model.named_parameters()}
    assert found["lm_head.weight"] == found["model.norm.weight"] == 1.0
    assert found["model.layers.1.mlp.up_proj.weight"] == 0.5
    assert found["model.layers.0.input_layernorm.weight"] == 0.25
    assert found["model.embed_tokens.weight"] == 0.125


def test_depth_of_a_decoder_is_above_its_encoder() -> None:
    config = T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_decoder_layers=3, num_heads=2)
    depths, deepest = depths_of(T5ForConditionalGeneration(config))
    assert depths["encoder.block.1.layer.0.SelfAttention.q.weight"] == 2
    assert depths["decoder.block.2.layer.2.DenseReluDense.wo.weight"] == 5
    assert (depths["shared.weight"], depths["decoder.final_layer_norm.weight"], deepest) == (0, 6, 6)


@pytest.mark.parametrize("kind", ["muon", "adafactor"])
def test_optimizer_on_matrices_cut_twice_gives_the_numbers_of_one_rank(kind: str) -> None:
    """FSDP over tensor parallel: shards are strided, and matrices of both meshes and of one are mixed."""

    def weights(layout: Layout, ranks: Ranks) -> dict[str, torch.Tensor]:
        torch.set_default_dtype(torch.float64)
        mesh = make_mesh(ranks, layout.spec.degrees(ranks.world_size))
        model = parallelize(tiny_llama(tied=False), mesh, layout.spec)
        optimizer = make_optimizer(model.module, spec_of(kind))
        for step in range(3):
            train_step(model, optimizer, batches_at(step, mesh, layout), 0.01, 1.0)
        return checkpointing.gather_state(checkpointing.train_state(model.module, optimizer), mesh)

    both = Layout("both", 4, {"dp_shard": 2, "tp": 2})
    found = on_ranks(lambda ranks: weights(both, ranks), 4)[0]
    expected = on_ranks(lambda ranks: weights(Layout("one", 1, {}), ranks), 1)[0]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-12, rtol=1e-9)
