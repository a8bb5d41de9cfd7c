"""What a model folder holds: dense weights, an adapter, or codes, and in whose format."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from spark_jobs.errors import RequestError

ADAPTER = "adapter"  # sub-folder of a folder whose trained part lies beside the base
GGUF_FILE = "model.gguf"
CODE_DTYPES = {"I8", "U8", "I16", "I32", "F8_E4M3", "F8_E5M2", "F4"}  # of safetensors; no dense weight has one


def stored_format(folder: Path) -> str:
    """dense, adapter, gguf, or the name of the quantisation ("compressed-tensors", "torchao", "gptq", "awq", ...).

    Codes without a word about them in config.json are "codes of an unnamed format".
    """
    if (folder / GGUF_FILE).is_file():
        return "gguf"
    if (folder / ADAPTER).is_dir():
        return "adapter"
    found = json.loads((folder / "config.json").read_text()).get("quantization_config")
    if found:
        return str(found.get("quant_method", "codes of an unnamed format"))
    return "codes of an unnamed format" if _code_tensors(folder) else "dense"


def refuse_quantized(folder: Path, address: str) -> None:
    """Raises: RequestError naming the format found, if the folder holds codes already."""
    found = stored_format(folder)
    if found == "dense":
        return
    example = next(iter(_code_tensors(folder)), "")
    detail = f" ({example})" if example else ""
    raise RequestError(f"model {address} is {found} already{detail}: compress the dense one it came from")


def _code_tensors(folder: Path) -> list[str]:
    """Names of two-dimensional integer tensors; one-dimensional ones may be indices or counts."""
    return [
        f"{name} is {entry['dtype']}"
        for path in sorted(folder.glob("*.safetensors"))
        for name, entry in header(path).items()
        if name != "__metadata__" and entry["dtype"] in CODE_DTYPES and len(entry["shape"]) > 1
    ]


def header(path: Path) -> dict[str, dict[str, Any]]:
    """Header of a safetensors file: dtype, shape and place of each tensor, by name."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        found: dict[str, dict[str, Any]] = json.loads(file.read(length))
    return found
