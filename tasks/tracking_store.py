"""The MLflow side of tracking: keys to run ids, records to calls."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.locks import is_running

if TYPE_CHECKING:
    from mlflow import MlflowClient

Record = dict[str, Any]

MAX_BATCH = 1000  # MLflow's limit of metrics a call
MAX_PARAM = 500
HOPELESS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST")


class Store:
    """The MLflow side: keys to run ids, records to calls. Raises whatever MLflow raises."""

    def __init__(self, uri: str, pipeline: str, artifacts: Path) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        from mlflow import MlflowClient

        self.client: MlflowClient = MlflowClient(uri, registry_uri=uri)
        self.experiment_id = experiment_of(self.client, pipeline, artifacts)
        self._runs: dict[str, str] = {}
        end_runs_of_the_dead(self.client, self.experiment_id)

    def apply(self, records: list[Record]) -> None:
        """Deliver in order, removing what is done; neighbouring metrics of a run go in one call."""
        while records:
            if records[0]["do"] == "metrics":
                self._log_metrics(records)
                continue
            self._deliver(records[0])
            records.pop(0)

    def _deliver(self, record: Record) -> None:
        """One record that is not a metric. What MLflow will never accept is dropped with a message."""
        from mlflow.exceptions import MlflowException

        if record["do"] == "reach":
            record["event"].set()
            return
        try:
            DELIVER[record["do"]](self, record)
        except (MlflowException, FileNotFoundError) as error:
            if isinstance(error, MlflowException) and error.error_code not in HOPELESS:
                raise
            print(f"tracking: {record['do']} of {record['key']} dropped: {str(error)[:200]}", file=sys.stderr)  # noqa: T201

    def run_id(self, key: str) -> str | None:
        if key not in self._runs:
            found = self.client.search_runs([self.experiment_id], f"tags.`nightmill.key` = '{key}'", max_results=1)
            if found:
                self._runs[key] = found[0].info.run_id
        return self._runs.get(key)

    def start(self, record: Record) -> None:
        """Make the run or, found again, continue it."""
        tags = record.get("tags", {}) | {"nightmill.key": record["key"]}
        run_id = self.run_id(record["key"])
        if run_id is None:
            parent = record.get("parent")
            if parent:
                tags["mlflow.parentRunId"] = self._run_of(parent)
            run = self.client.create_run(self.experiment_id, record["at"], tags, record["name"])
            run_id = self._runs[record["key"]] = run.info.run_id
        elif not record.get("keep"):
            self.client.update_run(run_id, status="RUNNING")
            self.client.log_batch(run_id, tags=_tags(tags))
        self._log_params(run_id, record.get("params", {}))

    def _run_of(self, key: str) -> str:
        """The run's id; a run whose start was lost is made bare, so that what follows has a place."""
        if self.run_id(key) is None:
            self.start({"do": "start", "key": key, "name": key, "at": now_ms()})
        return self._runs[key]

    def _log_params(self, run_id: str, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        if params:
            self.client.log_batch(run_id, params=[Param(k, v[:MAX_PARAM]) for k, v in list(params.items())[:100]])

    def _log_metrics(self, records: list[Record]) -> None:
        from mlflow.entities import Metric

        key = records[0]["key"]
        metrics: list[Metric] = []
        taken = 0
        for record in records:
            values = record.get("values", {})
            if record["do"] != "metrics" or record["key"] != key or len(metrics) + len(values) > MAX_BATCH:
                break
            metrics += [
                Metric(name, float(value), record["at"], record.get("step", 0)) for name, value in values.items()
            ]
            taken += 1
        self.client.log_batch(self._run_of(key), metrics=metrics)
        del records[:taken]

    def add_inputs(self, record: Record) -> None:
        """Outputs of other steps as datasets. MLflow's own digest is short and partial: ours is the tag."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        datasets = [
            DatasetInput(
                Dataset(
                    name=entry["name"], digest=entry["digest"][:32], source_type="local",
                    source=json.dumps({"uri": entry["uri"]}), profile=json.dumps({"num_rows": entry["num_rows"]}),
                ),
                [
                    InputTag("mlflow.data.context", entry["role"]),
                    InputTag("nightmill.address", entry["address"]),
                    InputTag("nightmill.manifest_sha256", entry["digest"]),
                ],
            )
            for entry in record["datasets"]
        ]  # fmt: skip
        self.client.log_inputs(self._run_of(record["key"]), datasets)

    def add_artifacts(self, record: Record) -> None:
        path = Path(record["path"])
        run_id = self._run_of(record["key"])
        if path.is_dir():
            self.client.log_artifacts(run_id, str(path), record.get("to") or None)
        elif path.is_file():
            self.client.log_artifact(run_id, str(path), record.get("to") or None)

    def mark_gap(self, record: Record) -> None:
        self.client.set_tag(self._run_of(record["key"]), "nightmill.telemetry_gap", "delivered late")

    def end(self, record: Record) -> None:
        run_id = self._run_of(record["key"])
        self.client.log_batch(run_id, tags=_tags(record.get("tags", {})))
        self.client.set_terminated(run_id, record["status"], record["at"])


DELIVER = {
    "start": Store.start,
    "inputs": Store.add_inputs,
    "artifacts": Store.add_artifacts,
    "gap": Store.mark_gap,
    "end": Store.end,
}


def experiment_of(client: MlflowClient, pipeline: str, artifacts: Path) -> str:
    """Id of the pipeline's experiment, made if need be; its files lie under `artifacts`, with or without a server."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(pipeline)
    if found is None:
        artifacts.mkdir(parents=True, exist_ok=True)
        try:
            return str(client.create_experiment(pipeline, artifact_location=artifacts.as_uri()))
        except MlflowException:  # another process was faster
            found = client.get_experiment_by_name(pipeline)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def end_runs_of_the_dead(client: MlflowClient, experiment_id: str) -> list[str]:
    """Runs that say RUNNING though their process on this machine is gone become KILLED. Returns their ids."""
    ended = []
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
        owner = run.data.tags.get("nightmill.owner", "").split(":")
        if len(owner) == 3 and owner[0] == socket.gethostname() and not is_running(int(owner[1]), float(owner[2])):
            client.set_terminated(run.info.run_id, "KILLED")
            ended.append(run.info.run_id)
    return ended


def _tags(tags: dict[str, str]) -> list[Any]:
    from mlflow.entities import RunTag

    return [RunTag(name, value) for name, value in tags.items()]


def now_ms() -> int:
    """Milliseconds since the epoch, as MLflow counts."""
    return int(time.time() * 1000)
