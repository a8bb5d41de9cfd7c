"""The measure job: how fast a model folder reads and writes on this machine, in how much memory and at what energy.

Everything is measured in a fresh process with a stated number of threads; nothing else of Nightmill runs in it. Every repeat
is kept: a median alone hides a noisy machine.
"""

from __future__ import annotations

import contextlib
import json
import platform
import re
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spark_jobs.errors import RequestError
from spark_jobs.requests import Outcome, Request
from training.compress.sizes import memory_bytes
from training.compress_spec import MeasureSpec
from training.inputs import input_uri
from training.manifests import ModelFolder
from training.model_folder import load_folder, weight_bytes
from training.processes import in_fresh_process, num_threads

POWERCAP = Path("/sys/class/powercap")
PACKAGE = re.compile(r"intel-rapl:\d+")  # a processor; its parts have a second number
RESULT = "measurement.json"


def run(request: Request) -> Outcome:
    """Input: model, of any format. A prompt that with the new tokens would not fit the model's positions is shortened."""
    spec = MeasureSpec.model_validate(request.spec)
    model = ModelFolder.load(input_uri(request, "model"))
    data = Path(request.out) / "data"
    data.mkdir(parents=True, exist_ok=True)

    def measure() -> dict[str, Any]:
        return measure_folder(Path(model.folder()), spec, num_threads())

    found = in_fresh_process(measure)
    (data / RESULT).write_text(json.dumps({"model": model.address} | found, indent=1, sort_keys=True) + "\n")
    fields = {
        "model": model.address,
        "num_threads": found["num_threads"],
        "weight_bytes": found["weight_bytes"],
        "peak_bytes": found["peak_bytes"],
        "prefill_tokens_per_s": found["prefill_tokens_per_s"]["median"],
        "decode_tokens_per_s": found["decode_tokens_per_s"]["median"],
        "joules_per_token": found["joules_per_token"]["median"] if found["joules_per_token"] else None,
    }
    return Outcome(num_rows=spec.repeats, format="json", fields=fields)


def measure_folder(folder: Path, spec: MeasureSpec, threads: int) -> dict[str, Any]:
    """Call it in a fresh process. Seconds are of the wall clock; one pass of each kind goes before those that count."""
    torch.set_num_threads(threads)
    model = load_folder(folder)
    prompt_tokens, new_tokens = fitting(model, spec)
    prompt_BT = torch.arange(prompt_tokens)[None] * 7919 % int(model.config.vocab_size)
    write_tokens(model, prompt_BT, new_tokens)
    forget_peak()
    read = [timed(lambda: read_prompt(model, prompt_BT)) for _ in range(spec.repeats)]
    written = [timed(lambda: write_tokens(model, prompt_BT, new_tokens)) for _ in range(spec.repeats)]
    # Writing begins with reading the prompt, whose share is taken off by its own median.
    reading = statistics.median(one.seconds for one in read)
    decode = [max(one.seconds - reading, 1e-9) for one in written]
    taken = [one.joules for one in read if one.joules is not None]
    joules = [
        (one.joules - statistics.median(taken)) / new_tokens for one in written if one.joules is not None and taken
    ]
    return {
        "num_threads": threads,
        "machine": processor(),
        "torch": torch.__version__,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "weight_bytes": weight_bytes(folder),
        "storage_bytes": memory_bytes(model),
        "peak_bytes": peak_bytes(),
        "prefill_tokens_per_s": spread([prompt_tokens / one.seconds for one in read]),
        "decode_tokens_per_s": spread([new_tokens / seconds for seconds in decode]),
        "joules_per_token": spread(joules) if joules else None,
    }


def spread(values: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "repeats": values}


def fitting(model: PreTrainedModel, spec: MeasureSpec) -> tuple[int, int]:
    """Tokens of the prompt, and written: fewer of both where the model has not so many positions, half of them at least written
    to. Raises: RequestError for a model that writes no continuation."""
    if not model.can_generate() or model.config.is_encoder_decoder:
        raise RequestError(f"{type(model).__name__} continues no text: measure causal language models")
    positions = int(model.config.max_position_embeddings)
    new_tokens = min(spec.new_tokens, max(1, positions // 2))
    return min(spec.prompt_tokens, positions - new_tokens), new_tokens


@torch.no_grad()
def read_prompt(model: PreTrainedModel, prompt_BT: Tensor) -> Any:
    return model(input_ids=prompt_BT, use_cache=True, logits_to_keep=1)


@torch.no_grad()
def write_tokens(model: PreTrainedModel, prompt_BT: Tensor, new_tokens: int) -> None:
    """Read the prompt, then write token after token, the likeliest each time, whether or not it ends a text."""
    answer = read_prompt(model, prompt_BT)
    for _ in range(new_tokens):
        following_BT = answer.logits[:, -1:].argmax(-1)
        answer = model(input_ids=following_BT, cache=answer.cache, use_cache=True)


@dataclass(frozen=True)
class Pass:
    seconds: float
    joules: float | None


def timed(work: Callable[[], Any]) -> Pass:
    before, began = energy(), time.perf_counter()
    work()
    seconds, after = time.perf_counter() - began, energy()
    return Pass(seconds, joules_between(before, after))


def energy(root: Path = POWERCAP) -> dict[str, tuple[int, int]]:
    """Counter and range of each processor in microjoules; empty where the kernel has none or keeps them to root."""
    found = {}
    for zone in sorted(root.glob("intel-rapl:*")):
        if PACKAGE.fullmatch(zone.name):
            try:
                counter = int((zone / "energy_uj").read_text())
                found[zone.name] = counter, int((zone / "max_energy_range_uj").read_text())
            except OSError:  # readable by root alone since CVE-2020-8694
                return {}
    return found


def joules_between(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> float | None:
    """A counter that went around once counts on."""
    if not before:
        return None
    return sum((after[zone][0] - counter) % (limit + 1) for zone, (counter, limit) in before.items()) / 1e6


def forget_peak() -> None:
    """From now on the kernel takes the peak of this process anew, where it can; else the peak is that of its whole life."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    try:
        (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except (OSError, ValueError):
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(kilobytes) * 1024


def processor() -> str:
    with contextlib.suppress(OSError):
        names = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if names:
            return str(names[0])
    return platform.machine()
