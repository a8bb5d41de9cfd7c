"""Where a model that Nightmill did not train lies. Nothing heavy is imported: a flow asks it for digests."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from spark_jobs.errors import RequestError
from training.finetune_spec import ImportModelSpec

GGUF = ".gguf"


def source_of(spec: ImportModelSpec) -> Path:
    """The folder or the GGUF file of `spec.path` or `spec.package`; a folder of one GGUF file alone stands for it.

    Raises: RequestError if it is not there.
    """
    if spec.path:
        place, said = Path(spec.path), f"base.path {spec.path}"
    else:
        module, _, inner = spec.package.partition("/")
        found = importlib.util.find_spec(module)
        if found is None or not found.submodule_search_locations:
            raise RequestError(f"base.package {spec.package}: no package {module} is installed; pip install it first")
        if inner.startswith("/") or ".." in inner.split("/"):
            raise RequestError(
                f"base.package {spec.package}: leads out of the package; wanted module/folder or module/file"
            )
        place, said = Path(next(iter(found.submodule_search_locations))) / inner, f"base.package {spec.package}"
    if place.suffix == GGUF and place.is_file():
        return place
    files = sorted(place.glob(f"*{GGUF}"))
    if (place / "config.json").is_file() and list(place.glob("*.safetensors")):
        return place
    if len(files) == 1:
        return files[0]
    raise RequestError(
        f"{said}: {place} has no config.json with safetensors beside it and is no GGUF file"
        + (
            f"; it has {', '.join(f.name for f in files)}, name one"
            if files
            else "; name a Hugging Face folder or a GGUF file"
        )
    )
