"""Real text through the whole chain: read, clean with every rule, language, personal data, copies, tokens, packing.

    python -m benchmarks.corpus [--mb 200] [--cores 2] [--peer-python PYTHON] [--peer-mb 5]

The corpus is made of the English texts under ../shared/data (novels, speeches), grown to `--mb` by mixing
passages of them; one document in ten is an exact copy of another and one in ten has a few words changed. Each run is a process
of its own, warmed up on a small corpus, so that start-up and compilation do not count. The tokenizer is made beforehand.

The peer is datatrove's own pipeline (Gopher quality and repetition, C4, FineWeb, MinHash, personal data, tokens; no language,
whose model it would download) over a part of the same corpus, run by an interpreter that has datatrove: this one, once
`uv pip install -c constraints.txt -e '.[bench]'` was run, or --peer-python; null without one.

Ends with one JSON line: {"mb_per_s_core", "peer_mb_per_s_core", "ratio", "scaling", "peak_mb", "peak_mb_50", "rows_in",
"rows_out", "rejects"}. `peak_mb_50` is the peak over a quarter of the corpus.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.jobs import run_job
from spark_jobs.manifests import Documents, Handle, TokenizerFiles, TokenShards
from spark_jobs.specs import (
    C4Spec,
    CleanSpec,
    DedupSpec,
    FineWebSpec,
    IngestSpec,
    RepetitionSpec,
    SourceSpec,
    TokenizerSpec,
    TokenizeSpec,
)

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
# English prose, most of which the rules of both sides keep: a corpus that the peer throws away early costs it no further work.
TEXTS = ("moby-dick.txt", "botchan.txt", "sotu/*.txt")
LONG = re.compile(r"(.{500,1000}?[.!?][\"']?) ", re.DOTALL)
FILE_BYTES = 8_000_000
COPIES = 10  # one document in so many is an exact copy, and one a near copy
WARM_MB = 1.0
CLEAN = CleanSpec(fix_mojibake=True, repetition=RepetitionSpec(), c4=C4Spec(), fineweb=FineWebSpec())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=200)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has datatrove")
    parser.add_argument(
        "--peer-mb", type=float, default=2.0, help="of the corpus, for the peer; its speed does not depend on it"
    )
    parser.add_argument("--run", nargs=4, metavar=("CORPUS", "WARM", "TOKENIZER", "OUT"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        run_chain(*(Path(part) for part in asked.run))
        return
    print(
        f"{datetime.now(UTC):%Y-%m-%d} on {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(compare(Path(folder), asked)))


def compare(folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    passages = list(base_passages())
    whole, quarter, warm = (write_corpus(folder / name, passages, mb) for name, mb in
                            (("whole", asked.mb), ("quarter", asked.mb / 4), ("warm", min(WARM_MB, asked.mb / 4))))  # fmt: skip
    tokenizer = make_tokenizer(folder / "tokenizer", passages)
    fast = measure(folder, whole, warm, tokenizer, asked.cores)
    slow = measure(folder, whole, warm, tokenizer, 1) if asked.cores > 1 else fast
    small = measure(folder, quarter, warm, tokenizer, asked.cores)
    for name, run in ((f"{asked.cores} cores", fast), ("1 core", slow), ("a quarter", small)):
        steps = "  ".join(f"{step} {seconds:.1f}" for step, seconds in run["steps"].items())
        print(f"{name:>10}: {run['mb']:.0f} MB in {run['seconds']:.1f} s, {run['rate']:.3f} MB/s a core  ({steps})")
    peer = peer_rate(asked.peer_python, whole, tokenizer, asked.peer_mb)
    return {
        "mb_per_s_core": round(fast["rate"], 3),
        "peer_mb_per_s_core": peer and round(peer, 4),
        "ratio": peer and round(fast["rate"] / peer, 1),
        "scaling": round(slow["seconds"] / fast["seconds"], 2),
        "peak_mb": fast["peak_mb"],
        "peak_mb_50": small["peak_mb"],
        "rows_in": fast["rows_in"],
        "rows_out": fast["rows_out"],
        "rejects": fast["rejects"],
    }


def base_passages() -> Iterator[str]:
    """Passages of 1 to 4 KB, cut between paragraphs."""
    for text in base_texts():
        passage = ""
        for paragraph in paragraphs(text):
            passage += paragraph + "\n\n"
            if len(passage) > 1000:
                yield passage.strip()
                passage = ""


def paragraphs(text: str) -> Iterator[str]:
    """As web pages have them: a paragraph is a line, and a long one is cut behind a sentence."""
    for block in text.replace("\r\n", "\n").split("\n\n"):
        lines = block.split("\n")
        if len(lines) > 1 and all(40 < len(line) < 100 for line in lines[:-1]):  # wrapped by an editor
            block = " ".join(lines)
        yield from LONG.sub("\\1\n", block).split("\n")


def base_texts() -> Iterator[str]:
    for pattern in TEXTS:
        for path in sorted((SHARED / "text").glob(pattern)):
            yield path.read_text(errors="replace")


def write_corpus(folder: Path, passages: list[str], megabytes: float) -> Path:
    """JSON Lines files of FILE_BYTES. The same for the same passages."""
    folder.mkdir(parents=True)
    draw = random.Random(0)
    texts: list[str] = []
    size = written = number = 0
    stream = None
    while size < megabytes * 1e6:
        text = next_text(draw, passages, texts)
        texts.append(text)
        if stream is None or written > FILE_BYTES:
            stream = (folder / f"part-{number:04d}.jsonl").open("w")
            number, written = number + 1, 0
        line = json.dumps({"text": text}, ensure_ascii=False) + "\n"
        written += stream.write(line)
        size += len(text.encode(errors="replace"))
        if len(texts) > 5000:
            del texts[:2500]
    assert stream is not None
    stream.close()
    return folder


def next_text(draw: random.Random, passages: list[str], earlier: list[str]) -> str:
    kind = draw.randrange(COPIES)
    if earlier and kind == 0:
        return draw.choice(earlier)
    if earlier and kind == 1:
        words = draw.choice(earlier).split(" ")
        for place in draw.sample(range(len(words)), max(1, len(words) // 200)):
            words[place] = "changed"
        return " ".join(words)
    return "\n\n".join(draw.choice(passages) for _ in range(draw.randint(1, 3)))


def make_tokenizer(folder: Path, passages: list[str]) -> Path:
    from spark_jobs.tokenizer import train_tokenizer

    folder.mkdir()
    train_tokenizer(iter(random.Random(1).sample(passages, min(2000, len(passages)))), 8192).save(
        str(folder / "tokenizer.json")
    )
    return folder


def measure(folder: Path, corpus: Path, warm: Path, tokenizer: Path, cores: int) -> dict[str, Any]:
    """One run in a process of its own; peak is resident memory of it and its descendants, in MiB."""
    import psutil

    from tasks.usage import Meter

    out = folder / f"out-{corpus.name}-{cores}"
    argv = [sys.executable, "-m", "benchmarks.corpus", "--run", str(corpus), str(warm), str(tokenizer), str(out)]
    environment = os.environ | {"NIGHTMILL_SPARK_MASTER": f"local[{cores}]", "NIGHTMILL_SCRATCH": str(folder)}
    # The kernel keeps all of it, JVM and Python, on `cores` cores: local[1] alone would still use a second one.
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    child = subprocess.Popen(
        argv,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, allowed),  # noqa: PLW1509  no threads here yet
    )
    process = psutil.Process(child.pid)
    with Meter(lambda: [process, *process.children(recursive=True)] if process.is_running() else []) as meter:
        printed, _ = child.communicate()
    if child.returncode:
        raise SystemExit(f"the chain failed with {child.returncode}")
    run = json.loads(printed.splitlines()[-1])
    return run | {"rate": run["mb"] / run["seconds"] / cores, "peak_mb": meter.usage.peak_mb}


def run_chain(corpus: Path, warm: Path, tokenizer: Path, out: Path) -> None:
    from spark_jobs.session import spark_session

    spark = spark_session()
    chain(spark, warm, tokenizer, out / "warm")
    started = time.monotonic()
    steps, handles = chain(spark, corpus, tokenizer, out / "timed")
    seconds = time.monotonic() - started
    spark.stop()
    rejects = {
        f"{handle.step}.{reason[7:]}": n
        for handle in handles
        for reason, n in handle.counts.items()
        if reason.startswith("reject.")
    }
    size = sum(path.stat().st_size for path in corpus.iterdir())
    facts = {"mb": size / 1e6, "seconds": seconds, "steps": steps, "rejects": rejects,
             "rows_in": handles[0].counts["in"], "rows_out": handles[-1].num_rows}  # fmt: skip
    print(json.dumps(facts))


def chain(spark: SparkSession, corpus: Path, tokenizer: Path, root: Path) -> tuple[dict[str, float], list[Documents]]:
    """Seconds of each step, and the tables of documents."""
    seconds: dict[str, float] = {}

    def step(kind: type[Handle], job: str, spec: Any, **inputs: Handle) -> Any:
        started = time.monotonic()
        handle = run_job(spark, root, kind, job, spec, "n", inputs)
        seconds[job] = round(time.monotonic() - started, 2)
        return handle

    raw = step(Documents, "ingest", IngestSpec(sources=(SourceSpec(kind="jsonl", path=str(corpus)),)))
    clean = step(Documents, "clean", CLEAN, documents=raw)
    unique = step(Documents, "dedup", DedupSpec(), documents=clean)
    files = step(TokenizerFiles, "tokenizer", TokenizerSpec(folder=str(tokenizer)))
    step(TokenShards, "tokenize", TokenizeSpec(seq_len=1024), documents=unique, tokenizer=files)
    return seconds, [raw, clean, unique]


def peer_rate(python: str, corpus: Path, tokenizer: Path, megabytes: float) -> float | None:
    """MB/s a core of datatrove, one process, start-up not counted; None if `python` has no datatrove."""
    if not Path(python).is_file():
        print(f"peer: not measured: {python} does not exist")
        return None
    script = Path(__file__).parent / "corpus_peer.py"
    ran = subprocess.run(
        [python, str(script), str(corpus), str(tokenizer / "tokenizer.json"), str(megabytes)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ran.returncode:
        print(f"peer: not measured: {(ran.stderr.strip().splitlines() or ['?'])[-1][:200]}")
        return None
    facts = json.loads(ran.stdout.splitlines()[-1])
    print(f"      peer: {facts['mb']:.1f} MB in {facts['seconds']:.1f} s, one process, datatrove {facts['version']}")
    return float(facts["mb"] / facts["seconds"])


if __name__ == "__main__":
    main()
