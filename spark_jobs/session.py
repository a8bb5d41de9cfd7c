"""The Spark session of this machine. Where it runs and how big it is come from the environment, never from a spec.

NIGHTMILL_SPARK_MASTER   default local[*,4]: all cores; a task is given up when it was lost four times, as on a cluster;
                         spark://host:7077, k8s://https://... (docs/operating.md)
NIGHTMILL_SPARK_DRIVER_HOST  how executors reach this machine, default its name; a pod's IP on Kubernetes
SPARK_CONF_DIR           Spark's own: folder of a spark-defaults.conf, for what is not set here (executors, their image, cores)
NIGHTMILL_SPARK_MEMORY   default 2g; heap of the driver (local) and of each executor
NIGHTMILL_JAVA_HOME      default: see `java.find_java`
NIGHTMILL_SPARK_PARTITIONS  default 2 on one machine, Spark's own 200 on a cluster; partitions of a shuffle
NIGHTMILL_SPARK_CDS      archive of loaded classes, made once by `python -m spark_jobs.session --make-cds PATH`;
                         halves the start of the JVM
NIGHTMILL_SCRATCH        folder for shuffle files, default the system's temporary folder
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from spark_jobs.java import find_java

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

LOCAL_PARTITIONS = 2  # of a shuffle on one machine; adaptive execution may lower it, results never depend on it


def spark_session() -> SparkSession:
    """Start (or get) the session. Raises: RequestError if there is no Java."""
    from pyspark.sql import SparkSession

    _prepare_environment([])
    builder = SparkSession.builder.appName("nightmill")
    for name, value in _settings().items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    return session


def _master() -> str:
    return os.environ.get("NIGHTMILL_SPARK_MASTER", "local[*,4]")


def _scratch() -> str:
    return os.environ.get("NIGHTMILL_SCRATCH", tempfile.gettempdir())


def _settings() -> dict[str, str]:
    memory = os.environ.get("NIGHTMILL_SPARK_MEMORY", "2g")
    settings = {
        "spark.master": _master(),
        "spark.driver.memory": memory,
        "spark.executor.memory": memory,
        "spark.local.dir": _scratch(),
        "spark.sql.warehouse.dir": str(Path(_scratch()) / "spark-warehouse"),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.adaptive.enabled": "true",
        # v2 of this algorithm interleaves the files of two attempts of one task
        "spark.hadoop.mapreduce.fileoutputcommitter.algorithm.version": "1",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "4096",
        "spark.sql.execution.arrow.maxBytesPerBatch": str(
            16 << 20
        ),  # documents differ in length: bound bytes, not rows
        "spark.sql.execution.pyspark.udf.faulthandler.enabled": "true",
        "spark.python.worker.reuse": "true",
        "spark.python.daemon.module": "spark_jobs.daemon",
        # a row group never outgrows its file (tables.FILE_BYTES), so memory pressure cannot move its border
        "spark.hadoop.parquet.block.size": str(256 << 20),
    }
    if _master().startswith("local"):
        settings |= {
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.sql.shuffle.partitions": str(LOCAL_PARTITIONS),
            "spark.default.parallelism": str(LOCAL_PARTITIONS),
            "spark.shuffle.compress": "false",
        }
    else:
        settings["spark.executorEnv.TOKENIZERS_PARALLELISM"] = "false"  # one Spark task is one core
        if host := os.environ.get("NIGHTMILL_SPARK_DRIVER_HOST"):
            settings["spark.driver.host"] = host
    partitions = os.environ.get("NIGHTMILL_SPARK_PARTITIONS")
    if partitions:
        settings |= {"spark.sql.shuffle.partitions": partitions, "spark.default.parallelism": partitions}
    return settings


def _prepare_environment(extra_java_options: list[str]) -> None:
    """Spark's launcher scripts read these; they must be set before the JVM starts."""
    os.environ["JAVA_HOME"] = str(find_java(Path(_scratch()) / "nightmill-java"))
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one Spark task is one core
    options = ["-Xshare:auto", "-Xlog:cds=off", *extra_java_options]
    if _master().startswith("local"):
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        # small jobs end before the second compiler pays; on few cores the parallel collector takes less of them than G1
        options.append("-XX:TieredStopAtLevel=1 -XX:+UseParallelGC")
    archive = os.environ.get("NIGHTMILL_SPARK_CDS", "")
    if archive and Path(archive).is_file():
        options.append(f"-XX:SharedArchiveFile={archive}")
    os.environ["SPARK_SUBMIT_OPTS"] = " ".join(options)
    os.environ["SPARK_LAUNCHER_OPTS"] = "-Xshare:auto -XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


def make_cds(archive: Path) -> None:
    """Run a small set of jobs like the real ones and keep the classes they loaded in `archive` (about 100 MB)."""
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as F

    os.environ.pop("NIGHTMILL_SPARK_CDS", None)
    archive.parent.mkdir(parents=True, exist_ok=True)
    partial = archive.with_name(f"{archive.name}.{os.getpid()}")
    _prepare_environment([f"-XX:ArchiveClassesAtExit={partial}"])
    builder = SparkSession.builder.appName("nightmill-cds")
    for name, value in _settings().items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    with tempfile.TemporaryDirectory() as folder:
        rows = spark.range(100).select(F.col("id"), F.sha1(F.col("id").cast("string")).alias("doc_id"))
        for table in ("parquet", "orc"):
            place = f"{folder}/{table}"
            ordered = rows.repartitionById(1, F.lit(0)).sortWithinPartitions("doc_id")
            ordered.mapInArrow(_same, "id long, doc_id string").write.format(table).save(place)
            back = spark.read.format(table).load(place)
            back.join(back.groupBy("doc_id").agg(F.count("*").alias("n")), "doc_id", how="inner").count()
            back.join(F.broadcast(back.limit(3)), "doc_id", how="left_anti").collect()
    gateway = spark.sparkContext._gateway
    spark.stop()
    gateway.shutdown()
    gateway.proc.stdin.close()  # the JVM leaves by itself when this closes, and only then writes the archive
    gateway.proc.wait(timeout=300)
    partial.replace(archive)


def _same(batches):  # type: ignore[no-untyped-def]
    yield from batches


def main() -> None:
    parser = argparse.ArgumentParser(description=make_cds.__doc__)
    parser.add_argument("--make-cds", type=Path, required=True, metavar="PATH", help="where to write the archive")
    make_cds(parser.parse_args().make_cds.absolute())


if __name__ == "__main__":
    main()
