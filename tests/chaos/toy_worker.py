"""An application whose one job writes three files, slowly enough to be killed between two of them."""

from __future__ import annotations

import time
from pathlib import Path

from spark_jobs.requests import Outcome, Request, serve

PAUSE_S = 0.1


def write_three_files(request: Request) -> Outcome:
    data = Path(request.out) / "data"
    data.mkdir(parents=True, exist_ok=True)
    for number in range(3):
        (data / f"part-{number}.txt").write_text(f"text {number}\n")
        time.sleep(PAUSE_S)
    return Outcome(num_rows=3, format="text", counts={"in": 3, "out": 3})


if __name__ == "__main__":
    serve(write_three_files)
