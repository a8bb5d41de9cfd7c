"""A night started by hand in the Prefect UI, on the pools, then looked at in both UIs."""

from __future__ import annotations

import base64
import json
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

PAGE_S = 60.0
NIGHT_S = 900.0  # a night of ten training steps; three minutes on two idle cores, several times that on busy ones
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
    """Type into the field below a title of the form."""
    xpath = f"//*[normalize-space(text())='{title}' or normalize-space(text())='{title} (Optional)']/following::*[self::input or self::textarea]"
    box = browser.find_elements(By.XPATH, f"({xpath})[1]")[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", box)
    box.clear()
    box.send_keys(value)


def test_night_started_from_the_form_completes_and_both_uis_show_it(product, browser, picture: Callable[[str], None]):
    log_in(browser, product.prefect, product.login)
    open_form(browser, product.prefect, picture)
    fill(browser, "First Night Share", "0.1")
    fill(browser, "Num Steps", "10")
    fill(browser, "night", NIGHT)
    picture("prefect-form")
    run_id = submit(browser, product)
    browser.get("about:blank")  # the run's page redraws all the time and would take a core from the night
    assert wait_for_end(product, run_id) == "COMPLETED"
    browser.get(f"{product.prefect}/runs/flow-run/{run_id}")
    wait_for_text(browser, "Completed")
    time.sleep(2.0)  # the graph is drawn after the state
    picture("prefect-night")
    find(browser, "//li[normalize-space(.)='Artifacts']").click()
    wait_for_text(browser, "night-table")
    picture("prefect-artifacts")
    look_at_runs(browser, product.mlflow, picture)
    look_at_model(browser, product.mlflow, picture)


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
