"""How long a newcomer waits: the demo night cold, again at once, and the night after, each as a whole process.

    python -m benchmarks.demo [--home DIR]

Ends with one JSON line: {"first_s", "second_s", "second_night_s", "work_share"}. `work_share` is the share of the first
night's wall time that was spent inside steps; the rest is start-up and orchestration.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, date, datetime, timedelta
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", default="", help="folder to use; default: a new one that is removed again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        measure(arguments.home or temporary)


def measure(home: str) -> None:
    tonight = datetime.now(UTC).date()
    print(
        f"{tonight} on {platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    first_s, first = run(home, tonight)
    second_s, second = run(home, tonight)
    next_s, following = run(home, tonight + timedelta(days=1))
    assert {step["state"] for step in second["steps"]} == {"cached"}, "the second run did work"
    for name, seconds, report in (
        ("first", first_s, first),
        ("again", second_s, second),
        ("next night", next_s, following),
    ):
        print(f"{name:<12} {seconds:6.1f} s   {report['decision']}   {report['metrics']}")
    inside = sum(step["seconds"] for step in first["steps"])
    print(
        json.dumps(
            {
                "first_s": round(first_s, 1),
                "second_s": round(second_s, 1),
                "second_night_s": round(next_s, 1),
                "work_share": round(inside / first_s, 3),
            }
        )
    )


def run(home: str, night: date) -> tuple[float, dict[str, Any]]:
    """Wall seconds of one `nightmill run demo`, and its JSON report."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "flows", "run", "demo", "--night", night.isoformat(), "--json"],
        env=os.environ | {"NIGHTMILL_HOME": home},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return time.monotonic() - started, json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
