"""What a job gets to work with: the session, its inputs, and the folder it may write to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from spark_jobs.errors import RequestError
from spark_jobs.manifests import Handle

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

H = TypeVar("H", bound=Handle)


@dataclass(frozen=True)
class Job:
    spark: SparkSession
    name: str
    inputs: dict[str, str]
    out: Path
    night: str

    def input(self, role: str, kind: type[H]) -> H:
        """Open an input through its manifest. Raises: RequestError if the request has none of this role; DataError."""
        if role not in self.inputs:
            raise RequestError(
                f"job {self.name}: no input {role!r}, only {sorted(self.inputs) or 'none'}; send its uri"
            )
        return kind.load(self.inputs[role])

    def scratch(self, name: str) -> str:
        """A place for intermediate tables; the folder `scratch` is deleted before the output is published."""
        return str(self.out / "scratch" / name)
