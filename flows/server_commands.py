"""`nightmill up`, `status`, `down` and `deploy`."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.automations import RECEIVERS, apply_automations, automations_folder, try_alarm
from flows.champions import champion_table
from flows.deploy import Applied, apply_file, prefect_file
from spark_jobs.errors import NightmillError
from tasks.daemons import health, start_all, stop_all
from tasks.server_databases import are_elsewhere
from tasks.servers import (
    Servers,
    address_elsewhere,
    client_environment,
    running_servers,
    servers_folder,
)
from tasks.workspace import home

STATE_COLORS = {"created": "green", "updated": "yellow", "removed": "red", "unchanged": "dim", "skipped": "yellow"}


def up(arguments: argparse.Namespace) -> int:
    """Start servers and workers, apply prefect.yaml, say where everything is."""
    console = Console()
    started = time.monotonic()
    os.environ.update(client_environment(home()))  # before prefect is imported, which reads it once

    def apply(servers: Servers) -> None:
        console.print(applied_table(apply_everything(servers.api_url, servers.auth)))

    servers = start_all(
        home(),
        arguments.port,
        arguments.mlflow_port,
        not arguments.no_auth,
        apply,
        lambda line: console.print(f"  {line}"),
    )
    _print_addresses(console, servers)
    console.print(f"  {time.monotonic() - started:.0f} s; stop everything with: nightmill down")
    return 0


def status(_arguments: argparse.Namespace) -> int:
    """What runs and whether it answers; puts right what the dead have left. Exit code 0 if all works."""
    console = Console()
    lines = health(home())
    champions = champion_table(home())
    if champions is not None:
        console.print(champions)
    if not lines:
        console.print("nothing is up; start it with: nightmill up")
        return 1
    table = Table(box=None, pad_edge=False)
    for column in ("process", "state", "where", "log"):
        table.add_column(column, overflow="fold")
    for name, where, works, log in lines:
        table.add_row(name, Text("up" if works else "DOWN", "green" if works else "red"), where, log)
    console.print(table)
    if running_servers(home()) is not None:
        _put_right(console)
    return 0 if all(works for _, _, works, _ in lines) else 1


def _put_right(console: Console) -> None:
    """What runs that died had left is put right while one looks."""
    os.environ.update(client_environment(home()))  # before prefect is imported, which reads it once
    from tasks.zombies import sweep

    for swept in sweep(home()):
        console.print(f"  put right: {swept.kind} {swept.name}: {swept.what}", highlight=False, soft_wrap=True)


def down(_arguments: argparse.Namespace) -> int:
    """Stop servers, workers and the runs they started."""
    stopped = stop_all(home())
    Console().print(f"stopped {len(stopped)} processes" if stopped else "nothing was up")
    return 0


def deploy(arguments: argparse.Namespace) -> int:
    """Apply prefect.yaml and automations to the server; say what changed."""
    pools = Path(arguments.pools) if arguments.pools else None
    if are_elsewhere():
        api_url, auth = address_elsewhere("PREFECT_API_URL"), os.environ.get("PREFECT_API_AUTH_STRING", "")
        servers_folder(home()).mkdir(parents=True, exist_ok=True)  # Prefect keeps its own settings there
    else:
        servers = running_servers(home())
        if servers is None:
            raise NightmillError(
                f"no Prefect server of {home()} is running, so there is nowhere to deploy to; start it with: nightmill up"
            )
        api_url, auth = servers.api_url, servers.auth
    os.environ.update(client_environment(home()))
    Console().print(applied_table(apply_everything(api_url, auth, pools)))
    if arguments.try_alarm:
        try_alarm(api_url, auth)
        Console().print("a trial of alarm nightmill-gate-refused is on its way")
    return 0


def apply_everything(api_url: str, auth: str, pools: Path | None = None) -> list[Applied]:
    """Pools, deployments, schedules and automations. pools: folder of Kubernetes templates."""
    lines = apply_file(prefect_file(), api_url, auth, pools)
    addresses = [os.environ.get(variable, "") for variable in RECEIVERS]
    return lines + apply_automations(automations_folder(), api_url, auth, *addresses)


def applied_table(lines: list[Applied]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("kind", "name", "state", "changed"):
        table.add_column(column, overflow="fold")
    for line in lines:
        table.add_row(line.kind, line.name, Text(line.state, STATE_COLORS[line.state]), ", ".join(line.changed))
    return table


def _print_addresses(console: Console, servers: Servers) -> None:
    console.print(f"  Prefect   {servers.prefect_url}", highlight=False, soft_wrap=True)
    if servers.auth:
        console.print(f"            log in with  {servers.auth}", highlight=False, soft_wrap=True)
    console.print(f"  MLflow    {servers.mlflow_url}", highlight=False, soft_wrap=True)
