"""Apply `infra/automations/*.yaml` to a Prefect server: what happens when an alarm of the watch arrives there.

A file names the block that an action wants as `TYPE/NAME`, for example `webhook/nightmill-alerts`; ids differ from server to
server. An action whose block is not on the server is left out; an automation without any left is too, and the table says
what to set.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import yaml
from pydantic import ValidationError

from flows.deploy import Applied
from spark_jobs.errors import RequestError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import AutomationCore

ALERT_URL = "NIGHTMILL_ALERT_URL"  # a secret: whoever knows such an address can write to it
BLOCK = "nightmill-alerts"
COMPARED = ("description", "enabled", "trigger", "actions")


def automations_folder() -> Path:
    """`infra/automations` of the checkout, or the copy inside an installed package."""
    packaged = Path(__file__).parent / "automations"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "infra" / "automations"


def apply_automations(folder: Path, api_url: str, auth: str = "", alert_url: str = "") -> list[Applied]:
    """Make the server's automations of these names equal to the files; others stay. Doing it twice changes nothing.

    alert_url: where the block `nightmill-alerts` calls; empty: as the block says, if there is one.
    Raises: RequestError naming the file that is wrong.
    """
    from prefect.client.orchestration import SyncPrefectClient

    entries = [(path, entry) for path in sorted(folder.glob("*.yaml")) for entry in _entries(path)]
    if alert_url:
        _save_block(api_url, auth, alert_url)
    with SyncPrefectClient(api_url, auth_string=auth or None) as client:
        return [_apply(client, path, entry) for path, entry in entries]


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        tree = yaml.safe_load(path.read_text())
        return [dict(entry) for entry in tree["automations"]]
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as err:
        raise RequestError(f"{path}: wanted a list `automations`: {err}") from err


def _save_block(api_url: str, auth: str, alert_url: str) -> None:
    """Stored encrypted on the server, so the environment of a later `deploy` need not have it."""
    from prefect.blocks.webhook import Webhook
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
    from prefect.types import SecretDict
    from pydantic import SecretStr

    with temporary_settings({PREFECT_API_URL: api_url, PREFECT_API_AUTH_STRING: auth or None}):
        headers = SecretDict({"Content-Type": "application/json"})
        Webhook(url=SecretStr(alert_url), headers=headers).save(BLOCK, overwrite=True, _sync=True)


def _apply(client: SyncPrefectClient, path: Path, entry: dict[str, Any]) -> Applied:
    name = str(entry.get("name", ""))
    actions = [found for action in entry.get("actions", []) if (found := _with_block_id(client, action)) is not None]
    if not actions and entry.get("actions"):
        hint = f"no block {entry['actions'][0]['block_document_id']}: set {ALERT_URL}, then `nightmill deploy`"
        return Applied(kind="automation", name=name, state="skipped", changed=(hint,))
    wanted = _parsed(path, entry | {"actions": actions})
    there = next(iter(client.read_automations_by_name(name)), None)
    if there is None:
        client.create_automation(wanted)
        return Applied(kind="automation", name=name, state="created")
    changed = tuple(field for field in COMPARED if _plain(there, field) != _plain(wanted, field))
    if changed:
        client.update_automation(there.id, wanted)
    return Applied(kind="automation", name=name, state="updated" if changed else "unchanged", changed=changed)


def _parsed(path: Path, entry: dict[str, Any]) -> AutomationCore:
    from prefect.events.schemas.automations import AutomationCore

    try:
        return AutomationCore.model_validate(entry)
    except ValidationError as err:
        problem = err.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise RequestError(f"{path}: automation {entry.get('name')!r}: {where}: {problem['msg']}") from err


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
