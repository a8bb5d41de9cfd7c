"""Specs and deployments hold no secrets; where a run needs one, the deployment names a block and the worker reads it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, SecretStr

from flows.deploy import apply_file, prefect_file, read_prefect_file
from flows.distill_specs import DistillRunSpec
from flows.evaluate_specs import EvaluateRunSpec
from flows.finetune_specs import FinetuneRunSpec
from flows.specs import NightlySpec
from flows.tune_specs import TuneRunSpec
from spark_jobs.errors import RequestError
from tasks.redaction import SECRET_NAME

SPECS = [NightlySpec, FinetuneRunSpec, TuneRunSpec, DistillRunSpec, EvaluateRunSpec]
REFERENCE = "{{ prefect.blocks.secret.teacher-key }}"


def names(schema: Any) -> Iterator[str]:
    """Of all properties, at any depth."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        schema = schema.values()
    if not isinstance(schema, str | int | float | bool | None):
        for child in schema:
            yield from names(child)


@pytest.mark.parametrize("spec", SPECS)
def test_specs_have_no_setting_for_a_secret(spec: type[BaseModel]):
    """They are shown in the Prefect UI, kept in MLflow and written into manifests."""
    schema = spec.model_json_schema()
    found = {
        name for name in names(schema) if SECRET_NAME.search(name) or re.search("password|secret|credential", name)
    }
    assert found <= {"key"}  # of an index entry, if any
    assert "format': 'password'" not in str(schema)


@pytest.fixture
def tree() -> dict:
    return yaml.safe_load(prefect_file().read_text())


def with_variable(tree: dict, value: str) -> dict:
    entry = next(entry for entry in tree["deployments"] if entry["name"] == "distill")
    entry["work_pool"] = {"name": "gpu", "job_variables": {"env": {"NIGHTMILL_TEACHER_KEY": value}}}
    return tree


def test_a_secret_written_into_the_file_is_refused_naming_the_way(tmp_path, tree):
    path = tmp_path / "prefect.yaml"
    path.write_text(yaml.safe_dump(with_variable(tree, "sk-0123456789")))
    with pytest.raises(RequestError, match=r"distill: .*NIGHTMILL_TEACHER_KEY.*prefect\.blocks\.secret") as told:
        read_prefect_file(path)
    assert "0123456789" not in str(told.value)


def test_a_secret_named_by_its_block_is_read_when_the_run_starts_and_not_before(servers_home, tmp_path, tree):
    from prefect.blocks.system import Secret
    from prefect.client.orchestration import SyncPrefectClient, get_client
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
    from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

    _, servers = servers_home
    path = tmp_path / "prefect.yaml"
    path.write_text(yaml.safe_dump(with_variable(tree, REFERENCE)))
    with temporary_settings({PREFECT_API_URL: servers.api_url, PREFECT_API_AUTH_STRING: servers.auth}):
        Secret(value=SecretStr("plum-and-pear")).save("teacher-key", overwrite=True, _sync=True)
        apply_file(path, servers.api_url, servers.auth)
        with SyncPrefectClient(servers.api_url, auth_string=servers.auth) as client:
            kept = client.read_deployment_by_name("distill/distill").job_variables
            shown = client.read_block_document_by_name("teacher-key", "secret", include_secrets=False)

        async def as_the_worker_does() -> ProcessJobConfiguration:
            async with get_client() as client:
                template = ProcessWorker.get_default_base_job_template()
                return await ProcessJobConfiguration.from_template_and_values(template, kept, client=client)

        started = asyncio.run(as_the_worker_does())
    apply_file(prefect_file(), servers.api_url, servers.auth)
    assert kept == {"env": {"NIGHTMILL_TEACHER_KEY": REFERENCE}}
    assert "plum" not in str(shown.data)
    assert started.env["NIGHTMILL_TEACHER_KEY"] == "plum-and-pear"
