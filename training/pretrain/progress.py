"""What a training run tells while it runs: a curve that is part of the output, events and TensorBoard files that are not.

scratch/curve.jsonl     step, loss, learning rate, gradient norm, tokens: the same in every honest run; published
scratch/events.jsonl    the same with speed, memory, time left, and every incident; also sent to the parent process
scratch/tensorboard/    the same for `tensorboard --logdir`
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from spark_jobs.requests import ANSWER_FD, send
from training.pretrain.flops import mfu, peak_flops

EVENT_OF = {"job": "train"}
NOT_DRAWN = {"step", "num_steps", "tokens", "eta_s"}  # in TensorBoard


@dataclass(frozen=True)
class StepFacts:
    """Loss in nats a target, norm before clipping, both over all ranks; tokens without padding.

    trouble: why the step was not applied, "" if it was. small, large: (targets, squared gradient norm) of the first
    micro-batches and of the whole step, where the noise scale was measured. heldout_loss: where it was looked at.
    """

    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    trouble: str = ""
    small: tuple[float, float] | None = None
    large: tuple[float, float] = (0.0, 0.0)
    heldout_loss: float | None = None
    noise_scale: float | None = None
    num_sequences: int = 0


@dataclass(frozen=True)
class Cost:
    """What tokens/s are measured against. peak: FLOP/s of all devices together, None where it is not known."""

    flops_per_token: float
    peak: float | None
    device: torch.device

    @classmethod
    def of(cls, flops_per_token: float, device: torch.device, world_size: int) -> Cost:
        peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        return cls(flops_per_token, peak * world_size if peak else None, device)

    def facts(self, tokens_per_s: float) -> dict[str, float]:
        """MFU (convention: see flops.py), FLOP/s, and memory of this rank: CUDA's peak, or resident memory."""
        told = {"tflops": round(self.flops_per_token * tokens_per_s / 1e12, 6)}
        if self.peak is not None:
            told["mfu"] = round(mfu(self.flops_per_token, tokens_per_s, self.peak), 4)
        if self.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(self.device)
        else:
            memory = psutil.Process().memory_info().rss
        return told | {"memory_mb": round(memory / 2**20, 1)}


class Progress:
    """Writer of rank 0. Opening it at step k drops lines a killed run wrote after its checkpoint at k."""

    def __init__(self, scratch: Path, first_step: int, num_steps: int, cost: Cost | None = None) -> None:
        self.num_steps, self.first_step, self.cost, self.scratch = num_steps, first_step, cost, scratch
        self.curve_path = scratch / "curve.jsonl"
        kept = self.curve_path.read_text().splitlines(keepends=True)[:first_step] if self.curve_path.exists() else []
        if len(kept) != first_step:
            raise FileNotFoundError(f"{self.curve_path}: {len(kept)} lines, checkpoint is at step {first_step}")
        rewritten = scratch / "curve.jsonl.new"  # a kill in between must not cost lines the checkpoint relies on
        rewritten.write_text("".join(kept))
        rewritten.replace(self.curve_path)
        self.num_tokens = sum(json.loads(line)["tokens"] for line in kept)
        self.curve = self.curve_path.open("a")
        self.events = (scratch / "events.jsonl").open("a", buffering=1)
        self.board = SummaryWriter(str(scratch / "tensorboard"), purge_step=first_step + 1)
        self.started = self.last = time.monotonic()

    def step(self, step: int, facts: StepFacts, loader_s: float = 0.0) -> None:
        """Record optimizer step number `step`, counted from 1. loader_s: seconds it waited for its data."""
        now = time.monotonic()
        seconds, self.last = now - self.last, now
        self.num_tokens += facts.tokens
        line: dict[str, Any] = {
            "step": step,
            "loss": facts.loss,
            "learning_rate": facts.learning_rate,
            "grad_norm": facts.grad_norm,
            "tokens": facts.tokens,
        }
        for name in ("heldout_loss", "noise_scale"):
            if getattr(facts, name) is not None:
                line[name] = getattr(facts, name)
        self.curve.write(json.dumps(line) + "\n")
        event = line | {
            "num_steps": self.num_steps,
            "tokens_per_s": round(facts.tokens / seconds, 1),
            "loader_share": round(loader_s / seconds, 4),
            "eta_s": round((now - self.started) / (step - self.first_step) * max(0, self.num_steps - step), 1),
        }
        if facts.num_sequences:
            event["sequences"] = facts.num_sequences
        if self.cost is not None:
            event |= self.cost.facts(event["tokens_per_s"])
        self._tell(event)
        drawn = [Summary.Value(tag=f"train/{k}", simple_value=v) for k, v in event.items() if k not in NOT_DRAWN]
        self.board.file_writer.add_summary(Summary(value=drawn), step)  # one event a step, not one a number

    def incident(self, facts: dict[str, Any]) -> None:
        """Tell of a step that was not applied, or of training that went back."""
        self._tell({"incident": facts})

    def _tell(self, event: dict[str, Any]) -> None:
        self.events.write(json.dumps(event) + "\n")
        send("event", EVENT_OF | event)

    def reopened(self, first_step: int) -> Progress:
        """Go on from an earlier step, as a resumed run would."""
        self.close()
        return Progress(self.scratch, first_step, self.num_steps, self.cost)

    def flushed(self) -> Callable[[], None]:
        """Hand the curve up to here to the system; what is returned, for any thread, waits until it is on the disk."""
        self.curve.flush()
        return functools.partial(os.fsync, self.curve.fileno())

    def close(self) -> None:
        self.flushed()()
        self.curve.close()
        self.events.close()
        self.board.close()


@contextlib.contextmanager
def relayed_events(path: Path, poll_s: float = 0.2) -> Iterator[None]:
    """While inside, send each line that appears in `path` (written by a child) to the parent; children send nothing."""
    answer_fd = os.environ.pop(ANSWER_FD, None)
    if answer_fd is None:
        yield
        return
    first_byte = path.stat().st_size if path.exists() else 0
    done = threading.Event()

    def relay() -> None:
        position, finished = first_byte, False
        while not finished:
            finished = done.wait(poll_s)  # one more look after the end
            if path.exists():
                with path.open("rb") as file:
                    file.seek(position)
                    lines = file.read().splitlines(keepends=True)
                for line in lines:
                    if line.endswith(b"\n"):
                        position += len(line)
                        message = json.dumps({"event": EVENT_OF | json.loads(line)}) + "\n"
                        os.write(int(answer_fd), message.encode())

    thread = threading.Thread(target=relay, name="events")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        os.environ[ANSWER_FD] = answer_fd
