"""Alarms of the watch on a real Prefect server: the event arrives, the automation fires, a receiver gets the facts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.automations import apply_automations, automations_folder
from flows.deploy import Applied
from spark_jobs.errors import RequestError
from tasks.servers import client_environment
from training.watch.sketch import TrafficSketch

WAIT_S = 60.0
DRIFT = "nightmill-drift"


class Receiver(HTTPServer):
    """Keeps the JSON bodies that are posted to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.bodies: list[dict[str, Any]] = []

    def wait_for(self, count: int) -> list[dict[str, Any]]:
        deadline = time.monotonic() + WAIT_S
        while len(self.bodies) < count and time.monotonic() < deadline:
            time.sleep(0.2)
        return list(self.bodies)


class Answer(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(json.loads(body) | {"type": self.headers["Content-Type"]})
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_told: object) -> None:
        """Quiet."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def asked(workspace: Path, minutes_ago: range) -> None:
    """Lines of a server that answered a request a second, then no more."""
    now = datetime.now(UTC)
    sketch = TrafficSketch("models/export-1")
    for minute in minutes_ago:
        for _ in range(60):
            sketch.add("hello", [5, 6, 7], [8], None, "stop")
        at = now - timedelta(minutes=minute)
        day = workspace / "traffic" / at.date().isoformat()
        day.mkdir(parents=True, exist_ok=True)
        with (day / "host-1.jsonl").open("a") as stream:
            stream.write(json.dumps(sketch.flush() | {"at": at.isoformat()}) + "\n")


def watch(home: Path, pipeline: str) -> dict[str, Any]:
    """The flow, in a process of its own that reports to the server; as a worker would start it."""
    told = (
        "from flows.watch_champion import watch_champion; from flows.specs import load_spec; "
        f"print(watch_champion(load_spec('demo', ['name={pipeline}'])).model_dump_json())"
    )
    done = subprocess.run(
        [sys.executable, "-c", told], env=os.environ | client_environment(home), capture_output=True, text=True,
        check=False, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def named(name: str, lines: list[Applied]) -> Applied:
    return next(line for line in lines if line.name == name)


def test_silence_reaches_the_receiver_once_and_so_does_its_end(servers_home, receiver):
    home, servers = servers_home
    url = f"http://127.0.0.1:{receiver.server_port}/alerts"
    line = named(DRIFT, apply_automations(automations_folder(), servers.api_url, servers.auth, url))
    assert line.kind == "automation"
    assert line.state in ("created", "unchanged")
    again = named(DRIFT, apply_automations(automations_folder(), servers.api_url, servers.auth))
    assert again.state == "unchanged", again.changed
    workspace = home / "workspaces" / "silent"
    asked(workspace, range(20, 80))
    assert watch(home, "silent")["events"] == ["nightmill.traffic.silent"]
    (body,) = receiver.wait_for(1)
    assert body["event"] == "nightmill.traffic.silent"
    assert body["facts"]["pipeline"] == "silent"
    assert body["facts"]["checks"] == ["silent"]
    assert body["text"].startswith("silent: no server has answered")
    assert body["type"] == "application/json"
    assert watch(home, "silent")["events"] == []
    asked(workspace, range(1))
    assert [watch(home, "silent")["events"] for _ in range(2)] == [[], ["nightmill.traffic.silent.resolved"]]
    assert [b["event"] for b in receiver.wait_for(2)] == [
        "nightmill.traffic.silent",
        "nightmill.traffic.silent.resolved",
    ]


def test_automation_without_its_block_is_left_out_and_the_table_says_what_to_set(servers_home, tmp_path):
    _, servers = servers_home
    text = (automations_folder() / "drift.yaml").read_text()
    (tmp_path / "other.yaml").write_text(
        text.replace("webhook/nightmill-alerts", "webhook/nobody-made").replace("nightmill-drift", "other")
    )
    line = named("other", apply_automations(tmp_path, servers.api_url, servers.auth))
    assert line.state == "skipped"
    assert "NIGHTMILL_ALERT_URL" in line.changed[0]


def test_changed_file_changes_the_automation_and_nothing_else_does(servers_home, tmp_path):
    _, servers = servers_home
    apply_automations(automations_folder(), servers.api_url, servers.auth, "http://127.0.0.1:9/alerts")
    shutil.copy(automations_folder() / "drift.yaml", tmp_path)
    tree = yaml.safe_load((tmp_path / "drift.yaml").read_text())
    tree["automations"][0]["enabled"] = False
    (tmp_path / "drift.yaml").write_text(yaml.safe_dump(tree))
    for folder in (tmp_path, automations_folder()):  # and back
        line = named(DRIFT, apply_automations(folder, servers.api_url, servers.auth))
        assert (line.state, line.changed) == ("updated", ("enabled",))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("automations: [{name: a, trigger: {type: event, posture: Sideways}, actions: []}]", "'a'"),
        ("- 3", "wanted a list"),
        ("a: [", "wanted a list"),
    ],
)
def test_file_that_is_wrong_is_named(servers_home, tmp_path, text, told):
    _, servers = servers_home
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(RequestError, match=told):
        apply_automations(tmp_path, servers.api_url, servers.auth)
