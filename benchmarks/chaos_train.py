"""A training killed at the worst moments and started again: the unbroken one's curve and weights, or exit code 1.

make chaos-train        python -m benchmarks.chaos_train [--only writing]

Two forked ranks train a tiny Llama in float64 by FSDP2, with AdamW, clipping and a checkpoint every other step. One of
them gets SIGKILL at a chosen moment; then the training starts again on two ranks, and once more, from a copy of what was
left, on one. Bit for bit on two ranks: curve.jsonl, weights and moments. The table goes into docs/training.md.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import filesystem
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from benchmarks.parity import SEQ_LEN, VOCAB_SIZE, on_ranks, sequence_at, tiny_llama, write_between_markers
from spark_jobs.manifests import TokenizerFiles
from training.pretrain import checkpointing, trainer
from training.pretrain.mesh import Ranks, make_mesh
from training.pretrain.objectives import Examples, PackedText
from training.pretrain.parallel import ParallelModel, parallelize
from training.pretrain.sequence_order import RowGroup
from training.pretrain.token_shards import Sequences
from training.pretrain.trainer import plan_of, train_rank
from training.specs import TrainSpec

RANKS, NUM_STEPS, EVERY, NUM_SEQUENCES = 2, 10, 2, 60
KILLED_SAVE, KILLED_STEP = 3, 7  # the third checkpoint, that of step 6, is the first to drop another; step 7 follows it
TOLERANCE = 1e-12  # on another number of ranks
DOCUMENT = Path(__file__).parent.parent / "docs" / "training.md"
MARKERS = ("<!-- chaos-train -->", "<!-- /chaos-train -->")


@dataclass(frozen=True)
class Moment:
    """Where `rank` is killed, and the checkpoint a new start must find. modes: train.checkpoint_mode."""

    name: str
    rank: int
    newest: int
    modes: tuple[str, ...] = ("blocking", "async")
    is_in_step: bool = False

    def may_find(self, step: int, mode: str) -> bool:
        """In the background the checkpoint before the step may still be on its way when the rank is killed."""
        return step == self.newest or (mode == "async" and self.is_in_step and step == self.newest - EVERY)


MOMENTS = (
    Moment("forward", 1, 6, is_in_step=True),
    Moment("between backward and step", 1, 6, is_in_step=True),
    Moment("staging", 1, 4, ("async",)),
    Moment("writing", 1, 4),
    Moment("before publish", 0, 4),
    Moment("pruning", 0, 6),
)
CASES = tuple((moment, mode) for moment in MOMENTS for mode in moment.modes)


@dataclass
class Trap:
    """Kills this process at the `calls`-th call of a function after it was armed."""

    mark: Path
    calls: int
    is_armed: bool = False

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def trapped(*args: Any, **kwargs: Any) -> Any:
            self.call()
            return function(*args, **kwargs)

        return trapped

    def call(self) -> None:
        self.calls -= self.is_armed
        if self.is_armed and self.calls == 0:
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def arm_at_save(trap: Trap, number: int) -> None:
    """Arm at the `number`-th checkpoint of this process."""
    save, seen = checkpointing.Saver.save, iter(range(1, NUM_STEPS))

    def counted(self: checkpointing.Saver, *args: Any) -> None:
        self.wait()
        trap.is_armed = trap.is_armed or next(seen) == number
        save(self, *args)

    checkpointing.Saver.save = counted  # type: ignore[method-assign]


def set_trap(moment: Moment, model: ParallelModel, mark: Path) -> None:
    """Real functions, wrapped in this rank's process only."""
    if moment.is_in_step:
        trap = Trap(mark, KILLED_STEP, is_armed=True)
        if moment.name == "forward":
            model.module.model.layers[2].register_forward_pre_hook(lambda *_: trap.call())
        else:
            trainer.clip_gradients = trap.before(trainer.clip_gradients)
        return
    trap = Trap(mark, {"staging": 20, "writing": 20}.get(moment.name, 1))
    arm_at_save(trap, KILLED_SAVE)
    if moment.name == "staging":
        checkpointing.host_copy = trap.before(checkpointing.host_copy)
    elif moment.name == "writing":
        filesystem._write_item = trap.before(filesystem._write_item)
    elif moment.name == "before publish":
        checkpointing.publish = trap.before(checkpointing.publish)
    else:
        _kill_while_files_go(trap)


def _kill_while_files_go(trap: Trap) -> None:
    """When one file of a dropped checkpoint is gone and others are still there."""
    remove = shutil.rmtree

    def removed_in_part(place: Path, *args: Any, **kwargs: Any) -> None:
        if trap.is_armed and Path(place).name.startswith("dropped-"):
            next(Path(place).glob("*.distcp")).unlink()
            trap.call()
        remove(place, *args, **kwargs)

    shutil.rmtree = removed_in_part  # type: ignore[assignment]


def write_shards(path: Path) -> RowGroup:
    rows = [sequence_at(position) for position in range(NUM_SEQUENCES)]
    columns = {"tokens": [tokens.tolist() for tokens, _ in rows], "doc_lengths": [ends.tolist() for _, ends in rows]}
    int_lists = pa.list_(pa.int32())
    pq.write_table(pa.table({name: pa.array(values, int_lists) for name, values in columns.items()}), path)
    return RowGroup(str(path), 0, NUM_SEQUENCES, is_replay=False)


def spec_of(num_ranks: int, mode: str) -> TrainSpec:
    return TrainSpec.model_validate(
        {
            "num_steps": NUM_STEPS, "checkpoint_every": EVERY, "keep_checkpoints": 2, "checkpoint_mode": mode,
            "sequences_per_step": 8, "ranks": num_ranks, "optimizer": {"learning_rate": 1e-2, "clip_norm": 0.5},
        }
    )  # fmt: skip


def train(ranks: Ranks, group: RowGroup, out: Path, mode: str, moment: Moment | None = None) -> int:
    """One rank from the newest checkpoint under `out` to the end. Returns the step of that checkpoint."""
    spec = spec_of(ranks.world_size, mode)
    mesh = make_mesh(ranks, spec.parallel.degrees(ranks.world_size))
    model = parallelize(tiny_llama(tied=True), mesh, spec.parallel)
    tokenizer = TokenizerFiles(
        step="tokenizer", key="0", night="", format="json", num_rows=VOCAB_SIZE, files=(), spec={}, code={},
        libraries={}, vocab_size=VOCAB_SIZE, bos_id=1, eos_id=2, pad_id=0,
    )  # fmt: skip
    if ranks.is_first:
        (out / "data").mkdir(parents=True, exist_ok=True)
        (out / "scratch").mkdir(exist_ok=True)
    if moment is not None and moment.rank == ranks.rank:
        set_trap(moment, model, out / "killed")
    newest = max(checkpointing.complete_steps(out / "scratch" / "checkpoints"), default=0)
    material = PackedText(Sequences([group], SEQ_LEN, 0, 0.5, 0), Examples(spec, mesh, tokenizer))
    train_rank(model, material, spec, plan_of(spec, False, "chaos"), out)
    return newest


def run(group: RowGroup, out: Path, num_ranks: int, mode: str, moment: Moment | None = None) -> int:
    steps: list[int] = on_ranks(lambda ranks: train(ranks, group, out, mode, moment), num_ranks)
    return steps[0]


def run_and_kill(group: RowGroup, out: Path, mode: str, moment: Moment) -> None:
    """Raises: AssertionError if nobody was killed."""
    try:
        run(group, out, RANKS, mode, moment)
    except (ProcessExitedException, ProcessRaisedException):  # the killed rank's end, or its peer's complaint
        assert (out / "killed").exists(), f"{moment.name}, {mode}: a rank ended before the kill"
    else:
        raise AssertionError(f"{moment.name}, {mode}: nobody was killed")


def outputs(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "data").iterdir())}


def difference(one: Path, other: Path) -> float:
    """Largest absolute difference of losses, norms, weights and moments."""
    curves = [
        [
            [line["loss"], line["grad_norm"]]
            for line in map(json.loads, (p / "data/curve.jsonl").read_text().splitlines())
        ]
        for p in (one, other)
    ]
    worst = float(np.abs(np.array(curves[0]) - np.array(curves[1])).max())
    for part in ("model", "optimizer"):
        expected, found = (load_file(p / "data" / f"{part}.safetensors") for p in (one, other))
        assert expected.keys() == found.keys()
        worst = max([worst, *(float((found[name] - value).abs().max()) for name, value in expected.items())])
    return worst


@dataclass(frozen=True)
class Result:
    """newest: step of the checkpoint gone on from. is_same: every byte, on two ranks. difference: on one."""

    newest: int
    is_same: bool
    difference: float

    def is_right(self, moment: Moment, mode: str) -> bool:
        return moment.may_find(self.newest, mode) and self.is_same and self.difference <= TOLERANCE


def try_case(group: RowGroup, unbroken: Path, folder: Path, moment: Moment, mode: str) -> Result:
    """Kill, and start again on as many ranks and on one."""
    two, one = folder / "two", folder / "one"
    run_and_kill(group, two, mode, moment)
    shutil.copytree(two, one)
    newest = run(group, two, RANKS, mode)
    run(group, one, 1, mode)
    return Result(newest, outputs(two) == outputs(unbroken), difference(unbroken, one))


def table(results: list[tuple[Moment, str, Result]]) -> str:
    title = (
        f"Two ranks, float64, {NUM_STEPS} steps, a checkpoint every {EVERY}; one rank killed with SIGKILL in step "
        f"{KILLED_STEP} or at the checkpoint of step {KILLED_SAVE * EVERY}; written by `make chaos-train`."
    )
    lines = [
        f"{title}\n",
        "| killed | `checkpoint_mode` | goes on from step | two ranks again | one rank: largest difference |",
        "|---|---|---|---|---|",
    ]
    for moment, mode, found in results:
        same = "the same bytes" if found.is_same else "DIFFERENT"
        lines.append(f"| {moment.name} | {mode} | {found.newest} | {same} | {found.difference:.0e} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos_train", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="moments whose name has this in it; docs/training.md is left alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # no thread pool, so that ranks may be forked
    results: list[tuple[Moment, str, Result]] = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        group, unbroken = write_shards(root / "shards.parquet"), root / "unbroken"
        run(group, unbroken, RANKS, "blocking")
        for moment, mode in CASES:
            if arguments.only in moment.name:
                began, folder = time.monotonic(), root / f"{moment.name}-{mode}"
                results.append((moment, mode, try_case(group, unbroken, folder, moment, mode)))
                print(f"{moment.name}, {mode}: {results[-1][2]} in {time.monotonic() - began:.1f} s", file=sys.stderr)
    text = table(results)
    print(text)
    if not arguments.only:
        write_between_markers(DOCUMENT, text, MARKERS)
    failed = [f"{moment.name} ({mode})" for moment, mode, found in results if not found.is_right(moment, mode)]
    if failed:
        print(f"not as if unbroken: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
