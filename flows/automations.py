"""Apply `infra/automations/*.yaml` to a Prefect server, so that it does with events and states what the files say.

A file names the block it wants as `TYPE/NAME`; ids differ from server to server. The blocks that tell people are made from the
environment, or in the UI. What is told in several ways is told in those whose block is there; where none is, the automation is left
out, and the table says what to set. Automations of ours that left the files are removed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

import yaml
from pydantic import Field, ValidationError

from flows.deploy import Applied
from spark_jobs.errors import RequestError
from spark_jobs.manifests import Frozen

if TYPE_CHECKING:
    from prefect.blocks.core import Block
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import AutomationCore

OURS = "nightmill-"  # what the names of our automations begin with
# Addresses are secrets: whoever knows one can write to it. Kept by the server, encrypted.
ALERT_URL, ALERT_SLACK, ALERT_EMAIL = "NIGHTMILL_ALERT_URL", "NIGHTMILL_ALERT_SLACK", "NIGHTMILL_ALERT_EMAIL"
RECEIVERS = {
    ALERT_URL: "webhook/nightmill-alerts",
    ALERT_SLACK: "webhook/nightmill-slack",
    ALERT_EMAIL: "nightmill-e-mail/nightmill-email",
}
COMPARED = ("description", "enabled", "trigger", "actions")


class TriggerEntry(Frozen):
    """An event trigger, whose own model takes any key (prefect.events.schemas.automations)."""

    type: Literal["event"]
    posture: Literal["Reactive", "Proactive"]
    match: dict[str, Any]
    match_related: dict[str, Any] = Field(default_factory=dict)
    for_each: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    expect: tuple[str, ...] = Field(min_length=1)
    threshold: int = Field(1, ge=1)
    within: int = Field(0, ge=0)


class AutomationEntry(Frozen):
    name: str = Field(min_length=1)
    description: str
    enabled: bool = True
    trigger: TriggerEntry
    actions: tuple[dict[str, Any], ...] = Field(min_length=1, description="Prefect's; a block as TYPE/NAME.")


def automations_folder() -> Path:
    """`infra/automations` of the checkout, or the copy inside an installed package."""
    packaged = Path(__file__).parent / "automations"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "infra" / "automations"


def apply_automations(
    folder: Path, api_url: str, auth: str = "", alert_url: str = "", alert_slack: str = "", alert_email: str = ""
) -> list[Applied]:
    """Make the server's automations equal to the files; those that are not ours stay. Doing it twice changes nothing.

    alert_url, alert_slack, alert_email: where their blocks write to; empty: as the block on the server says, if there is one.
    Raises: RequestError naming the file and key that is wrong, before anything is changed.
    """
    from prefect.client.orchestration import SyncPrefectClient

    entries = [(path, entry) for path in sorted(folder.glob("*.yaml")) for entry in read_automations(path)]
    for block, address in zip(RECEIVERS.values(), (alert_url, alert_slack, alert_email), strict=True):
        if address:
            _save_block(api_url, auth, block, address)
    with SyncPrefectClient(api_url, auth_string=auth or None) as client:
        lines = [_apply(client, path, entry) for path, entry in entries]
        return lines + _remove_left_over(client, {str(entry["name"]) for _, entry in entries})


def try_alarm(api_url: str, auth: str = "") -> None:
    """Send the event of a refused candidate for a pipeline that is none, so that whoever is told by it shows that he is."""
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events import Event, Resource

    event = Event(
        event="nightmill.gate.refused",
        resource=Resource.model_validate(
            {"prefect.resource.id": "nightmill.pipeline.trial", "prefect.resource.name": "trial"}
        ),
        payload={"message": "a trial: nothing has happened. Sent by `nightmill deploy --try-alarm`"},
    )
    with SyncPrefectClient(api_url, auth_string=auth or None) as client:
        client.request("POST", "/events", json=[event.model_dump(mode="json")])


def read_automations(path: Path) -> list[dict[str, Any]]:
    """Raises: RequestError naming the automation and the key that is wrong. Keys `x-...` hold YAML anchors."""
    try:
        tree = yaml.safe_load(path.read_text())
        unknown = [key for key in tree if key != "automations" and not str(key).startswith("x-")]
        entries = [dict(entry) for entry in tree["automations"]]
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as err:
        raise RequestError(f"{path}: wanted a list `automations`: {err}") from err
    if unknown:
        raise RequestError(f"{path}: {unknown[0]}: no such key; wanted automations, or x-... for anchors")
    for entry in entries:
        try:
            AutomationEntry.model_validate(entry)
        except ValidationError as err:
            raise _refusal(path, entry, err) from err
        _refuse_unknown(path, entry, _parsed(path, entry | {"actions": [a | _stand_in(a) for a in entry["actions"]]}))
    return entries


def _save_block(api_url: str, auth: str, named: str, address: str) -> None:
    """Stored encrypted on the server, so the environment of a later `deploy` need not have it."""
    from prefect.blocks.webhook import Webhook
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
    from prefect.types import SecretDict
    from pydantic import SecretStr

    from tasks.email_block import NightmillEmail

    kind, _, name = named.partition("/")
    headers = SecretDict({"Content-Type": "application/json"})
    block: Block
    if kind == "webhook":
        block = Webhook(url=SecretStr(address), headers=headers)
    else:
        block = NightmillEmail(url=SecretStr(address))
    with temporary_settings({PREFECT_API_URL: api_url, PREFECT_API_AUTH_STRING: auth or None}):
        block.save(name, overwrite=True)


def _apply(client: SyncPrefectClient, path: Path, entry: dict[str, Any]) -> Applied:
    name = str(entry["name"])
    there = next(iter(client.read_automations_by_name(name)), None)
    actions = [found for action in entry["actions"] if (found := _with_block_id(client, action)) is not None]
    if not actions:
        told = f"no block {entry['actions'][0]['block_document_id']}: set {' or '.join(RECEIVERS)}, then `nightmill deploy`"
        return Applied(kind="automation", name=name, state="skipped", changed=(told,))
    wanted = _parsed(path, entry | {"actions": actions})
    if there is None:
        client.create_automation(wanted)
        return Applied(kind="automation", name=name, state="created")
    changed = tuple(field for field in COMPARED if _plain(there, field) != _plain(wanted, field))
    if changed:
        client.update_automation(there.id, wanted)
    return Applied(kind="automation", name=name, state="updated" if changed else "unchanged", changed=changed)


def _remove_left_over(client: SyncPrefectClient, names: set[str]) -> list[Applied]:
    """Automations of ours that left the files."""
    gone = [there for there in client.read_automations() if there.name.startswith(OURS) and there.name not in names]
    for there in gone:
        client.delete_automation(there.id)
    return [Applied(kind="automation", name=there.name, state="removed") for there in gone]


def _parsed(path: Path, entry: dict[str, Any]) -> AutomationCore:
    from prefect.events.schemas.automations import AutomationCore

    try:
        return AutomationCore.model_validate(entry)
    except ValidationError as err:
        raise _refusal(path, entry, err) from err


def _refusal(path: Path, entry: dict[str, Any], err: ValidationError) -> RequestError:
    problem = err.errors()[0]
    where = ".".join(map(str, problem["loc"]))
    told = "no such key" if problem["type"] == "extra_forbidden" else problem["msg"]
    return RequestError(f"{path}: automation {entry.get('name')!r}: {where}: {told}")


def _refuse_unknown(path: Path, entry: dict[str, Any], parsed: AutomationCore) -> None:
    """Prefect's models of actions take any key, and keep actions of any type."""
    from prefect.events.actions import UnknownAction

    for number, (told, action) in enumerate(zip(entry["actions"], parsed.actions, strict=True)):
        where = f"{path}: automation {entry['name']!r}: actions.{number}"
        if isinstance(action, UnknownAction):
            raise RequestError(f"{where}.type: no such action {told['type']!r}")
        unknown = [key for key in told if key not in type(action).model_fields]
        if unknown:
            raise RequestError(f"{where}.{unknown[0]}: no such key of {told['type']}")


def _stand_in(action: dict[str, Any]) -> dict[str, str]:
    """An id where a block is named: the file is checked before the server is asked."""
    return {"block_document_id": str(UUID(int=0))} if "/" in str(action.get("block_document_id", "")) else {}


def _with_block_id(client: SyncPrefectClient, action: dict[str, Any]) -> dict[str, Any] | None:
    """The action with the block's id in place of its name; None where the server has no such block."""
    from prefect.exceptions import ObjectNotFound

    kind, slash, name = str(action.get("block_document_id", "")).partition("/")
    if not slash:
        return action
    try:
        found: UUID = client.read_block_document_by_name(name, kind).id
    except ObjectNotFound:
        return None
    return action | {"block_document_id": str(found)}


def _plain(automation: AutomationCore, field: str) -> Any:
    """Without ids that the server gives to triggers, and sets in one order."""
    return _sorted(automation.model_dump(mode="json", include={field})[field])


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(child) for key, child in value.items() if key != "id"}
    if isinstance(value, list):
        return sorted((_sorted(child) for child in value), key=repr)
    return value
