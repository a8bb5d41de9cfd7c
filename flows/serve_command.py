"""`nightmill serve`: the champion of a pipeline, or any model folder, behind OpenAI's interface. `nightmill serve key` makes keys."""

from __future__ import annotations

import argparse
import ipaddress
import json
import sys
from pathlib import Path
from threading import Event

from flows.spec_files import settings_tree, validated
from flows.specs import load_spec
from spark_jobs.errors import RequestError
from tasks.serving import check_champion, listen, serve
from tasks.workspace import Workspace, home
from training.serve.keys import add_key, read_keys
from training.serve.plan import Plan
from training.serve.serve_spec import ServeSpec


def serve_command(arguments: argparse.Namespace) -> int:
    """Until SIGTERM or Ctrl-C, which let running answers end."""
    if arguments.what == "key":
        return make_key(arguments)
    plan = plan_of(arguments)
    check_exposure(arguments.host, bool(arguments.keys), arguments.no_keys)
    listener = listen(arguments.host, arguments.port)

    def say(line: str) -> None:
        print(f"nightmill: {line}", file=sys.stderr, flush=True)  # noqa: T201

    say(f"serving {plan.folder or plan.name}; requests are noted in {plan.log or 'no file'}")
    try:
        serve(plan, listener, say, Event())
    except KeyboardInterrupt:
        say("stopped; answers that were being written have ended")
    return 0


def plan_of(arguments: argparse.Namespace) -> Plan:
    """Raises: RequestError for a setting, preset, folder or file of keys that is wrong."""
    if bool(arguments.what) == bool(arguments.model):
        raise RequestError("serve wants either a preset, whose champion answers, or --model FOLDER")
    spec = validated(ServeSpec, settings_tree(arguments.settings))
    keys = str(Path(arguments.keys).resolve()) if arguments.keys else ""
    if keys:
        read_keys(Path(keys))
    log = arguments.log if arguments.log is not None else str(home() / "serve" / "requests.jsonl")
    shared = {"replicas": arguments.replicas, "spec": spec, "log": log, "keys": keys}
    if arguments.model:
        folder = Path(arguments.model).resolve()
        if not (folder / "config.json").is_file():
            raise RequestError(
                f"--model {arguments.model}: no config.json there; wanted a folder of Hugging Face's layout"
            )
        return Plan(name=arguments.name, folder=str(folder), **shared)
    workspace = Workspace.of(load_spec(arguments.what, []).name)
    check_champion(workspace)
    return Plan(name=arguments.name or workspace.name, workspace=str(workspace.root), **shared)


def check_exposure(host: str, has_keys: bool, no_keys: bool) -> None:
    """Without keys only this machine may ask, unless that is what was asked for.

    Raises: RequestError otherwise.
    """
    if has_keys and no_keys:
        raise RequestError("--keys and --no-keys contradict each other; leave one out")
    if has_keys or no_keys or is_loopback(host):
        return
    raise RequestError(
        f"--host {host} lets other machines ask, and there are no keys: give --keys FILE (`nightmill serve key NAME` makes "
        "one), or --no-keys if something in front of this server checks"
    )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def make_key(arguments: argparse.Namespace) -> int:
    """The key goes to standard output, once; the file gets its digest."""
    if not arguments.key_name:
        raise RequestError("serve key wants a name, for example `nightmill serve key team-a`")
    path = Path(arguments.keys or home() / "serve" / "keys.json")
    text = add_key(path, arguments.key_name, arguments.rate)
    told = {"name": arguments.key_name, "key": text, "file": str(path), "requests_per_minute": arguments.rate}
    print(json.dumps(told) if arguments.json else text)  # noqa: T201
    print(f"nightmill: {path} has its digest; the key itself is kept nowhere", file=sys.stderr)  # noqa: T201
    return 0
