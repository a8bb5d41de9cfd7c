"""Where time and memory go, on request: a Chrome trace a rank, CUDA's memory, and what NCCL did last before it hung.

    scratch/tensorboard/profile/rank-0.pt.trace.json.gz     TensorBoard's profile plugin, ui.perfetto.dev, chrome://tracing
    scratch/tensorboard/profile/rank-0.memory.pickle        CUDA only; pytorch.org/memory_viz
    scratch/flight-recorder/rank-0 ...                      NCCL only, written when a collective times out

Nothing of it is part of an output: the engine moves the first two to the workspace's logs, and logs them to MLflow.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from training.loop_spec import ProfileSpec
from training.pretrain.mesh import Ranks

FOLDER = Path("tensorboard", "profile")
MEMORY_EVENTS = 100_000  # allocations and frees that are remembered
COLLECTIVES = 2_000  # that the flight recorder remembers; torchtitan's default


def record_collectives(folder: Path) -> None:
    """Ask NCCL to remember its last collectives, and to write them to `folder` when one times out. Settings of the user win.

    To be called before the process group is made. `torchfrtrace FOLDER` compares what the ranks wrote.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "TORCH_FR_BUFFER_SIZE": str(COLLECTIVES),
        "TORCH_FR_DUMP_TEMP_FILE": str(folder / "rank-"),  # the rank is appended
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",  # 1 would end the process before it has dumped
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


class StepProfiler:
    """Records the optimizer steps first_step, first_step + 1 ... of one rank, counted from 1; None records none."""

    def __init__(self, spec: ProfileSpec | None, scratch: Path, ranks: Ranks) -> None:
        self.spec, self.device = spec, ranks.device
        self.place = scratch / FOLDER / f"rank-{ranks.rank}"
        self.recording: profile | None = None

    def before_step(self, step: int) -> None:
        """Start or stop, before the attempt at step number `step`. Steps tried again are in the same trace."""
        if self.spec is None:
            return
        wanted = self.spec.first_step <= step < self.spec.first_step + self.spec.num_steps
        if wanted and self.recording is None:
            self._start()
        elif not wanted:
            self.close()

    def _start(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS)
        self.recording = profile(activities=activities)
        self.recording.start()

    def close(self) -> None:
        """Write what was recorded; nothing if nothing was."""
        if self.recording is None:
            return
        self.recording.stop()
        self.place.parent.mkdir(parents=True, exist_ok=True)
        self.recording.export_chrome_trace(f"{self.place}.pt.trace.json.gz")
        if self.device.type == "cuda":
            torch.cuda.memory._dump_snapshot(f"{self.place}.memory.pickle")  # type: ignore[no-untyped-call]
            torch.cuda.memory._record_memory_history(enabled=None)
        self.recording = None
