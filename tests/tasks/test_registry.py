"""A real model folder into a real MLflow registry (SQLite), and out again in another process."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from mlflow import MlflowClient

from spark_jobs.errors import DataError
from spark_jobs.manifests import Corpus, FileEntry, Handle, Parent, file_sha256
from tasks import registry
from tasks.evidence import bundle
from tasks.registry_retention import remove_version, retired_versions
from tasks.servers import tracking_uri
from tasks.workspace import Workspace
from training.manifests import ModelFolder, Verdict

NIGHT = "2026-11-25"
COMMON = {"night": NIGHT, "spec": {}, "code": {}, "libraries": {}}


def save_tiny_model(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate([*alphabet, "<s>", "</s>"])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=258, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, bos_token_id=256, eos_token_id=257, max_position_embeddings=64,
        )
    ).save_pretrained(folder)  # fmt: skip


def published(handle: type, folder: Path, **fields) -> Handle:
    files = tuple(
        FileEntry(path=str(p.relative_to(folder)), size_bytes=p.stat().st_size, sha256=file_sha256(p))
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    )
    made = handle(format="files", num_rows=1, files=files, uri=str(folder), **COMMON, **fields)
    (folder / "_manifest.json").write_text(made.canonical())
    return made


@pytest.fixture
def home(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("NIGHTMILL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def workspace(home: Path) -> Workspace:
    return Workspace.of("demo")


@pytest.fixture(scope="module")
def model_files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny_model(folder / "data")
    return folder


@pytest.fixture
def model(model_files: Path, workspace: Workspace) -> ModelFolder:
    folder = workspace.at("models/export-0123456789abcdef")
    shutil.copytree(model_files, folder)
    return published(
        ModelFolder, folder, step="export", key="0123456789abcdef", scheme="dense", num_parameters=1, weight_bytes=1,
        effective_bits=32.0,
    )  # fmt: skip


@pytest.fixture
def verdict(workspace: Workspace) -> Verdict:
    folder = workspace.at("verdicts/gate-0123456789abcdef")
    folder.mkdir(parents=True)
    return published(
        Verdict, folder, step="gate", key="0123456789abcdef", decision="promote", reason="first", candidate="c",
        champion="", difference=-0.1, upper_bound=-0.05, num_documents=30,
    )  # fmt: skip


@pytest.fixture
def corpus(workspace: Workspace) -> Corpus:
    folder = workspace.at("corpus/corpus-0123456789abcdef")
    folder.mkdir(parents=True)
    tokenizer = Parent(role="tokenizer", address="tokenizers/x", digest="0" * 64)
    return published(
        Corpus, folder, step="corpus", key="0123456789abcdef", nights=(), tokenizer=tokenizer, seq_len=8, vocab_size=258
    )


def registered(workspace, model, verdict, corpus) -> str:
    return registry.register(workspace, model, verdict, corpus, bundle(workspace, model, verdict, corpus))


def test_registered_model_becomes_champion_and_generates_in_another_process(workspace, home, model, verdict, corpus):
    version = registered(workspace, model, verdict, corpus)
    client = MlflowClient(tracking_uri(home))
    assert registry.aliases_of(client, "demo") == {}
    assert registry.set_aliases("demo", {"champion": version}) == ["alias champion: none -> 1"]
    champion = client.get_model_version_by_alias("demo", "champion")
    assert str(champion.version) == version == "1"
    assert champion.tags["nightmill.model_sha256"] == model.digest
    assert champion.tags["nightmill.corpus_sha256"] == corpus.digest
    logged = client.get_logged_model(champion.source.removeprefix("models:/"))
    script = (
        "import mlflow, pandas as pd\n"
        f"mlflow.set_tracking_uri({tracking_uri(home)!r}); mlflow.set_registry_uri({tracking_uri(home)!r})\n"
        "served = mlflow.pyfunc.load_model('models:/demo@champion')\n"
        "assert served.metadata.signature is not None\n"
        "print(list(served.predict(pd.DataFrame({'prompt': ['a', 'b']}), params={'max_new_tokens': 4}).columns))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "['text']", done.stderr
    assert not list(Path(logged.artifact_location.removeprefix("file://")).rglob("*.pkl"))


def test_registering_does_not_load_the_model_into_the_flow_process(workspace, model, verdict, corpus):
    script = (
        "import sys; from tasks import registry; from tasks.evidence import bundle; from tasks.workspace import Workspace\n"
        "from spark_jobs.manifests import Corpus; from training.manifests import ModelFolder, Verdict\n"
        f"model, verdict, corpus = ModelFolder.load({model.uri!r}), Verdict.load({verdict.uri!r}), Corpus.load({corpus.uri!r})\n"
        "workspace = Workspace.of('demo')\n"
        "registry.register(workspace, model, verdict, corpus, bundle(workspace, model, verdict, corpus))\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_same_model_registered_twice_keeps_its_version(workspace, model, verdict, corpus):
    assert registered(workspace, model, verdict, corpus) == registered(workspace, model, verdict, corpus)


def test_release_killed_before_the_version_was_made_reuses_the_logged_model(workspace, home, model, verdict, corpus):
    version = registered(workspace, model, verdict, corpus)
    client = MlflowClient(tracking_uri(home))
    source = client.get_model_version("demo", version).source
    client.delete_model_version("demo", version)
    again = registered(workspace, model, verdict, corpus)
    assert client.get_model_version("demo", again).source == source


def test_copy_that_differs_is_refused(workspace, home, model, verdict, corpus):
    version = registered(workspace, model, verdict, corpus)
    client = MlflowClient(tracking_uri(home))
    logged = client.get_logged_model(client.get_model_version("demo", version).source.removeprefix("models:/"))
    location = Path(logged.artifact_location.removeprefix("file://"))
    (location / "artifacts/data/config.json").write_text("{}")
    with pytest.raises(DataError, match=r"config\.json: not the bytes of"):
        registry.check_copy(location, model)


def test_copy_of_a_retired_model_leaves_the_registry_unless_it_has_an_alias(workspace, home, model, verdict, corpus):
    version = registered(workspace, model, verdict, corpus)
    client = MlflowClient(tracking_uri(home))
    copies = home / "servers" / "mlartifacts"
    assert retired_versions(client, workspace, kept={model.address}) == []
    registry.set_aliases("demo", {"champion": version})
    assert retired_versions(client, workspace, kept=set()) == []

    registry.set_aliases("demo", {"champion": None})
    (gone,) = retired_versions(client, workspace, kept=set())
    removal = remove_version(client, gone)

    assert removal.path == f"models:/demo/{version}"
    assert removal.size_bytes > 1000
    assert [path for path in copies.rglob("*") if path.is_file()] == []
    assert client.search_model_versions("name = 'demo'") == []


def test_classifier_is_registered_with_a_signature_of_its_own_and_answers_with_label_and_score(
    workspace, home, model_files, verdict, corpus
):
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    folder = workspace.at("models/export-task-0123456789abcdef")
    shutil.copytree(model_files / "data", folder / "data")
    torch.manual_seed(0)
    LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=258, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, pad_token_id=0, max_position_embeddings=64, num_labels=3,
            id2label={0: "good", 1: "bad", 2: "neither"},
        )
    ).save_pretrained(folder / "data")  # fmt: skip
    classifier = published(
        ModelFolder, folder, step="export-task", key="0123456789abcdef", scheme="dense", num_parameters=1, weight_bytes=1,
        effective_bits=32.0,
    )  # fmt: skip
    registered(workspace, classifier, verdict, corpus)
    script = (
        "import mlflow, pandas as pd\n"
        f"mlflow.set_tracking_uri({tracking_uri(home)!r}); mlflow.set_registry_uri({tracking_uri(home)!r})\n"
        "served = mlflow.pyfunc.load_model('models:/demo/1')\n"
        "print([c.name for c in served.metadata.signature.inputs], [c.name for c in served.metadata.signature.outputs])\n"
        "row = served.predict(pd.DataFrame({'text': ['a']})).iloc[0]; print(row['label'], 1 / 3 < row['score'] < 1)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    signature, answer = done.stdout.splitlines()
    assert signature == "['text'] ['label', 'score']", done.stderr
    assert answer.split()[0] in {"good", "bad", "neither"}
    assert answer.endswith("True")


def test_head_that_mlflow_could_not_serve_is_refused_with_its_name(workspace, model, verdict, corpus):
    config = Path(model.folder()) / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "LlamaForQuestionAnswering"))
    with pytest.raises(DataError, match="LlamaForQuestionAnswering has no signature in the registry"):
        registered(workspace, model, verdict, corpus)


def test_mlflow_models_serve_answers_for_the_champion(workspace, home, model, verdict, corpus, tmp_path):
    """The official scoring server, in a process of its own, as a user starts it."""
    registry.set_aliases("demo", {"champion": registered(workspace, model, verdict, corpus)})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path / "serve.log").open("w")
    serving = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/demo@champion", "--env-manager", "local",
         "--host", "127.0.0.1", "-p", str(port)],
        env=os.environ
        | {
            "MLFLOW_TRACKING_URI": tracking_uri(home), "HF_HUB_OFFLINE": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # MLflow calls uvicorn by name
        },
        stdout=log, stderr=log,
        start_new_session=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + 240
        while time.monotonic() < until and serving.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                break
            time.sleep(0.5)
        body = {
            "dataframe_split": {"columns": ["prompt"], "data": [["a"], ["b c"]]}, "params": {"max_new_tokens": 4},
        }  # fmt: skip
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            told = json.load(response)
    except OSError as error:
        pytest.fail(f"{error}: {(tmp_path / 'serve.log').read_text()[-3000:]}")
    finally:
        os.killpg(serving.pid, signal.SIGTERM)
        serving.wait(timeout=30)
    assert [sorted(row) for row in told["predictions"]] == [["text"], ["text"]]
