"""Checkpoints while training: written beside, published by one rename, kept k deep; and the final one.

    scratch/checkpoints/step-00000050/   .metadata, __0_0.distcp ..., state.json     complete, never changed
    scratch/checkpoints/writing/         half of one, ignored and cleared
    scratch/checkpoints/dropped-00000050/    half removed, ignored and cleared

In-progress checkpoints are torch distributed checkpoints: each rank writes its shard, any number of ranks can read.
The published one is safetensors and JSON: its bytes depend on the weights alone (a DCP `.metadata` is a pickle).
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from spark_jobs.errors import JobCrashed, TrainingError
from training.pretrain.mesh import Mesh, Ranks
from training.pretrain.optimizer import optimizer_state

STEP = re.compile(r"step-(\d{8})")
TRAINING_ONLY = "training_only"  # a part of a model that is trained and saved with it, and not published


def complete_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in `folder`, ascending; [] if the folder does not exist."""
    if not folder.is_dir():
        return []
    found = [(STEP.fullmatch(p.name), p) for p in folder.iterdir()]
    return sorted(int(m[1]) for m, p in found if m and (p / ".metadata").is_file() and (p / "state.json").is_file())


def train_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Trained weights and the optimizer's state by parameter name, sharing memory with the live ones. Frozen weights are
    where they were loaded from.

    State that does not exist yet (before the first step) is made, so that a fresh run has room to load into.
    """
    state: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        state[f"model.{name}"] = parameter.detach()
        for key, value in optimizer_state(optimizer, parameter).items():
            state[f"optimizer.{name}.{key}"] = value
    return state


def save_step(
    folder: Path, step: int, state: dict[str, Any], facts: dict[str, Any], ranks: Ranks, keep: int,
    before_publish: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Write the checkpoint of `step` (optimizer steps done) and publish it; then drop all but the newest `keep`.

    `before_publish` runs on rank 0 when all bytes are down: what must be durable no later than the checkpoint.
    """
    saver = Saver(folder, ranks, keep)
    saver.save(step, state, facts, before_publish)


class Saver:
    """Writes the checkpoints of one training, one at a time: before `save` returns, or in the background.

    In the background a thread copies the tensors to host memory, writes the copies and publishes them, and ranks talk
    to one another in a gloo group of their own. Tensors may change once `wait_for_copies` has returned.
    Making one is a collective.
    """

    def __init__(self, folder: Path, ranks: Ranks, keep: int, in_background: bool = False) -> None:
        self.folder, self.ranks, self.keep = folder, ranks, keep
        self.group = dist.new_group(backend="gloo") if in_background else None
        self.job: BackgroundSave | None = None

    def save(self, step: int, state: dict[str, Any], facts: dict[str, Any], before_publish: Callable[[], None]) -> None:
        """See `save_step`. Waits for the save before this one. A collective."""
        self.wait()
        state = state | _random_state(self.ranks)

        def write(tensors: dict[str, Any]) -> None:
            self._write(step, tensors, facts | {"step": step}, before_publish)

        if self.group is None:
            write(state)
        else:
            self.job = BackgroundSave(step, state, write)

    def wait_for_copies(self) -> None:
        """Return when tensors may be changed. Raises: JobCrashed if writing has failed by now."""
        if self.job is not None:
            self.job.copied.wait()
            self.job.raise_error()

    def wait(self) -> None:
        """Return when the newest checkpoint is published. Raises: JobCrashed if it could not be written."""
        if self.job is not None:
            self.job.thread.join()
            self.job.raise_error()
            self.job = None

    def _write(
        self, step: int, tensors: dict[str, Any], facts: dict[str, Any], before_publish: Callable[[], None]
    ) -> None:
        writing = self.folder / "writing"
        if self.ranks.is_first:
            shutil.rmtree(writing, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
        dist.barrier(self.group)
        save(tensors, checkpoint_id=writing, process_group=self.group)
        dist.barrier(self.group)
        if self.ranks.is_first:
            (writing / "state.json").write_text(json.dumps(facts, sort_keys=True) + "\n")
            before_publish()
            publish(writing, self.folder / f"step-{step:08d}")
            prune(self.folder, self.keep)
        dist.barrier(self.group)


class BackgroundSave:
    """A thread that copies `state` and gives the copies to `write`; the process can end without it."""

    def __init__(self, step: int, state: dict[str, Any], write: Callable[[dict[str, Any]], None]) -> None:
        self.step, self.state, self.write = step, state, write
        self.copied = threading.Event()
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name=f"checkpoint-{step}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            copies = {name: host_copy(tensor) for name, tensor in self.state.items()}
            self.copied.set()
            self.write(copies)
        except BaseException as error:  # noqa: BLE001 a CheckpointException is no Exception; the main thread raises it
            self.error = error
        finally:
            self.copied.set()

    def raise_error(self) -> None:
        if self.error is not None:
            words = str(self.error).strip().splitlines()
            raise JobCrashed(
                f"the checkpoint of step {self.step} could not be written in the background: "
                f"{type(self.error).__name__}: {words[-1] if words else ''}; those before it are complete, run the step "
                "again"
            ) from self.error


def host_copy(tensor: Tensor) -> Tensor:
    """A copy in host memory of what this rank holds of a tensor; a DTensor's knows its place in the whole."""
    if isinstance(tensor, DTensor):
        local = tensor.to_local().detach().to("cpu", copy=True)
        # from_local would take it back to the device
        return DTensor(local, tensor._spec, requires_grad=False)  # type: ignore[no-untyped-call]
    return tensor.detach().to("cpu", copy=True)


def publish(writing: Path, final: Path) -> None:
    """One rename: a reader sees all of a checkpoint or nothing."""
    writing.rename(final)


def prune(folder: Path, keep: int) -> None:
    """Remove all complete checkpoints but the newest `keep` (at least one stays) and the newest clean one."""
    steps = complete_steps(folder)
    clean = [step for step in steps if facts_of(folder, step).get("clean")]
    for step in steps[: -max(1, keep)]:
        if step not in clean[-1:]:
            _drop(folder, step)
    _clear_dropped(folder)


def _drop(folder: Path, step: int) -> None:
    """Take it away by one rename: a kill while files go leaves nothing that looks complete."""
    (folder / f"step-{step:08d}").rename(folder / f"dropped-{step:08d}")
    _clear_dropped(folder)


def _clear_dropped(folder: Path) -> None:
    """What cannot be removed now is tried again at the next save."""
    for dropped in folder.glob("dropped-*"):
        shutil.rmtree(dropped, ignore_errors=True)


def facts_of(folder: Path, step: int) -> dict[str, Any]:
    """What was saved beside the tensors of a complete checkpoint."""
    facts: dict[str, Any] = json.loads((folder / f"step-{step:08d}" / "state.json").read_text())
    return facts


def newest_clean(folder: Path, ranks: Ranks) -> int:
    """Step of the newest checkpoint before which nothing went wrong; 0 if there is none. A collective."""
    clean = [step for step in complete_steps(folder) if facts_of(folder, step).get("clean")]
    return _agreed(max(clean, default=0), ranks)


def drop_after(folder: Path, step: int, ranks: Ranks) -> None:
    """Remove checkpoints newer than `step`: training goes on from there, and will write others. A collective."""
    dist.barrier()
    if ranks.is_first:
        for newer in complete_steps(folder):
            if newer > step:
                _drop(folder, newer)
    dist.barrier()


def load_newest(folder: Path, state: dict[str, Any], identity: str, ranks: Ranks) -> int:
    """Fill `state` in place from the newest complete checkpoint and return its step; 0 if there is none.

    Raises: TrainingError if the checkpoint belongs to another request.
    """
    step = _agreed(max(complete_steps(folder), default=0), ranks)
    if step:
        load_step(folder, step, state, identity, ranks)
    return step


def _agreed(step: int, ranks: Ranks) -> int:
    """Rank 0's, on all: ranks must agree even if a folder appears between two looks."""
    value = torch.tensor(step, device=ranks.device)
    dist.broadcast(value, 0)
    return int(value)


def load_step(folder: Path, step: int, state: dict[str, Any], identity: str, ranks: Ranks) -> dict[str, Any]:
    """Fill `state` in place from the complete checkpoint of `step`; returns its facts.

    Raises: TrainingError if it belongs to another request.
    """
    place, facts = folder / f"step-{step:08d}", facts_of(folder, step)
    if facts["identity"] != identity:
        raise TrainingError(
            f"{place}: a checkpoint of another request or corpus; delete {folder} and run the step again"
        )
    random = _random_state(ranks)
    known = FileSystemReader(place).read_metadata().state_dict_metadata
    random = {key: value for key, value in random.items() if key in known}  # more ranks than there were: keep the seed
    load(state | random, checkpoint_id=place)
    for value in random.values():
        torch.set_rng_state(value)
    return facts


def _random_state(ranks: Ranks) -> dict[str, Tensor]:
    """Under a key of its own: ranks that share a key would all get rank 0's."""
    return {f"random_{ranks.rank}": torch.get_rng_state()}


def save_final(data: Path, state: dict[str, Any], mesh: Mesh) -> None:
    """Gather everything on rank 0 and write model.safetensors and optimizer.safetensors. Same form on any layout."""
    tensors = gather_state(state, mesh)
    for part in ("model", "optimizer", "ema") if mesh.ranks.is_first else ():
        chosen = {k.removeprefix(part + "."): v for k, v in tensors.items() if k.startswith(part + ".")}
        chosen = {k: v for k, v in chosen.items() if TRAINING_ONLY not in k.split(".")}
        if chosen:
            save_file(chosen, data / f"{part}.safetensors", metadata={"format": "pt"})


def gather_state(state: dict[str, Any], mesh: Mesh) -> dict[str, Tensor]:
    """Whole tensors in host memory on rank 0, of all stages of a pipeline; {} on the others. A collective."""
    tensors: dict[str, Tensor] = {}
    on_first_column = mesh.at == dataclasses.replace(mesh.at, batch=0, cp=0, tp=0)
    for key, value in state.items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if on_first_column:
            tensors[key] = full.contiguous().cpu()
    if mesh.stages is not None and on_first_column:
        _send_to_first_stage(tensors, mesh.stages)
    return tensors if mesh.ranks.is_first else {}


def _send_to_first_stage(tensors: dict[str, Tensor], stages: dist.ProcessGroup) -> None:
    """Stage by stage and tensor by tensor, so that no stage but the first holds another's."""
    own, is_receiver = dict(tensors), dist.get_rank(stages) == 0
    for stage in range(1, dist.get_world_size(stages)):
        is_sender = dist.get_rank(stages) == stage
        names: list[Any] = [list(own) if is_sender else None]
        dist.broadcast_object_list(names, group=stages, group_src=stage)
        for name in names[0]:
            part: list[Any] = [own[name] if is_sender else None]
            dist.broadcast_object_list(part, group=stages, group_src=stage)
            if is_receiver:
                tensors[name] = part[0]
