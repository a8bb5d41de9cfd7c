"""Headless Chromium and the product as a user starts it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.remote.webdriver import WebDriver

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1440,1000",
)  # fmt: skip


@dataclass(frozen=True)
class Product:
    """What `nightmill up` printed."""

    home: Path
    prefect: str
    mlflow: str
    login: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def nightmill(home: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "flows", *arguments],
        env=os.environ | {"NIGHTMILL_HOME": str(home)}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    home = tmp_path_factory.mktemp("home")
    try:
        said = nightmill(home, "up", "--port", str(free_port()), "--mlflow-port", str(free_port()))
        yield Product(
            home=home,
            prefect=re.search(r"Prefect +(\S+)", said)[1],
            mlflow=re.search(r"MLflow +(\S+)", said)[1],
            login=re.search(r"log in with +(\S+)", said)[1],
        )
    finally:
        nightmill(home, "down")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium and chromedriver on PATH; on Debian: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


@pytest.fixture(scope="module")
def picture(browser: WebDriver, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    """Save a screenshot: into docs/images when NIGHTMILL_SCREENSHOTS is set, else where the test run keeps its files."""
    wanted = os.environ.get("NIGHTMILL_SCREENSHOTS")
    folder = Path("docs/images") if wanted else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)

    def save(name: str) -> None:
        browser.save_screenshot(str(folder / f"{name}.png"))

    return save
