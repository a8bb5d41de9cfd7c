"""Every way to share the work against one rank, in float64: the same losses, norms and weights, or exit code 1.

make parity        python -m benchmarks.parity [--steps 30] [--only FSDP2] [--device cuda]

A tiny Llama with grouped-query attention, tied and untied; sequences of several documents, padded, so that ranks have
unequal numbers of targets; AdamW with clipping. Ranks are forked, and talk by gloo, or by NCCL on a GPU each. The table
goes into README.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from training.loop_spec import OptimizerSpec
from training.parallel_spec import ParallelSpec
from training.pretrain import checkpointing
from training.pretrain.mesh import Mesh, Ranks, make_mesh
from training.pretrain.micro_batch import MicroBatch, micro_batch_of
from training.pretrain.optimizer import make_optimizer
from training.pretrain.parallel import RESHARD_FROM, parallelize
from training.pretrain.token_shards import make_batch
from training.pretrain.trainer import rank_positions, train_step

SEQ_LEN, VOCAB_SIZE, SEQUENCES = 32, 64, 8  # SEQUENCES: of a step
RATE, CLIP_NORM = 1e-2, 0.5
TOLERANCE = 1e-10
README = Path(__file__).parent.parent / "README.md"
MARKERS = ("<!-- parity -->", "<!-- /parity -->")


@dataclass(frozen=True)
class Layout:
    name: str
    ranks: int
    parallel: dict[str, Any] = field(default_factory=dict)
    micro_batch: int = SEQUENCES

    @property
    def spec(self) -> ParallelSpec:
        return ParallelSpec.model_validate(self.parallel)


ONE_RANK = Layout("one rank", 1)
LAYOUTS = (
    Layout("accumulation of 4 micro-batches", 1, {}, 2),
    Layout("accumulation with a short tail", 1, {}, 3),
    Layout("DDP", 4, {"strategy": "ddp"}, 1),
    Layout("FSDP2", 4, {}, 1),
    Layout("HSDP", 4, {"dp_replicate": 2}),
    Layout("TP", 2, {"tp": 2}, 4),
    Layout("PP, GPipe", 2, {"pp": 2, "schedule": "gpipe"}),
    Layout("PP, 1F1B", 4, {"pp": 4, "schedule": "1f1b"}),
    Layout("PP, interleaved 1F1B", 2, {"pp": 2, "schedule": "interleaved1f1b"}),
    Layout("CP", 4, {"cp": 4}, 4),
    Layout("FSDP2 x TP", 4, {"dp_shard": 2, "tp": 2}, 2),
    Layout("FSDP2 x PP", 4, {"dp_shard": 2, "pp": 2}),
    Layout("FSDP2 x CP", 4, {"dp_shard": 2, "cp": 2}, 2),
    Layout("DDP x CP", 4, {"strategy": "ddp", "dp_shard": 2, "cp": 2}, 2),
    Layout("TP x PP", 4, {"tp": 2, "pp": 2}),
    Layout("TP x CP", 4, {"tp": 2, "cp": 2}),
    Layout("CP x PP", 4, {"cp": 2, "pp": 2, "schedule": "interleaved1f1b"}),
)


class ExactNorm(LlamaRMSNorm):  # type: ignore[misc]
    """RMSNorm in the dtype of its input. That of `transformers` goes through fp32, where a difference of 1e-16 may round
    to one of 1e-7 and hide what this is to show."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        variance = hidden_states.square().mean(-1, keepdim=True)
        normed: Tensor = self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))
        return normed


def tiny_llama(tied: bool) -> LlamaForCausalLM:
    """float64; the same weights wherever it is called."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=SEQ_LEN, tie_word_embeddings=tied, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, attn_implementation="sdpa", use_cache=False, initializer_range=0.2,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):
            module.__class__ = ExactNorm
    return model


def sequence_at(position: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and document lengths: up to five documents, up to three quarters of padding."""
    rng = np.random.default_rng(position)
    length = int(rng.integers(SEQ_LEN // 4, SEQ_LEN + 1))
    cuts = np.unique(rng.integers(1, length, size=int(rng.integers(0, 5))))
    lengths = np.diff(np.concatenate([[0], cuts, [length]]))
    return rng.integers(3, VOCAB_SIZE, size=length), lengths


def batches_at(step: int, mesh: Mesh, layout: Layout) -> list[MicroBatch]:
    positions = rank_positions(step, SEQUENCES, mesh.degrees, mesh.ranks.rank)
    spec = layout.spec
    size = len(positions) // spec.pp_micro_batches if spec.pp > 1 else layout.micro_batch
    parts = [positions[i : i + size] for i in range(0, len(positions), size)]
    return [micro_batch_of(make_batch([sequence_at(p) for p in part], SEQ_LEN, 0), mesh) for part in parts]


def train(layout: Layout, ranks: Ranks, tied: bool, num_steps: int, reshard_from: int = RESHARD_FROM) -> dict[str, Any]:
    """Loss, gradient norm and tokens of each step; on rank 0 the weights and moments after the last."""
    mesh = make_mesh(ranks, layout.spec.degrees(ranks.world_size))
    model = parallelize(tiny_llama(tied), mesh, layout.spec, reshard_from=reshard_from)
    optimizer = make_optimizer(model.module, OptimizerSpec(learning_rate=RATE))
    curve = []
    for step in range(num_steps):
        facts = train_step(model, optimizer, batches_at(step, mesh, layout), RATE, CLIP_NORM)
        curve.append((facts.loss, facts.grad_norm, facts.tokens))
    state = checkpointing.train_state(model.module, optimizer)
    return {"curve": curve, "state": checkpointing.gather_state(state, mesh)}


def on_ranks(function: Callable[[Ranks], Any], world_size: int, device: str = "cpu") -> list[Any]:
    """What `function` returns on each of `world_size` forked ranks; this process must not have used CUDA."""
    with tempfile.TemporaryDirectory() as folder:
        start_processes(_rank, (function, world_size, folder, device), world_size, start_method="fork")
        return [torch.load(f"{folder}/result-{rank}", weights_only=True) for rank in range(world_size)]


def _rank(index: int, function: Callable[[Ranks], Any], world_size: int, folder: str, device: str) -> None:
    place = torch.device(device, index) if device == "cuda" else torch.device(device)
    if device == "cuda":
        torch.cuda.set_device(place)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=index, world_size=world_size)
    torch.save(function(Ranks(index, world_size, place)), f"{folder}/result-{index}")
    dist.destroy_process_group()


@dataclass(frozen=True)
class Difference:
    """Largest absolute differences from one rank."""

    loss: float
    norm: float
    weights: float

    @property
    def worst(self) -> float:
        return max(self.loss, self.norm, self.weights)


def difference(layout: Layout, tied: bool, num_steps: int, alone: dict[str, Any], device: str = "cpu") -> Difference:
    """Raises: AssertionError if ranks disagree among themselves, or count other tokens, or lack a weight."""
    parts = on_ranks(lambda ranks: train(layout, ranks, tied, num_steps), layout.ranks, device)
    assert all(part["curve"] == parts[0]["curve"] for part in parts), "ranks disagree"
    one, many = np.array(alone["curve"]), np.array(parts[0]["curve"])
    assert (one[:, 2] == many[:, 2]).all(), "tokens are counted twice or not at all"
    expected, found = alone["state"], parts[0]["state"]
    assert expected.keys() == found.keys(), sorted(expected.keys() ^ found.keys())
    weights = max(float((found[k] - w).abs().max()) for k, w in expected.items() if k.startswith("model."))
    return Difference(*np.abs(one - many)[:, :2].max(axis=0).tolist(), weights)


def table(rows: list[tuple[Layout, dict[bool, Difference]]], num_steps: int) -> str:
    title = f"Largest differences from one rank over {num_steps} AdamW steps with clipping, in float64"
    lines = [
        f"{title} (bound {TOLERANCE:g}); written by `make parity`.\n",
        "| layout | ranks | loss | gradient norm | weights | tied: loss | norm | weights |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for layout, found in rows:
        cells = [cell for tied in (False, True) for cell in _cells(found[tied])]
        lines.append(f"| {layout.name} | {layout.ranks} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(found: Difference) -> list[str]:
    return [f"{value:.0e}" for value in (found.loss, found.norm, found.weights)]


def write_between_markers(path: Path, text: str, markers: tuple[str, str] = MARKERS) -> None:
    """Raises: ValueError if the markers are not there."""
    page, (first, last) = path.read_text(), markers
    before, _, rest = page.partition(first)
    _, found, after = rest.partition(last)
    if not found:
        raise ValueError(f"{path} has no {first} ... {last} to write the table between")
    path.write_text(f"{before}{first}\n{text}\n{last}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--only", default="", help="layouts whose name has this in it; README.md is left alone")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cuda: four GPUs; README.md is left alone"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # no thread pool, so that ranks may be forked
    alone = {
        tied: on_ranks(lambda ranks, tied=tied: train(ONE_RANK, ranks, tied, arguments.steps), 1, arguments.device)[0]
        for tied in (False, True)
    }
    rows: list[tuple[Layout, dict[bool, Difference]]] = []
    for layout in (layout for layout in LAYOUTS if arguments.only in layout.name):
        began, found = time.monotonic(), dict[bool, Difference]()
        for tied in (False, True):
            found[tied] = difference(layout, tied, arguments.steps, alone[tied], arguments.device)
        rows.append((layout, found))
        print(f"{layout.name}: {found} in {time.monotonic() - began:.0f} s", file=sys.stderr)
    text = table(rows, arguments.steps)
    print(text)
    if not arguments.only and arguments.device == "cpu":
        write_between_markers(README, text)
    failed = [layout.name for layout, found in rows for part in found.values() if not part.worst <= TOLERANCE]
    if failed:
        print(f"not equal to one rank: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
