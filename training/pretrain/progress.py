"""What a training run tells while it runs: a curve that is part of the output, events and TensorBoard files that are not.

scratch/curve.jsonl     step, loss, learning rate, gradient norm, tokens: the same in every honest run; published
scratch/events.jsonl    the same with speed and time left; also sent to the parent process, line by line
scratch/tensorboard/    the same for `tensorboard --logdir`
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from spark_jobs.requests import ANSWER_FD, send

EVENT_OF = {"job": "train"}


@dataclass(frozen=True)
class StepFacts:
    """Loss in nats a target, norm before clipping, both over all ranks; tokens without padding."""

    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int


class Progress:
    """Writer of rank 0. Opening it at step k drops lines a killed run wrote after its checkpoint at k."""

    def __init__(self, scratch: Path, first_step: int, num_steps: int) -> None:
        self.num_steps, self.first_step = num_steps, first_step
        self.curve_path = scratch / "curve.jsonl"
        kept = self.curve_path.read_text().splitlines(keepends=True)[:first_step] if self.curve_path.exists() else []
        if len(kept) != first_step:
            raise FileNotFoundError(f"{self.curve_path}: {len(kept)} lines, checkpoint is at step {first_step}")
        self.curve_path.write_text("".join(kept))
        self.num_tokens = sum(json.loads(line)["tokens"] for line in kept)
        self.curve = self.curve_path.open("a")
        self.events = (scratch / "events.jsonl").open("a", buffering=1)
        self.board = SummaryWriter(str(scratch / "tensorboard"), purge_step=first_step + 1)
        self.started = self.last = time.monotonic()

    def step(self, step: int, facts: StepFacts) -> None:
        """Record optimizer step number `step`, counted from 1."""
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
        self.curve.write(json.dumps(line) + "\n")
        event = line | {
            "num_steps": self.num_steps,
            "tokens_per_s": round(facts.tokens / seconds, 1),
            "eta_s": round((now - self.started) / (step - self.first_step) * (self.num_steps - step), 1),
        }
        self.events.write(json.dumps(event) + "\n")
        send("event", EVENT_OF | event)
        for name in ("loss", "learning_rate", "grad_norm"):
            self.board.add_scalar(f"train/{name}", line[name], step)
        self.board.add_scalar("train/tokens_per_s", event["tokens_per_s"], step)

    def make_durable(self) -> None:
        """The curve up to here reaches the disk before the checkpoint that relies on it."""
        self.curve.flush()
        os.fsync(self.curve.fileno())

    def close(self) -> None:
        self.make_durable()
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
