"""A night by hand in the Prefect UI, on the pools: started from the form, watched, cancelled, retried, its candidate approved.

The tests are one story and run in this order; what they leave is looked at in both UIs.
"""

from __future__ import annotations

import base64
import json
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from tasks.child import OWNER, marked

PAGE_S = 60.0
NIGHT_S = 900.0  # a night; three minutes on two idle cores, several times that on busy ones
GONE_S = 20.0  # after a cancel
DRAWN_S = 2.0  # the graph is drawn after the state
NUM_STEPS = "160"  # of training: long enough to be caught in it
MODAL = "//*[@class='p-modal']"
NIGHT = "2026-11-25"
NIGHTLY = {"flows": {"name": {"any_": ["nightly"]}}}  # other deployments have schedules too

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def find(browser: WebDriver, xpath: str, timeout_s: float = PAGE_S) -> WebElement:
    """The first visible element at `xpath`, once it is there."""

    def look(driver: WebDriver) -> WebElement | None:
        return next((e for e in driver.find_elements(By.XPATH, xpath) if e.is_displayed()), None)

    return WebDriverWait(browser, timeout_s, ignored_exceptions=[Exception]).until(
        look, f"no {xpath} at {browser.current_url}"
    )


def wait_for_text(browser: WebDriver, *texts: str, timeout_s: float = PAGE_S) -> str:
    """The first of `texts` that the page shows."""

    def look(driver: WebDriver) -> str | None:
        page = driver.find_element(By.TAG_NAME, "body").text
        return next((text for text in texts if text in page), None)

    return WebDriverWait(browser, timeout_s, 0.5, [Exception]).until(look, f"none of {texts} at {browser.current_url}")


def fill(browser: WebDriver, title: str, value: str) -> None:
    """Type into the field below a title of a form."""
    box = below(browser, title, "self::input or self::textarea")
    box.clear()
    box.send_keys(value)


def choose(browser: WebDriver, title: str, value: str) -> None:
    """Pick from the list below a title of a form."""
    Select(below(browser, title, "self::select")).select_by_visible_text(value)


def below(browser: WebDriver, title: str, kind: str) -> WebElement:
    xpath = (
        f"//*[normalize-space(text())='{title}' or normalize-space(text())='{title} (Optional)']/following::*[{kind}]"
    )
    box = browser.find_elements(By.XPATH, f"({xpath})[1]")[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", box)
    return box


def press(browser: WebDriver, name: str, within: str = "") -> None:
    find(browser, f"{within}//button[normalize-space(.)='{name}']").click()


@pytest.fixture(scope="module")
def night(product, browser, picture: Callable[[str], None]) -> str:
    """The id of the flow run of a night that the form has started, and whose candidate will ask for approval."""
    log_in(browser, product.prefect, product.login)
    open_form(browser, product.prefect, picture)
    fill(browser, "First Night Share", "0.1")
    fill(browser, "Num Steps", NUM_STEPS)
    choose(browser, "Approval", "human")
    fill(browser, "night", NIGHT)
    picture("prefect-form")
    run_id = submit(browser, product)
    browser.get("about:blank")  # the run's page redraws all the time and would take a core from the night
    return run_id


def test_training_is_watched_and_the_night_cancelled_then_nothing_of_it_is_left(product, browser, night, picture):
    until(lambda: latest(product, "progress-train"), NIGHT_S, "progress of training")
    browser.get(f"{product.prefect}/runs/flow-run/{night}")
    wait_for_text(browser, "Running")
    time.sleep(DRAWN_S)
    picture("prefect-running")
    browser.get(f"{product.prefect}/artifacts/artifact/{latest(product, 'progress-train')['id']}")
    wait_for_text(browser, "tokens/s")
    picture("prefect-progress")
    browser.get(f"{product.prefect}/runs/flow-run/{night}")
    wait_for_text(browser, "Running")
    assert of_steps(product.home)
    press(browser, "Cancel")
    find(browser, MODAL + "//*[normalize-space(.)='Cancel Flow Run']")
    picture("prefect-cancel")
    press(browser, "Confirm", MODAL)
    until(lambda: not left_of_night(product), GONE_S, "the end of all that belongs to it")
    assert ask(product, f"flow_runs/{night}")["state_type"] == "CANCELLED"
    assert "KILLED" in mlflow_statuses(product)
    assert [*product.home.glob("workspaces/demo/locks/*.json")] == []
    browser.refresh()
    wait_for_text(browser, "Cancelled")
    time.sleep(DRAWN_S)
    picture("prefect-cancelled")


def test_cancelled_night_goes_on_from_the_retry_button(product, browser, night, picture):
    browser.get(f"{product.prefect}/runs/flow-run/{night}")
    wait_for_text(browser, "Cancelled")
    press(browser, "Retry")
    find(browser, MODAL + "//button[normalize-space(.)='Retry']")
    picture("prefect-retry")
    press(browser, "Retry", MODAL)
    until(lambda: ask(product, f"flow_runs/{night}")["state_type"] != "CANCELLED", PAGE_S, "the retry")
    browser.get("about:blank")
    assert wait_for_end(product, night) == "COMPLETED"
    steps = {line["step"]: line["state"] for line in json.loads(latest(product, "night-table")["data"])}
    assert steps["ingest"] == steps["corpus"] == "cached"
    assert steps["train"] == steps["release"] == "ran"
    browser.get(f"{product.prefect}/runs/flow-run/{night}")
    wait_for_text(browser, "Completed")
    time.sleep(DRAWN_S)
    picture("prefect-night")
    find(browser, "//li[normalize-space(.)='Artifacts']").click()
    wait_for_text(browser, "night-table")
    picture("prefect-artifacts")
    browser.get(f"{product.prefect}/artifacts/artifact/{latest(product, 'night-table')['id']}")
    wait_for_text(browser, "cached")
    time.sleep(DRAWN_S)
    picture("prefect-table")


def test_candidate_is_approved_in_the_form_and_becomes_champion(product, browser, night, picture):
    until(lambda: runs_of(product, "approve-model"), PAGE_S, "the run that asks")
    asking = runs_of(product, "approve-model")[0]["id"]
    until(lambda: ask(product, f"flow_runs/{asking}")["state_type"] == "PAUSED", PAGE_S, "its pause")
    browser.get(f"{product.mlflow}/#/models/demo")
    wait_for_text(browser, "candidate")
    browser.get(f"{product.prefect}/artifacts/artifact/{latest(product, 'candidate')['id']}")
    wait_for_text(browser, "The gate said")
    picture("prefect-candidate")
    browser.get(f"{product.prefect}/runs/flow-run/{asking}")
    press(browser, "Resume")
    find(browser, MODAL + "//*[normalize-space(text())='Decision']")
    choose(browser, "Decision", "approve")
    fill(browser, "Reason", "Read twenty of its answers")
    fill(browser, "Name", "Ada")
    picture("prefect-approve")
    press(browser, "Submit", MODAL)
    until(lambda: ask(product, f"flow_runs/{asking}")["state_type"] != "PAUSED", PAGE_S, "its answer")
    browser.get("about:blank")
    assert wait_for_end(product, asking) == "COMPLETED"
    line = json.loads((product.home / "workspaces/demo/ledger.jsonl").read_text().splitlines()[-1])
    assert (line["decision"], line["by"], line["who"]) == ("promoted", "hand", "Ada")
    assert (line["champion_version"], line["why"]) == ("1", "Read twenty of its answers")


def test_mlflow_shows_the_night_and_its_champion_without_an_error(product, browser, night, picture):
    look_at_runs(browser, product.mlflow, picture)
    assert "switched off" not in browser.find_element(By.TAG_NAME, "body").text
    look_at_model(browser, product.mlflow, picture)
    assert "switched off" not in browser.find_element(By.TAG_NAME, "body").text


def latest(product, key: str) -> dict[str, Any]:
    """The newest artifact of that key, or nothing."""
    wanted = {"artifacts": {"key": {"any_": [key]}}, "sort": "UPDATED_DESC", "limit": 1}
    return dict(next(iter(ask(product, "artifacts/filter", wanted)), {}))


def of_steps(home: Path) -> list[psutil.Process]:
    """Processes of steps under this home: Spark drivers, JVMs, processes that fork ranks, ranks."""
    return marked(OWNER, lambda value: value.endswith(f":{home}"))


def runs_of(product, *flows: str) -> list[dict[str, Any]]:
    """Flow runs that have begun."""
    wanted = {"flows": {"name": {"any_": [*flows]}}, "flow_runs": {"start_time": {"is_null_": False}}}
    return list(ask(product, "flow_runs/filter", wanted))


def left_of_night(product) -> list[Any]:
    """Processes of its steps, runs that go on according to Prefect, and the same of MLflow."""
    parts = runs_of(product, "nightly", "prepare-corpus", "train-model")
    running = [run["name"] for run in parts if run["state_type"] not in ("COMPLETED", "CANCELLED")]
    return of_steps(product.home) or running or [*(mlflow_statuses(product) & {"RUNNING", "SCHEDULED"})]


def mlflow_statuses(product) -> set[str]:
    client = MlflowClient(product.mlflow)
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    return {run.info.status for run in client.search_runs([experiment.experiment_id])}


def until(condition: Callable[[], Any], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.3)


def wait_for_end(product, flow_run_id: str) -> str:
    """State type in which the run ended, asked of the API every two seconds."""
    deadline = time.monotonic() + NIGHT_S
    while time.monotonic() < deadline:
        state = str(ask(product, f"flow_runs/{flow_run_id}")["state_type"])
        if state in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            return state
        time.sleep(2.0)
    return f"still {state} after {NIGHT_S:.0f} s"


def ask(product, path: str, body: dict[str, Any] | None = None) -> Any:
    """Prefect's API: GET, or POST with a body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{product.prefect}/api/{path}", data)
    request.add_header("Authorization", "Basic " + base64.b64encode(product.login.encode()).decode())
    request.add_header("Content-Type", "application/json")
    if body is not None:
        request.add_header("Prefect-Csrf-Client", "browser-test")
        request.add_header("Prefect-Csrf-Token", ask(product, "csrf-token?client=browser-test")["token"])
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def log_in(browser: WebDriver, address: str, login: str) -> None:
    browser.get(address)
    find(browser, "//input[@type='password']").send_keys(login + "\n")
    wait_for_text(browser, "Deployments")


def open_form(browser: WebDriver, address: str, picture: Callable[[str], None]) -> None:
    """Deployments -> nightly -> custom run."""
    browser.get(f"{address}/deployments")
    deployment = find(browser, "//a[normalize-space(.)='nightly' and contains(@href, '/deployments/deployment/')]")
    page = deployment.get_attribute("href")
    picture("prefect-deployments")
    browser.get(f"{page}/run")
    wait_for_text(browser, "Optimizer steps on the first night")


def submit(browser: WebDriver, product) -> str:
    """Press Submit; the id of the run that starts. Links on the page will not do: those of the next nights are there too."""
    find(browser, "//button[normalize-space(.)='Submit']").click()
    deadline = time.monotonic() + PAGE_S
    while time.monotonic() < deadline:
        for run in ask(product, "flow_runs/filter", {"sort": "EXPECTED_START_TIME_ASC", "limit": 1} | NIGHTLY):
            if datetime.fromisoformat(run["expected_start_time"]) < datetime.now(UTC):
                return str(run["id"])
        time.sleep(0.5)
    pytest.fail(f"no run was started from {browser.current_url} in {PAGE_S} s")


def look_at_runs(browser: WebDriver, address: str, picture: Callable[[str], None]) -> None:
    """One parent, a child a step, the datasets they read."""
    browser.get(address)
    wait_for_text(browser, "demo")
    browser.get(f"{address}/#/experiments/1/runs")
    wait_for_text(browser, NIGHT)
    for close in browser.find_elements(
        By.CSS_SELECTOR, "button[data-component-id='mlflow.assistant.chat_panel.close']"
    ):
        browser.execute_script("arguments[0].click()", close)  # it may be half behind something that still moves
    find(browser, "//*[contains(@class, 'ag-row')]//button").click()  # unfold the night
    wait_for_text(browser, "evaluate-dense")
    wait_for_text(browser, "corpus (")  # the data set column shows names with digests
    picture("mlflow-runs")


def look_at_model(browser: WebDriver, address: str, picture: Callable[[str], None]) -> None:
    browser.get(f"{address}/#/models/demo")
    wait_for_text(browser, "champion")
    picture("mlflow-model")
