"""Where a model that Nightmill did not train lies. Nothing heavy is imported: a flow asks it for digests."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from spark_jobs.errors import RequestError
from training.finetune_spec import ImportModelSpec


def source_folder(spec: ImportModelSpec) -> Path:
    """The folder of `spec.path` or `spec.package`. Raises: RequestError if it is not there."""
    if spec.path:
        folder, said = Path(spec.path), f"base.path {spec.path}"
    else:
        module, _, inner = spec.package.partition("/")
        found = importlib.util.find_spec(module)
        if found is None or not found.submodule_search_locations:
            raise RequestError(f"base.package {spec.package}: no package {module} is installed; pip install it first")
        folder, said = Path(next(iter(found.submodule_search_locations))) / inner, f"base.package {spec.package}"
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise RequestError(
            f"{said}: {folder} has no config.json with safetensors beside it; name a Hugging Face folder"
        )
    return folder
