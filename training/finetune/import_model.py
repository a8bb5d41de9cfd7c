"""The import-model job: a model that Nightmill did not train, as a folder of the workspace.

From a local folder, from a folder that an installed package carries, or (the only thing in Nightmill that downloads) from
the Hugging Face hub at a named revision. Weights must be safetensors (pickled ones run code when they are read), or one GGUF
file, whose codes become the numbers they stand for.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors import safe_open
from transformers import AutoConfig

from spark_jobs.errors import RequestError
from spark_jobs.requests import Outcome, Request
from training.compress.already_quantized import stored_format
from training.finetune.read_gguf import write_folder
from training.finetune.source import GGUF, source_of
from training.finetune_spec import ImportJobSpec
from training.model_folder import weight_bytes

WANTED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")  # weights, configuration, tokenizer


def run(request: Request) -> Outcome:
    """Raises: RequestError if there is no such folder or file, or no safetensors and config.json in it."""
    spec = ImportJobSpec.model_validate(request.spec)
    data = Path(request.out) / "data"
    data.mkdir(parents=True, exist_ok=True)
    source = _downloaded(spec) if spec.hub else source_of(spec)
    if source.suffix == GGUF:
        write_folder(source, data)
    else:
        copy_folder(source, data)
    AutoConfig.from_pretrained(data)  # a configuration that transformers cannot read is refused here
    sizes = {name: size for path in sorted(data.glob("*.safetensors")) for name, size in _tensor_sizes(path)}
    fields = {
        "scheme": stored_format(data),
        "num_parameters": sum(sizes.values()),
        "weight_bytes": weight_bytes(data),
        "effective_bits": 8 * weight_bytes(data) / max(1, sum(sizes.values())),
    }
    return Outcome(num_rows=len(sizes), format="safetensors", fields=fields)


def _downloaded(spec: ImportJobSpec) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(spec.hub, revision=spec.revision, allow_patterns=list(WANTED)))
    except Exception as error:  # whatever the hub's client raises, it is about the repository or the way there
        raise RequestError(
            f"base.hub {spec.hub} at {spec.revision}: {str(error).splitlines()[0]}; unset HF_HUB_OFFLINE to download, or give "
            "a local folder by base.path"
        ) from error


def copy_folder(source: Path, target: Path) -> None:
    """The files of WANTED, of the folder itself: nothing below it is part of the model."""
    for pattern in WANTED:
        for path in sorted(source.glob(pattern)):
            shutil.copyfile(path, target / path.name)


def _tensor_sizes(path: Path) -> list[tuple[str, int]]:
    with safe_open(path, "pt") as file:
        shapes = [(name, file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118 no dict
    sizes = []
    for name, shape in shapes:
        size = 1
        for length in shape:
            size *= length
        sizes.append((name, size))
    return sizes
