"""The model engine as an application: imports torch and transformers once, then forks a child for each job.

    python -m training.run                     request lines on stdin, answers on NIGHTMILL_ANSWER_FD
    python -m training.run --request FILE      one request by hand, its answer printed

A job starts in a fresh process (a crash or a kill loses that job only) without paying the imports again: they take
about 15 s on two slow cores, a fork 10 ms. The parent never runs a torch operation, because thread pools do not
survive a fork.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's pool would start threads at import
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from spark_jobs.errors import JobCrashed, RequestError
from spark_jobs.requests import Outcome, Request, answer, failure_of, send
from training.processes import die_with_parent, signal_name, work_and_exit

LIBRARIES = (
    "pyarrow.orc",
    "pyarrow.parquet",
    "safetensors.torch",
    "tokenizers",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.launcher.api",
    "torch.utils.tensorboard",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.generation.utils",
)


FINETUNE_JOBS = ("finetune", "export-task", "score-task")
JOBS = {  # name -> module whose `run` (or what is named) does it, imported when it is asked for
    "train": "training.pretrain.main",
    "export": "training.export",
    "calibrate": "training.compress.calibrate",
    "compress": "training.compress.job",
    "measure": "training.compress.measure",
    "choose": "training.compress.choose",
    "evaluate": "training.evaluate.job",
    "gate": "training.evaluate.gate_job",
    "report-evaluation": "training.evaluate.report_job",
    "import-model": "training.finetune.import_model",
    "finetune": "training.finetune.main",
    "export-task": "training.finetune.export",
    "score-task": "training.finetune.score",
    "make-student": "training.distill.student",
    "compare-tasks": "training.finetune.compare",
    "score-ensemble": "training.finetune.ensemble",
    "average-models": "training.finetune.ensemble:average_models",
    "augment": "training.augment.job",
    "generate": "training.generate",
    "answer-benchmark": "training.benchmarks.answer_job",
    "measure-overlap": "training.benchmarks.overlap_job",
    "score-benchmarks": "training.benchmarks.score_job",
    "watch-reference": "training.watch.snapshot",
}


def run_job(request: Request) -> Outcome:
    """Do one job. What its module imports in turn was imported at start."""
    if request.job not in JOBS:
        raise RequestError(f"job {request.job!r} is not one of {', '.join(JOBS)}")
    module, _, name = JOBS[request.job].partition(":")
    outcome: Outcome = getattr(importlib.import_module(module), name or "run")(request)
    return outcome


def import_libraries() -> None:
    """Load what jobs need, before the first fork, without running an operation."""
    for name in LIBRARIES:
        importlib.import_module(name)


def import_for(job: str) -> None:
    """What the jobs of a fine-tuning import in turn, once before the fork: a search runs three of them for each trial. Where it
    cannot be imported, the job says so.
    """
    if job in FINETUNE_JOBS:
        with contextlib.suppress(ImportError):
            importlib.import_module("training.finetune.main")


def serve_jobs() -> None:
    """Answer request lines until stdin closes, one forked child a job."""
    for line in iter(sys.stdin.readline, ""):
        if line.strip():
            kind, body = _in_child(line)
            send(kind, body)


def _in_child(line: str) -> tuple[str, dict[str, object]]:
    """Run the request in a child and return its answer. A child that ends without one was killed: JobCrashed."""
    reply = os.memfd_create("answer")
    parent = os.getpid()
    with contextlib.suppress(ValueError):  # a line that is no request is refused in the child, as any bad request
        import_for(Request.model_validate_json(line).job)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        work_and_exit(lambda: _job_process(line, reply, parent))
    with contextlib.suppress(PermissionError):
        os.setpgid(child, child)  # the child does it too: whoever comes first
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # whatever the job left behind
    text = os.pread(reply, os.fstat(reply).st_size, 0).decode()
    os.close(reply)
    if text:
        ((kind, body),) = json.loads(text).items()
        return kind, body
    how = f"killed by {signal_name(os.WTERMSIG(status))}" if os.WIFSIGNALED(status) else "ended"
    job = json.loads(line).get("job", "?")
    return "failure", failure_of(JobCrashed(f"job {job} was {how} before it answered; run it again")).model_dump()


def _job_process(line: str, reply: int, parent: int) -> int:
    os.setpgid(0, 0)
    die_with_parent(parent)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    kind, body = answer(run_job, line)
    os.write(reply, json.dumps({kind: body}).encode())
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training.run", description=__doc__.splitlines()[0])
    parser.add_argument("--request", type=Path, help="file with one request; without it requests come on stdin")
    arguments = parser.parse_args()
    import_libraries()
    if arguments.request is None:
        serve_jobs()
        return 0
    kind, body = answer(run_job, arguments.request.read_text())
    sys.stdout.write(json.dumps({kind: body}, indent=1) + "\n")
    return 0 if kind == "outcome" else 1


if __name__ == "__main__":
    raise SystemExit(main())
