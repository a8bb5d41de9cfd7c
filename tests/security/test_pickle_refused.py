"""Models saved as pickles are not loaded, whoever registered them: the file would run code when it is read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.servers import client_environment

SAVED = """
import os, sys
import mlflow.pyfunc

class Evil(mlflow.pyfunc.PythonModel):
    def __reduce__(self):
        return (os.mkdir, (sys.argv[2],))
    def predict(self, context, model_input, params=None):
        return model_input

mlflow.pyfunc.save_model(sys.argv[1], python_model=Evil(), pip_requirements=[])
"""
LOADED = "import sys, mlflow.pyfunc; mlflow.pyfunc.load_model(sys.argv[1])"


def python(code: str, *arguments: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], env=os.environ | environment, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip


def test_pickled_model_runs_no_code_under_our_settings_and_does_under_the_defaults(tmp_path):
    model, proof = tmp_path / "model", tmp_path / "code-was-run"
    saved = python(SAVED, model, proof)
    assert saved.returncode == 0, saved.stderr
    assert list(model.rglob("*.pkl"))
    told = python(LOADED, model, **client_environment(tmp_path / "home"))
    assert told.returncode != 0
    assert "pickle" in told.stderr.lower()
    assert not proof.exists()
    python(LOADED, model, MLFLOW_ALLOW_PICKLE_DESERIALIZATION="true")
    assert proof.is_dir(), "the test would not notice a pickle that runs"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "adapter_model.bin"])
def test_model_folder_of_pickled_weights_is_refused(tmp_path, name):
    from spark_jobs.errors import RequestError
    from training.finetune.source import source_of
    from training.finetune_spec import ImportModelSpec

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(RequestError, match="safetensors"):
        source_of(ImportModelSpec(path=str(tmp_path)))
