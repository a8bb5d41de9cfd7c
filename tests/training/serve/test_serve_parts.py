"""Keys, rates, places and names: the parts of the server that need no model."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_jobs.errors import DataError, RequestError
from training.serve import keys as keys_module
from training.serve.failures import Refused
from training.serve.hub import Hub
from training.serve.keys import Buckets, Key, Keys, add_key, digest_of, read_keys
from training.serve.logprobs import finite
from training.serve.serve_spec import ServeSpec
from training.serve.served import Identity, identity_of_folder, load, safe_name


def identity(version: str) -> Identity:
    return Identity(name="demo", version=version, address="models/x", digest="ab" * 32)


def hub_of(*versions: str, places: int = 4) -> tuple[Hub, list[Any]]:
    """Models stand in by what a hub looks at: a name and a number of users."""
    served: list[Any] = [
        SimpleNamespace(identity=identity(version), users=0, close=lambda: None) for version in versions
    ]
    return Hub(served[0], places), served


def test_key_is_kept_as_a_digest_in_a_file_of_the_owner(tmp_path: Path) -> None:
    path = tmp_path / "in" / "keys.json"
    first, second = add_key(path, "team-a", 60), add_key(path, "team-b", 30)
    assert first != second
    assert first not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = Keys(path)
    assert found.find(first) == Key(name="team-a", sha256=digest_of(first), requests_per_minute=60)
    assert found.find(second).name == "team-b"  # type: ignore[union-attr]
    assert found.find(first + " ") is None
    with pytest.raises(RequestError, match="already"):
        add_key(path, "team-a", 60)
    with pytest.raises(RequestError, match="pattern"):
        add_key(path, "no spaces", 60)


def test_key_taken_out_of_the_file_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "RECHECK_S", 0.0)
    path = tmp_path / "keys.json"
    text = add_key(path, "team", 60)
    found = Keys(path)
    path.write_text("not JSON")  # half written: what was good stays good
    os.utime(path, ns=(1, 1))
    assert found.find(text) is not None
    path.write_text(json.dumps({"keys": []}))
    assert found.find(text) is None


def test_file_of_keys_that_is_none_is_refused_with_the_place(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nightmill serve key"):
        read_keys(tmp_path / "none.json")
    path = tmp_path / "keys.json"
    path.write_text('{"keys": [{"name": "a", "sha256": "short"}]}')
    with pytest.raises(RequestError, match=r"keys\.0\.sha256"):
        read_keys(path)


def test_bucket_is_one_for_all_who_open_it_and_fills_with_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    key = Key(name="a", sha256="0" * 64, requests_per_minute=3)
    one, two = Buckets(tmp_path), Buckets(tmp_path)
    assert [one.take(key), two.take(key), one.take(key)] == [0.0, 0.0, 0.0]
    assert two.take(key) == pytest.approx(20.0)
    now[0] += 19.9
    assert one.take(key) == pytest.approx(0.1)
    now[0] += 0.1
    assert two.take(key) == 0.0
    now[0] += 10_000
    assert [two.take(key) > 0 for _ in range(4)] == [False, False, False, True]
    now[0] = 5.0  # the machine was started anew: its clock begins again
    assert one.take(key) > 0


def test_full_server_refuses_with_the_time_to_wait() -> None:
    hub, (served,) = hub_of("1")
    with hub.use(served, 3), hub.use(served, 1):
        assert (hub.running, served.users) == (4, 2)
        with pytest.raises(Refused) as caught, hub.use(served, 1):
            pass
    assert (caught.value.status, caught.value.retry_after) == (503, 1)
    assert (hub.running, served.users) == (0, 0)


def test_names_are_compared_and_a_new_champion_answers_to_the_pipelines() -> None:
    hub, (old, new) = hub_of("1", "2")
    assert hub.find("demo") is old
    assert hub.find("demo@1") is old
    hub.current = new
    assert hub.find("demo") is new
    for name in ("demo@1", "DEMO", "demo/", "../demo", ""):
        with pytest.raises(Refused) as caught:
            hub.find(name)
        assert caught.value.status == 404


@given(st.text(max_size=80))
def test_names_made_of_folders_are_names_and_no_paths(text: str) -> None:
    name = safe_name(text)
    assert name
    assert "/" not in name
    assert not name.startswith(".")


def test_folder_without_a_model_or_of_no_known_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config\.json"):
        identity_of_folder(tmp_path, "")


def test_digest_of_a_folder_follows_its_bytes(tiny: Path, tmp_path: Path) -> None:
    first = identity_of_folder(tiny, "")
    assert first.model == "tiny"
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tiny.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert identity_of_folder(copy, "other").digest == first.digest
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert identity_of_folder(copy, "other").digest != first.digest


def test_model_whose_answers_are_not_finite_is_refused(tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"][5] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="not finite"):
        load(tmp_path, identity("1"), ServeSpec())


def test_probability_zero_is_told_as_a_number() -> None:
    assert json.loads(json.dumps(finite(float("-inf")))) == -9999.0
    assert finite(-1.5) == -1.5
