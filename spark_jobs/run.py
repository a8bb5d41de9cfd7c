"""Entry point of every data job: one Spark session answers all requests of a night.

python -m spark_jobs.run                    requests as JSON lines on stdin (what the step engine does)
python -m spark_jobs.run --request FILE     one request, by hand; prints the outcome
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from spark_jobs import label_spec, specs
from spark_jobs.errors import RequestError
from spark_jobs.job import Job
from spark_jobs.manifests import Frozen
from spark_jobs.requests import Outcome, Request, serve
from spark_jobs.session import spark_session

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

JAVA_DIED = 70  # exit code
JobFunction = Callable[[Job, Any], Outcome]


def jobs() -> dict[str, tuple[type[Frozen], JobFunction]]:
    """Job name -> (spec type, function)."""
    from spark_jobs import (
        clean,
        decontaminate,
        dedup,
        expectations,
        ingest,
        labelled,
        quality_training,
        thresholds,
        tokenization,
        tokenizer,
    )

    return {
        "ingest": (specs.IngestSpec, ingest.ingest),
        "classifier": (specs.ClassifierJobSpec, quality_training.train_classifier),
        "clean": (specs.CleanSpec, clean.clean),
        "dedup": (specs.DedupSpec, dedup.dedup),
        "thresholds": (specs.CleanSpec, thresholds.thresholds),
        "decontaminate": (specs.DecontaminateJobSpec, decontaminate.decontaminate),
        "check-documents": (specs.CheckSpec, expectations.check_documents),
        "tokenizer": (specs.TokenizerSpec, tokenizer.make_tokenizer),
        "tokenize": (specs.TokenizeSpec, tokenization.tokenize),
        "label": (label_spec.LabelJobSpec, labelled.label),
        "check-tokens": (specs.CheckSpec, expectations.check_tokens),
    }


def run_request(spark: SparkSession, request: Request) -> Outcome:
    """Run one job in an emptied `request.out`. Raises: RequestError for an unknown job or a spec that does not fit."""
    table = jobs()
    if request.job not in table:
        raise RequestError(f"job {request.job!r} is unknown; wanted one of {', '.join(table)}")
    spec_type, function = table[request.job]
    try:
        spec = spec_type.model_validate(request.spec)
    except ValidationError as err:
        raise RequestError(f"job {request.job}: {err}") from err
    out = Path(request.out)
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.iterdir():  # of an attempt that was killed: the jobs start from their inputs
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    return function(Job(spark, request.job, request.inputs, out, request.night), spec)


def or_end_with_java(handle: Callable[[Request], Outcome], spark: SparkSession) -> Callable[[Request], Outcome]:
    """`handle`, but where its error came of a JVM that was killed this process ends too: a crash, which is retried in a new one.

    As an answer it would be a defect of the job, and every later request would fail here alike.
    """

    def handled(request: Request) -> Outcome:
        try:
            return handle(request)
        except Exception:
            if _is_stopped(spark):
                traceback.print_exc()
                print(f"job {request.job}: its JVM was killed", file=sys.stderr, flush=True)  # noqa: T201
                os._exit(JAVA_DIED)
            raise

    return handled


def _is_stopped(spark: SparkSession) -> bool:
    """Whether the JVM is gone, or stops its context as SIGTERM asked it to."""
    try:
        return bool(spark.sparkContext._jsc.sc().isStopped())
    except Exception:  # noqa: BLE001  py4j's errors and the system's: nobody answers
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--request", type=Path, help="file with one request as JSON")
    asked = parser.parse_args()
    spark = spark_session()
    handle = or_end_with_java(partial(run_request, spark), spark)
    if asked.request:
        outcome = handle(Request.model_validate_json(asked.request.read_text()))
        sys.stdout.write(outcome.model_dump_json(indent=1) + "\n")
    else:
        serve(handle)


if __name__ == "__main__":
    main()
