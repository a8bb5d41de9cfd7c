"""The model registry: one version a model folder, and the alias `champion`.

Every call may be repeated: the model and its version are found again by the digest of their manifest, so a kill between
two of the calls is repaired by running the release again.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_jobs.errors import DataError, NightmillError
from spark_jobs.manifests import Corpus, file_sha256
from tasks.server_databases import prepare_database
from tasks.servers import servers_folder, tracking_uri
from tasks.tracking_store import experiment_of, now_ms
from tasks.workspace import Workspace, home
from training.manifests import Evidence, ModelFolder, Verdict
from training.release_card import release_card

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, CANDIDATE = "champion", "candidate"  # the aliases; candidate: of what waits for a person
WRITES, CLASSIFIES = "writes", "classifies"
MODEL_DIGEST = "nightmill.model_sha256"
SERVING_MODEL = Path(__file__).parent.parent / "training" / "serving_model.py"
SERVING_LIBRARIES = ("mlflow", "torch", "transformers", "pandas")
FORMAT_LIBRARIES: dict[str, tuple[str, ...]] = {
    "dense": (), "adapter": ("peft",), "compressed-tensors": ("compressed-tensors",), "torchao": ("torchao",),
    "gguf": ("gguf", "accelerate"),
}  # fmt: skip


def register(workspace: Workspace, model: ModelFolder, verdict: Verdict, corpus: Corpus, evidence: Evidence) -> str:
    """Version of the model in the registry under the pipeline's name, made if this model has none; its tags and its description, the
    model card, are of the newest verdict on it.

    Raises: NightmillError if MLflow does not take it; DataError if its copy differs from the folder.
    """
    client = registry_client()
    tags = version_tags(model, verdict, corpus, evidence)
    card = release_card(workspace.name, model, verdict, corpus, evidence)
    found = _version_of(client, workspace.name, model)
    if found is not None:
        _renew(client, workspace.name, found, tags, card)
        return found
    experiment_id = experiment_of(client, workspace.name, servers_folder(home()) / "mlartifacts" / workspace.name)
    model_id, location = _logged_model(client, experiment_id, model) or _log_model(
        client, experiment_id, model, tags, card
    )
    check_copy(location, model)
    _link_corpus(client, experiment_id, model_id, verdict, corpus)
    _create_registered_model(client, workspace.name)
    made = client.create_model_version(
        workspace.name, f"models:/{model_id}", model_id=model_id, tags=tags, description=card
    )
    return str(made.version)


def set_aliases(name: str, wanted: dict[str, str | None]) -> list[str]:
    """Make each alias point at its version (None: be gone), look again, and say what was moved. Called by `tasks.champion` alone.

    Raises: NightmillError if MLflow does not answer, lacks the model, or says something else afterwards.
    """
    from mlflow.exceptions import MlflowException

    try:
        client = registry_client()
        found = aliases_of(client, name)
        moved = {alias: version for alias, version in wanted.items() if found.get(alias) != version}
        for alias, version in moved.items():
            if version is None:
                client.delete_registered_model_alias(name, alias)
            else:
                client.set_registered_model_alias(name, alias, version)
        after = aliases_of(client, name) if moved else found
    except MlflowException as err:
        raise NightmillError(
            f"MLflow did not move the aliases of {name} ({str(err).splitlines()[0]}); ledger and champion.json are right and servers follow "
            "them; when MLflow is well again: nightmill promote PRESET --repair"
        ) from err
    wrong = [alias for alias, version in wanted.items() if after.get(alias) != version]
    if wrong:
        raise NightmillError(
            f"alias {wrong[0]} of {name} is {after.get(wrong[0])}, wanted {wanted[wrong[0]]}: somebody moves it too; it is for Nightmill alone, "
            "run `nightmill promote PRESET --repair`"
        )
    return [f"alias {alias}: {found.get(alias, 'none')} -> {version or 'none'}" for alias, version in moved.items()]


def aliases_of(client: MlflowClient, name: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}


def version_tags(model: ModelFolder, verdict: Verdict, corpus: Corpus, evidence: Evidence) -> dict[str, str]:
    """From a version back to every byte it was made of and judged by."""
    tags = {
        MODEL_DIGEST: model.digest,
        "nightmill.night": verdict.night,
        "nightmill.scheme": model.scheme,
        "nightmill.decision": verdict.decision,
    }
    for role, handle in (("model", model), ("verdict", verdict), ("corpus", corpus), ("evidence", evidence)):
        tags |= {f"nightmill.{role}": handle.address, f"nightmill.{role}_sha256": handle.digest}
    return tags


def check_copy(location: Path, model: ModelFolder) -> None:
    """Raises: DataError unless the registry's copy has the bytes of the model folder."""
    folder = location / "artifacts" / "data"
    for entry in model.files:
        if not entry.path.startswith("data/"):
            continue
        copy = folder / entry.path.removeprefix("data/")
        if not copy.is_file() or file_sha256(copy) != entry.sha256:
            raise DataError(f"{copy}: not the bytes of {model.uri}; delete {location} and run release-model again")


def registry_client() -> MlflowClient:
    """Of the server that is up, or of its database."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow
    from mlflow import MlflowClient

    prepare_database("mlflow", servers_folder(home()))
    uri = tracking_uri(home())
    mlflow.set_tracking_uri(uri)  # the registry's own look-up of `models:/m-...` knows no other way
    return MlflowClient(uri, registry_uri=uri)


def _version_of(client: MlflowClient, name: str, model: ModelFolder) -> str | None:
    found = client.search_model_versions(f"name = '{name}' and tags.`{MODEL_DIGEST}` = '{model.digest}'")
    return str(found[0].version) if found else None


def _logged_model(client: MlflowClient, experiment_id: str, model: ModelFolder) -> tuple[str, Path] | None:
    """The finished logged model that an interrupted release left."""
    found = client.search_logged_models([experiment_id], f"tags.`{MODEL_DIGEST}` = '{model.digest}'")
    for logged in found:
        if str(logged.status) == "READY":
            return logged.model_id, _local(logged.artifact_location)
    return None


def _renew(client: MlflowClient, name: str, version: str, tags: dict[str, str], card: str) -> None:
    """Tags and description of a version that was judged again."""
    found = client.get_model_version(name, version)
    for tag, value in tags.items():
        if found.tags.get(tag) != value:
            client.set_model_version_tag(name, version, tag, value)
    if found.description != card:
        client.update_model_version(name, version, card)


def _log_model(
    client: MlflowClient, experiment_id: str, model: ModelFolder, tags: dict[str, str], card: str
) -> tuple[str, Path]:
    """Copy the folder, the code that serves it, the signature and an example into MLflow.

    Spelt out instead of `mlflow.pyfunc.log_model`, which loads the model into this process to try the example (torch and
    transformers: 12 s). Requirements are stated, not inferred, which would import the model in yet another process.
    """
    from mlflow.entities import LoggedModelOutput

    run_id = _night_run(client, experiment_id, tags["nightmill.night"])
    logged = client.create_logged_model(experiment_id, model.step, run_id, tags, model_type=model.scheme)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        _save(folder, model, logged.model_id, run_id)
        (folder / "README.md").write_text(card)
        client.log_model_artifacts(logged.model_id, str(folder))
    client.finalize_logged_model(logged.model_id, "READY")
    if run_id:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return logged.model_id, _local(logged.artifact_location)


def _save(folder: Path, model: ModelFolder, model_id: str, run_id: str | None) -> None:
    """An MLflow model folder. Raises: NightmillError if it came out without a signature."""
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import Model

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    kind = _kind(model)
    card = Model(artifact_path=folder.name, run_id=run_id, model_uuid=model_id, model_id=model_id)
    mlflow.pyfunc.save_model(
        str(folder),
        mlflow_model=card,
        python_model=str(SERVING_MODEL),
        artifacts={"model": model.folder()},
        signature=_signature(kind),
        input_example=pd.DataFrame({"text" if kind == CLASSIFIES else "prompt": ["The"]}),
        pip_requirements=[
            f"{name}=={installed(name)}" for name in (*SERVING_LIBRARIES, *FORMAT_LIBRARIES[model.file_format])
        ],
    )
    if Model.load(str(folder)).signature is None:
        raise NightmillError(f"MLflow saved model {model.address} without a signature; run release-model again")


def _kind(model: ModelFolder) -> str:
    """What a call of the model does. Raises: DataError for a head that `training/serving_model.py` cannot serve."""
    path = Path(model.folder()) / "config.json"
    name = (json.loads(path.read_text()).get("architectures") or ["no architecture"])[0]
    if name.endswith("ForSequenceClassification"):
        return CLASSIFIES
    if name.endswith(("LMHeadModel", "ForCausalLM", "ForMaskedLM", "ForConditionalGeneration", "ForPreTraining")):
        return WRITES
    raise DataError(
        f"{path}: {name} has no signature in the registry; wanted a language model or one for sequence classification"
    )


def _signature(kind: str) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    if kind == CLASSIFIES:
        return ModelSignature(
            inputs=Schema([ColSpec("string", "text")]),
            outputs=Schema([ColSpec("string", "label"), ColSpec("double", "score")]),
        )
    return ModelSignature(
        inputs=Schema([ColSpec("string", "prompt")]),
        outputs=Schema([ColSpec("string", "text")]),
        params=ParamSchema([ParamSpec("max_new_tokens", "long", 32)]),
    )


def _link_corpus(client: MlflowClient, experiment_id: str, model_id: str, verdict: Verdict, corpus: Corpus) -> None:
    """Show, in MLflow's own terms, on which corpus the night trained and what the gate measured on this model."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

    run_id = _night_run(client, experiment_id, verdict.night)
    if run_id is None:
        return
    dataset = Dataset(corpus.step, corpus.digest[:32], "local", f'{{"uri": "{corpus.uri}"}}')
    tags = [InputTag("mlflow.data.context", "training"), InputTag("nightmill.manifest_sha256", corpus.digest)]
    client.log_inputs(run_id, [DatasetInput(dataset, tags)])
    numbers = {"difference": verdict.difference, "upper_bound": verdict.upper_bound, "documents": verdict.num_documents}
    metrics = [
        Metric(
            f"gate.{name}", float(value), now_ms(), 0, model_id=model_id, dataset_name=dataset.name,
            dataset_digest=dataset.digest, run_id=run_id,
        )
        for name, value in numbers.items()
        if value is not None
    ]  # fmt: skip
    client.log_batch(run_id, metrics=metrics)


def _night_run(client: MlflowClient, experiment_id: str, night: str) -> str | None:
    found = client.search_runs([experiment_id], f"tags.`nightmill.key` = '{night}'", max_results=1)
    return found[0].info.run_id if found else None


def _create_registered_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description="Champions and candidates of a Nightmill pipeline.")
    except MlflowException as err:
        if err.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _local(location: str) -> Path:
    return Path(location.removeprefix("file://"))
