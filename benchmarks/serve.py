"""`nightmill serve` against `transformers serve` on the same model and load, then through promotions without losing a request.

    python -m benchmarks.serve [--model FOLDER] [--rounds 3] [--requests 10000] [--smoke]

All three servers (transformers' with and without --continuous-batching, and ours with one replica) are up at once and take turns,
round by round, on the same prompts: `clients` at once ask for completions of `max_tokens` greedy tokens, then for streams. Idle
servers do nothing. Throughput is written tokens a second, the median of the rounds; the ratio is against the better of the two.
Then see benchmarks/serve_swaps.py. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.ports import free_port
from benchmarks.serve_load import Load, answers, streams, whole_answers
from benchmarks.serve_swaps import VERSIONS, ask_through_swaps, greedy_answers, point, publish_versions
from spark_jobs.errors import RequestError

STORIES = Path(__file__).parents[2] / "shared" / "data" / "models" / "stories260k"
WHO = ("Tom", "Lily", "the cat", "a big dog", "Max", "Sue", "the old man", "a little bird", "Ben", "Mia")
WHAT = ("went to the", "saw a red", "wanted to play with", "was very happy because", "lost a", "found a box in the")
START_S = 300.0


def prompts_of(number: int) -> list[str]:
    beginnings = [f"One day, {who} {what}" for what in WHAT for who in WHO]
    return [beginnings[i % len(beginnings)] for i in range(number)]


class Server:
    """A server as a child process, in a group of its own."""

    def __init__(self, name: str, argv: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> None:
        self.name, self.port, self.log = name, free_port(), log
        argv = [word.replace("PORT", str(self.port)) for word in argv]
        self.process = subprocess.Popen(
            argv, stdout=log.open("w"), stderr=subprocess.STDOUT, start_new_session=True, env=os.environ | (environment or {})
        )  # fmt: skip

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait(self) -> None:
        if not asyncio.run(answers(self.url, START_S)):
            raise SystemExit(f"{self.name} did not start; see {self.log}:\n{self.log.read_text()[-2000:]}")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def of_transformers(model: Path, batching: bool, log: Path) -> Server:
    flags = ["--continuous-batching", "--cb-max-memory-percent", "0.05"] if batching else []
    code = "from transformers.cli.transformers import main; main()"
    argv = [sys.executable, "-c", code, "serve", str(model), "--port", "PORT", "--device", "cpu", "--dtype", "float32"]
    return Server(f"transformers serve{' --continuous-batching' if batching else ''}", [*argv, *flags], log)


def ours(arguments: Sequence[str], home: Path, log: Path) -> Server:
    argv = [sys.executable, "-m", "flows.cli", "serve", *arguments, "--port", "PORT"]
    return Server("nightmill serve", argv, log, {"NIGHTMILL_HOME": str(home)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=STORIES)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=64, help="a round")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--requests", type=int, default=10_000, help="through the promotions; 0: leave them out")
    parser.add_argument("--smoke", action="store_true", help="a few of each: does it run?")
    asked = parser.parse_args()
    if not (asked.model / "config.json").is_file():
        raise RequestError(f"--model {asked.model}: no model folder there")
    if asked.smoke:
        asked.rounds, asked.prompts, asked.requests = 1, 16, min(asked.requests, 210)
    now = datetime.now(UTC)
    print(f"{now:%Y-%m-%d} on {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(
        f"model {asked.model.name}, {asked.clients} clients, {asked.max_tokens} tokens, {asked.prompts} prompts a round"
    )
    with tempfile.TemporaryDirectory(prefix="serve-") as folder:
        told = side_by_side(asked, Path(folder))
        if asked.requests:
            told |= through_swaps(asked, Path(folder))
    print(json.dumps(told))


def side_by_side(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    servers = [
        of_transformers(asked.model, batching=False, log=folder / "plain.log"),
        of_transformers(asked.model, batching=True, log=folder / "batching.log"),
        ours(
            ["--model", str(asked.model), "--name", str(asked.model), "--log", ""], folder / "home", folder / "ours.log"
        ),
    ]
    try:
        for server in servers:
            server.wait()
        loads = {server.name: rounds_of(server, asked, 0) for server in servers}  # warm
        loads = {server.name: [] for server in servers}
        for number in range(1, asked.rounds + 1):
            for server in servers:
                loads[server.name] += rounds_of(server, asked, number)
                print(
                    f"  round {number}: {server.name} {loads[server.name][-1][0].tokens_per_s:.0f} tokens/s", flush=True
                )
    finally:
        for server in servers:
            server.stop()
    rows = {name: row_of(found) for name, found in loads.items()}
    print(f"\n{'':40} tokens/s    p50 ms    p99 ms   first token ms (p50)")
    for name, row in rows.items():
        print(f"{name:40} {row['tokens_per_s']:8.1f} {row['p50_ms']:9.0f} {row['p99_ms']:9.0f} {row['ttft_ms']:12.0f}")
    best = max(row["tokens_per_s"] for name, row in rows.items() if name.startswith("transformers"))
    own = rows["nightmill serve"]
    return {"throughput_ratio": round(own["tokens_per_s"] / best, 3)} | {
        name: round(own[name], 1) for name in ("p50_ms", "p99_ms", "ttft_ms")
    }


def rounds_of(server: Server, asked: argparse.Namespace, number: int) -> list[tuple[Load, Load]]:
    """number 0 is short: what a first request costs more is not counted."""
    prompts = prompts_of(asked.prompts if number else asked.clients * 2)
    arguments = server.url, str(asked.model), prompts, asked.clients, asked.max_tokens
    whole = asyncio.run(whole_answers(*arguments))
    if whole.failures:
        raise SystemExit(f"{server.name} refused {whole.failures} requests; see {server.log}")
    return [(whole, asyncio.run(streams(*arguments)))]


def row_of(found: list[tuple[Load, Load]]) -> dict[str, float]:
    latencies = sorted(seconds for whole, _ in found for seconds in whole.latencies)
    return {
        "tokens_per_s": median(whole.tokens_per_s for whole, _ in found),
        "p50_ms": median(latencies) * 1000,
        "p99_ms": latencies[min(len(latencies) - 1, int(0.99 * len(latencies)))] * 1000,
        "ttft_ms": median(seconds for _, stream in found for seconds in stream.firsts) * 1000,
    }


def through_swaps(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    home = folder / "home"
    workspace = home / "workspaces" / "demo"
    models = publish_versions(asked.model, workspace)
    prompts, expected = greedy_answers(models, prompts_of(40))
    print(f"\n{VERSIONS} versions, {len(prompts)} prompts whose greedy answers are certain in all of them")
    point(workspace, models[0], 1, 1)

    def promote(change: int) -> None:
        """Five promotions to new versions; the sixth change goes back to the version before."""
        version = change if change < VERSIONS else VERSIONS - 2
        print(f"  {'promoted' if change < VERSIONS else 'rolled back to'} version {version + 1}", flush=True)
        point(workspace, models[version], version + 1, change + 1)

    server = ours(["demo", "--set", "poll_s=0.2", "--log", ""], home, folder / "swaps.log")
    try:
        server.wait()
        counts = asyncio.run(
            ask_through_swaps(server.url, "demo", models, prompts, expected, asked.requests, asked.clients, promote)
        )
    finally:
        server.stop()
    for name, number in sorted(counts.by_version.items()):
        print(f"  {name} answered {number:,}")
    return {"requests": counts.requests, "lost": counts.lost, "mixed": counts.mixed}


if __name__ == "__main__":
    main()
