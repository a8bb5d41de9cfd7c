"""A pruned model trained on with keep_zeros: its zeros on real ranks, sharded or not, averaged, resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from training.compress.masks import magnitude_mask, valid_groups
from training.compress_spec import PruneSpec
from training.finetune_spec import FinetuneSpec
from training.pretrain import checkpointing
from training.pretrain.kept_zeros import keep_zeros
from training.pretrain.local_training import ReplicaMesh
from training.pretrain.mesh import Ranks, make_mesh
from training.pretrain.model import model_config, new_model
from training.pretrain.objectives import Examples, PackedText
from training.pretrain.parallel import parallelize
from training.pretrain.sequence_order import corpus_row_groups
from training.pretrain.token_shards import Sequences
from training.pretrain.trainer import plan_of, train_rank
from training.specs import TrainSpec

SPEC: dict[str, Any] = {
    "model": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "intermediate_size": 24},
    "num_steps": 4,
    "sequences_per_step": 4,
    "micro_batch": 2,
    "ranks": 2,
    "checkpoint_every": 2,
    "keep_zeros": True,
}
Train = Callable[..., Path]


def pruned_model(world: Any, spec: TrainSpec) -> nn.Module:
    """2:4 in every linear layer of the blocks."""
    model: nn.Module = new_model(model_config(spec.model, world.tokenizer, world.corpus.seq_len), 0, spec.objective)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".layers." in name:
            module.weight.data.masked_fill_(magnitude_mask(module.weight.data, PruneSpec(pattern="2:4")), 0.0)
    return model


def run(world: Any, ranks: Ranks, out: Path, fields: dict[str, Any]) -> str:
    spec = TrainSpec.model_validate(SPEC | fields)
    mesh = make_mesh(ranks, spec.parallel.degrees(ranks.world_size))
    model = pruned_model(world, spec)
    placed = mesh if spec.local is None else ReplicaMesh.of(mesh)
    shared = parallelize(model, placed, spec.parallel, spec.precision)
    if ranks.is_first:
        for name in ("data", "scratch"):
            (out / name).mkdir(parents=True, exist_ok=True)
    sequences = Sequences(corpus_row_groups(world.corpus), world.corpus.seq_len, 0, 0.5, spec.seed)
    material = PackedText(sequences, Examples(spec, mesh, world.tokenizer), [])
    return json.dumps(train_rank(shared, material, spec, plan_of(spec, False, "a"), out))


@pytest.fixture
def train(world: Any, run_ranks: Any, tmp_path: Path) -> Train:
    """Train the pruned model on two ranks into a folder of the test, or on in it; returns the folder."""

    def start(name: str, **fields: Any) -> Path:
        run_ranks(lambda ranks: run(world, ranks, tmp_path / name, fields), 2)
        return tmp_path / name

    return start


def matrices(out: Path, part: str = "model") -> dict[str, Tensor]:
    weights = load_file(out / "data" / f"{part}.safetensors")
    return {name: tensor for name, tensor in weights.items() if ".layers." in name and tensor.ndim == 2}


def groups_of(weights: dict[str, Tensor]) -> float:
    assert len(weights) == 2 * 7
    return min(valid_groups(tensor, "2:4") for tensor in weights.values())


@pytest.mark.parametrize(
    "fields",
    [
        {"parallel": {"strategy": "ddp"}},
        {"parallel": {"dp_shard": 2}, "optimizer": {"kind": "muon"}},
        pytest.param({"parallel": {"tp": 2}}, marks=pytest.mark.slow),
        pytest.param({"parallel": {"pp": 2}, "micro_batch": 1}, marks=pytest.mark.slow),
        {"parallel": {"dp_replicate": 2}, "local": {"every": 2, "outer": "nesterov"}},
    ],
    ids=["ddp", "shards and muon", "tensor parallel", "pipeline", "replicas"],
)
def test_zeros_stay_through_training_on_two_ranks(train: Train, world: Any, fields: dict[str, Any]) -> None:
    out = train("out", **fields)
    found = matrices(out)
    before = dict(pruned_model(world, TrainSpec.model_validate(SPEC)).named_parameters())
    assert groups_of(found) == 1.0
    for name, tensor in found.items():
        assert torch.equal(tensor == 0, before[name] == 0), name
        assert not torch.equal(tensor, before[name].detach()), name


def test_embeddings_and_vectors_that_are_zero_may_change() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(3, 4), "layer": nn.Linear(4, 4)})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model["layer"].weight[:, 1] = 3.0
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    keep_zeros(model, optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert (model["table"].weight == -1).all()
    assert (model["layer"].bias == -1).all()
    assert model["layer"].weight.tolist() == [[0, 2, 0, 0]] * 4


def test_zeros_are_lost_where_nobody_asks_for_them(train: Train) -> None:
    assert groups_of(matrices(train("out", keep_zeros=False))) < 0.1


def test_average_has_the_zeros_and_a_resumed_run_the_same_bytes(train: Train) -> None:
    fields = {"ema": {"decay": 0.9}}
    out = train("out", **fields)
    files = [out / "data" / name for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors")]
    whole = [path.read_bytes() for path in files]
    assert groups_of(matrices(out, "ema")) == 1.0
    steps = checkpointing.complete_steps(out / "scratch" / "checkpoints")
    assert steps == [2, 4]
    shutil.rmtree(out / "scratch" / "checkpoints" / "step-00000004")
    shutil.rmtree(out / "data")
    train("out", **fields)
    assert [path.read_bytes() for path in files] == whole


def test_field_is_part_of_a_key_only_where_it_is_set() -> None:
    assert "keep_zeros" not in TrainSpec().model_dump(mode="json")
    assert TrainSpec(keep_zeros=True).model_dump(mode="json")["keep_zeros"] is True


def test_small_parts_beside_pruned_weights_are_refused() -> None:
    assert FinetuneSpec.model_validate({"keep_zeros": True}).keep_zeros
    with pytest.raises(ValidationError, match=r"keep_zeros with method\.kind lora.*choose full"):
        FinetuneSpec.model_validate({"keep_zeros": True, "method": {"kind": "lora"}})
