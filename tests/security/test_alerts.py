"""infra/automations/alarms.yaml on a real Prefect server: an event, or the state of a run, reaches a webhook, Slack and a mail server."""

from __future__ import annotations

import json
import os
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.states import Completed, Crashed, Failed, Pending, Running, Scheduled

from flows.automations import apply_automations, automations_folder, read_automations, try_alarm
from flows.deploy import apply_file, prefect_file
from spark_jobs.errors import RequestError
from tasks.servers import client_environment

WAIT_S = 90.0
ALARMS = {
    "nightmill-failure", "nightmill-crash", "nightmill-late", "nightmill-night-missing", "nightmill-gate-refused", "nightmill-zombie",
}  # fmt: skip


class Inbox(ThreadingHTTPServer):
    """Keeps JSON bodies by path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.bodies: list[tuple[str, dict[str, Any]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Inbox

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append((self.path, json.loads(body)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_told: object) -> None:
        """Quiet."""


class MailServer(socketserver.ThreadingTCPServer):
    """As much of SMTP (RFC 5321) as one message needs. Keeps envelopes and texts."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), MailSession)
        self.messages: list[tuple[list[str], str]] = []

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class MailSession(socketserver.StreamRequestHandler):
    server: MailServer

    def handle(self) -> None:
        receivers: list[str] = []
        self.say("220 sink")
        while line := self.rfile.readline().decode().strip():
            verb = line.split(":")[0].split(" ")[0].upper()
            if verb == "RCPT":
                receivers.append(line.partition("<")[2].partition(">")[0])
            if verb == "DATA":
                self.say("354 go on")
                text = b""
                while (part := self.rfile.readline()) not in (b".\r\n", b""):
                    text += part
                self.server.messages.append((receivers, text.decode()))
            self.say("221 bye" if verb == "QUIT" else "250 fine")
            if verb == "QUIT":
                return

    def say(self, line: str) -> None:
        self.wfile.write(line.encode() + b"\r\n")


@pytest.fixture(scope="module")
def inbox() -> Iterator[Inbox]:
    with Inbox() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def mail() -> Iterator[MailServer]:
    with MailServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def applied(servers_home, inbox, mail) -> dict[str, str]:
    """Name -> what became of each automation, all three ways set."""
    _, servers = servers_home
    apply_file(prefect_file(), servers.api_url, servers.auth)
    lines = apply_automations(
        automations_folder(), servers.api_url, servers.auth, f"{inbox.url}/hook", f"{inbox.url}/slack",
        f"mailto://127.0.0.1:{mail.port}?from=nightmill@example.com&to=operator@example.com",
    )  # fmt: skip
    return {line.name: line.state for line in lines}


def waited(find: Any) -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (found := find()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def emit(home: Any, **event: Any) -> None:
    """As a run does, in a process that knows the server."""
    code = (
        "import json, sys; from prefect.events import emit_event; from prefect.events.worker import EventsWorker\n"
        "emit_event(**json.loads(sys.argv[1]))\n"
        "EventsWorker.drain_all(timeout=30)"
    )
    subprocess.run(
        [sys.executable, "-c", code, json.dumps(event)],
        env=os.environ | client_environment(home),
        check=True,
        timeout=180,
    )


def test_alarms_are_applied_once_and_then_left_alone(servers_home, applied):
    _, servers = servers_home
    assert set(applied) >= ALARMS
    assert set(applied.values()) <= {"created", "updated", "unchanged"}
    again = apply_automations(automations_folder(), servers.api_url, servers.auth)
    assert {line.state for line in again} == {"unchanged"}, again


@pytest.mark.parametrize("event", ["nightmill.gate.refused", "nightmill.night.missing"])
def test_event_of_a_pipeline_reaches_webhook_slack_and_mail(servers_home, applied, inbox, mail, event):
    home, _ = servers_home
    message = f'of {event}: "quoted", {{braces}} and ü'
    pipeline = {"prefect.resource.id": "nightmill.pipeline.p", "prefect.resource.name": "p"}
    emit(home, event=event, resource=pipeline, payload={"message": message})
    hook = waited(lambda: [body for path, body in inbox.bodies if path == "/hook" and body["event"] == event])
    alarm = f"nightmill-{event.removeprefix('nightmill.').replace('.', '-')}"
    assert hook[0]["alarm"] == alarm
    assert hook[0]["text"] == f"{alarm}: p: {message}"
    slack = waited(lambda: [body for path, body in inbox.bodies if path == "/slack" and message in body["text"]])
    assert slack == [{"text": f"{alarm}: p: {message}"}]
    (receivers, text), *_ = waited(lambda: [told for told in mail.messages if alarm in told[1]])
    assert receivers == ["operator@example.com"]
    assert f"Subject: {alarm}: p" in text


def test_trial_reaches_who_is_told(servers_home, applied, inbox):
    _, servers = servers_home
    try_alarm(servers.api_url, servers.auth)
    assert waited(lambda: [body for _, body in inbox.bodies if "a trial: nothing has happened" in json.dumps(body)])


@pytest.mark.parametrize(("state", "alarm"), [(Failed, "nightmill-failure"), (Crashed, "nightmill-crash")])
def test_run_of_a_deployment_that_ends_badly_is_told_with_its_message(servers_home, applied, inbox, state, alarm):
    _, servers = servers_home
    with SyncPrefectClient(servers.api_url, auth_string=servers.auth) as client:
        deployment = client.read_deployment_by_name("maintenance/maintenance")
        run = client.create_flow_run_from_deployment(deployment.id, name=f"run-of-{alarm}", state=Completed())
        client.set_flow_run_state(run.id, state(message="disk is full"), force=True)
    (body,) = waited(lambda: [body for path, body in inbox.bodies if path == "/hook" and body["alarm"] == alarm])
    assert body["text"] == f"{alarm}: run-of-{alarm}: disk is full"
    assert body["resource"] == f"prefect.flow-run.{run.id}"


def test_run_that_did_not_start_is_told(servers_home, applied, inbox):
    _, servers = servers_home
    with SyncPrefectClient(servers.api_url, auth_string=servers.auth) as client:
        deployment = client.read_deployment_by_name("maintenance/maintenance")
        run = client.create_flow_run_from_deployment(deployment.id, name="run-that-waits", state=Pending())
        tomorrow = datetime.now(UTC) + timedelta(days=1)  # or the worker of the fixture would start it
        client.set_flow_run_state(run.id, Scheduled(scheduled_time=tomorrow, name="Late"), force=True)
        told = waited(lambda: [b for path, b in inbox.bodies if path == "/hook" and b["alarm"] == "nightmill-late"])
        client.delete_flow_run(run.id)
    assert "run-that-waits" in told[0]["text"]


def test_run_without_a_sign_of_life_is_set_to_crashed_and_that_is_told(servers_home, applied, inbox, tmp_path):
    """The shipped rule, waiting 10 seconds where it waits 540."""
    home, servers = servers_home
    tree = yaml.safe_load((automations_folder() / "alarms.yaml").read_text())
    zombie = next(entry for entry in tree["automations"] if entry["name"] == "nightmill-zombie")
    assert zombie["trigger"]["within"] >= 3 * 180  # Prefect's heartbeats come every 180 s
    zombie["trigger"]["within"] = 10
    (tmp_path / "alarms.yaml").write_text(yaml.safe_dump(tree))
    apply_automations(tmp_path, servers.api_url, servers.auth)
    with SyncPrefectClient(servers.api_url, auth_string=servers.auth) as client:
        deployment = client.read_deployment_by_name("maintenance/maintenance")
        run = client.create_flow_run_from_deployment(deployment.id, name="run-of-the-dead", state=Running())
        emit(
            home, event="prefect.flow-run.heartbeat",
            resource={"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.resource.name": run.name},
            related=[{"prefect.resource.id": "prefect.tag.nightmill", "prefect.resource.role": "tag"}],
        )  # fmt: skip
        assert waited(lambda: client.read_flow_run(run.id).state.is_crashed())
    apply_automations(automations_folder(), servers.api_url, servers.auth)
    told = waited(lambda: [b["text"] for path, b in inbox.bodies if path == "/hook" and "run-of-the-dead" in b["text"]])
    assert told == ["nightmill-crash: run-of-the-dead: " + zombie["actions"][0]["message"]]


def test_server_sets_no_run_that_has_ended_to_crashed(servers_home, applied):
    """So the rule for runs without a sign of life cannot harm one that ended between two heartbeats."""
    _, servers = servers_home
    with SyncPrefectClient(servers.api_url, auth_string=servers.auth) as client:
        deployment = client.read_deployment_by_name("maintenance/maintenance")
        run = client.create_flow_run_from_deployment(deployment.id, state=Completed())
        client.set_flow_run_state(run.id, Crashed(message="no sign of life"), force=False)
        assert client.read_flow_run(run.id).state.is_completed()


def test_automation_that_left_the_files_leaves_the_server_and_those_of_others_stay(servers_home, applied, tmp_path):
    _, servers = servers_home
    tree = yaml.safe_load((automations_folder() / "alarms.yaml").read_text())
    mine = tree["automations"][0] | {"name": "somebody-elses"}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"automations": [mine]}))
    lines = {line.name: line.state for line in apply_automations(tmp_path, servers.api_url, servers.auth)}
    assert lines.pop("somebody-elses") == "created"
    assert set(lines) >= ALARMS
    assert set(lines.values()) == {"removed"}
    back = {line.name: line.state for line in apply_automations(automations_folder(), servers.api_url, servers.auth)}
    assert set(back) >= ALARMS
    assert "somebody-elses" not in back
    with SyncPrefectClient(servers.api_url, auth_string=servers.auth) as client:
        (other,) = client.read_automations_by_name("somebody-elses")
        client.delete_automation(other.id)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tree: tree.update(automation=[]), "automation: no such key"),
        (lambda tree: tree["automations"][0].update(enable=True), "enable: no such key"),
        (lambda tree: tree["automations"][0]["trigger"].update(window=3), "trigger.window: no such key"),
        (
            lambda tree: tree["automations"][0]["actions"][0].update(payloads=""),
            r"actions\.0\.payloads: no such key of call-webhook",
        ),
        (lambda tree: tree["automations"][0]["actions"][0].update(type="call-hook"), "no such action 'call-hook'"),
        (lambda tree: tree["automations"][0].update(actions=[]), "actions: "),
    ],
)
def test_misspelt_key_is_refused_naming_the_place(tmp_path, change, told):
    tree = yaml.safe_load((automations_folder() / "alarms.yaml").read_text())
    tree = json.loads(json.dumps(tree))  # without the anchors that the automations share
    change(tree)
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(RequestError, match=told):
        read_automations(tmp_path / "wrong.yaml")


def test_shipped_files_are_right():
    names = [entry["name"] for path in sorted(automations_folder().glob("*.yaml")) for entry in read_automations(path)]
    assert set(names) == ALARMS | {"nightmill-drift"}
    assert len(names) == len(set(names))
