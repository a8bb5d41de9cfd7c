"""What a second of this machine costs: environment, never a spec, as it changes nothing that is computed.

NIGHTMILL_CPU_HOUR: price of an hour of one core; NIGHTMILL_GPU_HOUR: of one accelerator; NIGHTMILL_GPUS: accelerators that a
torch step of this machine occupies, 0 by default. Any one currency.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from spark_jobs.errors import RequestError

CPU_HOUR, GPU_HOUR, GPUS = "NIGHTMILL_CPU_HOUR", "NIGHTMILL_GPU_HOUR", "NIGHTMILL_GPUS"


@dataclass(frozen=True)
class Prices:
    cpu_hour: float = 0.0
    gpu_hour: float = 0.0
    gpus: int = 0

    @classmethod
    def of_this_machine(cls) -> Prices:
        """Raises: RequestError if a variable is not a number of at least 0."""
        return cls(_number(CPU_HOUR), _number(GPU_HOUR), int(_number(GPUS)))

    def cost(self, cpu_seconds: float, gpu_seconds: float) -> float:
        """A step is paid for the cores it kept busy and for the accelerators it occupied."""
        return (cpu_seconds * self.cpu_hour + gpu_seconds * self.gpu_hour) / 3600


def _number(name: str) -> float:
    text = os.environ.get(name) or "0"
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise RequestError(f"{name}={text!r}: wanted a number of at least 0, as 0.05; or unset it")
    return value
