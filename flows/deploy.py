"""Apply `prefect.yaml` to a Prefect server so that the server ends up as the file says, and say what that changed.

Prefect's own `deploy` drops keys it does not know and keeps schedules that left the file (PrefectHQ/prefect#23097).
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

import yaml
from pydantic import Field, ValidationError

from flows.spec_files import validated
from spark_jobs.errors import RequestError
from spark_jobs.manifests import Frozen
from tasks.redaction import SECRET_NAME

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

BLOCK_REFERENCE = re.compile(r"\{\{\s*prefect\.blocks\.[\w.-]+\s*\}\}")
TAG = "nightmill"  # on every deployment of ours, so that those which left the file are found


class PoolEntry(Frozen):
    type: Literal["process"] = "process"
    concurrency_limit: int = Field(ge=1)
    description: str = ""


class Definitions(Frozen):
    """Ours: `pools`. The others only hold YAML anchors."""

    pools: dict[str, PoolEntry]
    cpu: Any = None
    gpu: Any = None


class ScheduleEntry(Frozen):
    cron: str
    timezone: str
    slug: str
    active: bool = True
    parameters: dict[str, Any] = Field(default_factory=dict)


class ConcurrencyEntry(Frozen):
    limit: int = Field(ge=1)
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"] = "ENQUEUE"


class PoolReference(Frozen):
    name: str
    job_variables: dict[str, Any] = Field(default_factory=dict)


class DeploymentEntry(Frozen):
    name: str
    entrypoint: str
    description: str = ""
    tags: tuple[str, ...] = ()
    parameters: dict[str, Any] = Field(default_factory=dict)
    enforce_parameter_schema: bool = True
    paused: bool = False
    schedules: tuple[ScheduleEntry, ...] = ()
    concurrency_limit: ConcurrencyEntry | None = None
    work_pool: PoolReference


class PrefectFile(Frozen):
    name: str
    prefect_version: str = Field(alias="prefect-version")
    pull: tuple[Any, ...] = Field((), max_length=0)
    definitions: Definitions
    deployments: tuple[DeploymentEntry, ...]


class Applied(Frozen):
    """A line of the table that `nightmill deploy` prints."""

    kind: Literal["pool", "deployment", "schedule", "automation"]
    name: str
    state: Literal["created", "updated", "unchanged", "removed", "skipped"]
    changed: tuple[str, ...] = ()


def prefect_file() -> Path:
    """`prefect.yaml` of the checkout, or the copy inside an installed package."""
    packaged = Path(__file__).parent / "prefect.yaml"
    return packaged if packaged.is_file() else Path(__file__).parent.parent / "prefect.yaml"


def read_prefect_file(path: Path) -> PrefectFile:
    """Raises: RequestError naming the key or value that is wrong."""
    try:
        tree = yaml.safe_load(path.read_text())
        entries = PrefectFile.model_validate(tree)
    except yaml.YAMLError as err:
        raise RequestError(f"{path}: not YAML: {err}") from err
    except ValidationError as err:
        raise RequestError("\n".join(f"{path}: {_explain(problem)}" for problem in err.errors())) from err
    for entry in entries.deployments:
        if entry.work_pool.name not in entries.definitions.pools:
            known = ", ".join(entries.definitions.pools)
            raise RequestError(
                f"{path}: deployment {entry.name}: no work pool {entry.work_pool.name!r} in definitions.pools, only {known}"
            )
        _refuse_secrets(path, entry)
    return entries


def _refuse_secrets(path: Path, entry: DeploymentEntry) -> None:
    """Job variables stand in the file and, readable, on the server; the worker puts a block's value in place of its name."""
    for name, value in (entry.work_pool.job_variables.get("env") or {}).items():
        if SECRET_NAME.search(name) and not BLOCK_REFERENCE.fullmatch(str(value)):
            raise RequestError(
                f"{path}: deployment {entry.name}: {name} looks like a secret and is written out; keep it in a Secret block and "
                f"write {{{{ prefect.blocks.secret.NAME }}}}"
            )


def read_templates(folder: Path | None, pools: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Base job templates of Kubernetes, `<pool>.json` in the folder; none without a folder: then pools start processes.

    Raises: RequestError naming the file that is missing or wrong.
    """
    if folder is None:
        return {}
    templates = {}
    for pool in pools:
        path = folder / f"{pool}.json"
        try:
            templates[pool] = json.loads(path.read_text())
        except OSError as err:
            raise RequestError(f"{path}: the template of pool {pool} cannot be read ({err.strerror})") from err
        except json.JSONDecodeError as err:
            raise RequestError(f"{path}: not JSON: {err}") from err
        if set(templates[pool]) != {"variables", "job_configuration"}:
            raise RequestError(
                f"{path}: a base job template has variables and job_configuration, this one {set(templates[pool])}"
            )
    return templates


def apply_file(path: Path, api_url: str, auth: str = "", pools_folder: Path | None = None) -> list[Applied]:
    """Make the server's pools, deployments and schedules equal to the file. Doing it twice changes nothing.

    pools_folder: the pools start Jobs on Kubernetes, by the base job templates of that folder.
    """
    from prefect.client.orchestration import SyncPrefectClient

    entries = read_prefect_file(path)
    templates = read_templates(pools_folder, entries.definitions.pools)
    planned = [(entry, _load_flow(entry)) for entry in entries.deployments]
    wanted = [(entry, flow.name, _wanted(entry, flow)) for entry, flow in planned]  # whatever is wrong is found before
    with SyncPrefectClient(api_url, auth_string=auth or None) as client:  # anything is changed
        pools = entries.definitions.pools.items()
        lines = [_apply_pool(client, name, pool, templates.get(name)) for name, pool in pools]
        for entry, flow_name, fields in wanted:
            lines += _apply_deployment(client, entry, flow_name, fields)
        return lines + _remove_left_over_schedules(client, {entry.name for entry in entries.deployments})


def _apply_pool(client: SyncPrefectClient, name: str, pool: PoolEntry, template: dict[str, Any] | None) -> Applied:
    """template: of Jobs on Kubernetes; None for processes, whose template is Prefect's own and left as it is on the server."""
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    kind = pool.type if template is None else "kubernetes"
    wanted: dict[str, Any] = {"concurrency_limit": pool.concurrency_limit, "description": pool.description}
    if template is not None:
        wanted["base_job_template"] = template
    try:
        there = client.read_work_pool(name)
    except ObjectNotFound:
        fields = {"base_job_template": ProcessWorker.get_default_base_job_template()} | wanted
        client.create_work_pool(WorkPoolCreate(name=name, type=kind, **fields))
        return Applied(kind="pool", name=name, state="created")
    if there.type != kind:
        raise RequestError(
            f"work pool {name} on the server is of type {there.type}, wanted {kind}: delete it there, or "
            f"{'leave out' if kind == 'kubernetes' else 'give'} --pools"
        )
    changed = tuple(field for field, value in wanted.items() if getattr(there, field) != value)
    if changed:
        client.update_work_pool(name, WorkPoolUpdate(**wanted))
    return Applied(kind="pool", name=name, state="updated" if changed else "unchanged", changed=changed)


def _load_flow(entry: DeploymentEntry) -> Any:
    module, _, function = entry.entrypoint.rpartition(".")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as err:
        raise RequestError(
            f"deployment {entry.name}: entrypoint {entry.entrypoint!r} cannot be imported: {err}"
        ) from err


def _apply_deployment(
    client: SyncPrefectClient, entry: DeploymentEntry, flow_name: str, wanted: dict[str, Any]
) -> list[Applied]:
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.exceptions import ObjectNotFound

    name = f"{flow_name}/{entry.name}"
    try:
        before = client.read_deployment_by_name(name)
    except ObjectNotFound:
        before = None
    changed = () if before is None else _differences(before, wanted, entry)
    if before is None or changed:
        removed = _remove_schedules(client, before, keep={schedule.slug for schedule in entry.schedules})
        client.create_deployment(
            flow_id=client.create_flow_from_name(flow_name),
            schedules=[
                DeploymentScheduleCreate(
                    schedule=CronSchedule(cron=schedule.cron, timezone=schedule.timezone),
                    active=schedule.active,
                    parameters=schedule.parameters,
                    slug=schedule.slug,
                )
                for schedule in entry.schedules
            ],
            **wanted,
        )
        return [
            Applied(kind="deployment", name=name, state="updated" if before else "created", changed=changed),
            *removed,
        ]
    return [Applied(kind="deployment", name=name, state="unchanged")]


def _wanted(entry: DeploymentEntry, flow: Any) -> dict[str, Any]:
    """Fields of the deployment as the server should hold them. Parameters are spelt out whole, so that the form of the
    UI shows every value it will use.
    """
    from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
    from prefect.utilities.callables import parameter_schema

    parameters = dict(entry.parameters)
    if "spec" in parameters:
        kind = get_type_hints(flow.fn)["spec"]
        parameters["spec"] = validated(kind, parameters["spec"]).model_dump(mode="json")
    limit = entry.concurrency_limit
    return {
        "name": entry.name,
        "entrypoint": entry.entrypoint,
        "description": entry.description,
        "tags": sorted({TAG, *entry.tags}),
        "parameters": parameters,
        "parameter_openapi_schema": parameter_schema(flow).model_dump_for_openapi(),
        "enforce_parameter_schema": entry.enforce_parameter_schema,
        "paused": entry.paused,
        "pull_steps": [],
        "job_variables": entry.work_pool.job_variables,
        "work_pool_name": entry.work_pool.name,
        "concurrency_limit": limit.limit if limit else None,
        "concurrency_options": limit
        and ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy(limit.collision_strategy)),
    }


def _differences(before: DeploymentResponse, wanted: dict[str, Any], entry: DeploymentEntry) -> tuple[str, ...]:
    """Names of what differs between the server and the file."""
    spelt_otherwise = {
        "tags": sorted(before.tags),
        "pull_steps": before.pull_steps or [],
        "concurrency_limit": before.global_concurrency_limit and before.global_concurrency_limit.limit,
    }
    there = {n: spelt_otherwise[n] if n in spelt_otherwise else getattr(before, n) for n in wanted}
    changed = [name for name, value in wanted.items() if there[name] != value]
    schedules = {
        (s.slug, getattr(s.schedule, "cron", ""), getattr(s.schedule, "timezone", ""), s.active)
        for s in before.schedules
    }
    if schedules != {(s.slug, s.cron, s.timezone, s.active) for s in entry.schedules}:
        changed.append("schedules")
    return tuple(changed)


def _remove_left_over_schedules(client: SyncPrefectClient, names: set[str]) -> list[Applied]:
    """Deployments of ours that left the file keep their runs, but start nothing any more."""
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags

    ours = client.read_deployments(deployment_filter=DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG])))
    lines = []
    for deployment in ours:
        if deployment.name not in names:
            lines += _remove_schedules(client, deployment, keep=set())
    return lines


def _remove_schedules(
    client: SyncPrefectClient, deployment: DeploymentResponse | None, keep: set[str]
) -> list[Applied]:
    if deployment is None:
        return []
    removed = []
    for schedule in deployment.schedules:
        if schedule.slug not in keep:
            client.delete_deployment_schedule(deployment.id, schedule.id)
            name = f"{deployment.name}: {schedule.slug or schedule.id}"
            removed.append(Applied(kind="schedule", name=name, state="removed"))
    return removed


def _explain(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "file"
    if problem["type"] == "extra_forbidden":
        return f"{where}: no such key"
    return f"{where}: {problem['msg']}, got {problem['input']!r}"
