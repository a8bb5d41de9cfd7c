"""A GGUF file of llama.cpp -> a Hugging Face folder: codes become the numbers they stand for, the tokenizer its own files.

transformers reads the file (architectures of its list alone); what it does not read is how a byte-level tokenizer splits text
before BPE: that is told by a name in the file, and only names whose way is known here are taken.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from spark_jobs.errors import RequestError

SPLITTING = {  # tokenizer.ggml.pre -> what comes before BPE; None: transformers knows it by the architecture
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "qwen2": None,
}


def write_folder(file: Path, folder: Path) -> None:
    """fp32 weights, configuration and tokenizer of a causal model. Raises: RequestError naming what cannot be read."""
    model = dequantized(file)
    model.save_pretrained(folder)
    tokenizer_of(file).save_pretrained(folder)


def dequantized(file: Path) -> PreTrainedModel:
    """The weights that the file's blocks decode to, in a model that knows nothing of the file."""
    try:
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    except (ValueError, KeyError, TypeError, ImportError) as error:  # a file or an architecture that is not known
        raise RequestError(f"{file}: {str(error).splitlines()[0]}; give a Hugging Face folder") from error
    config = type(read.config).from_dict(
        {
            name: value
            for name, value in read.config.to_dict().items()
            if name not in ("quantization_config", "_name_or_path")
        }
    )
    config.architectures = [type(read).__name__]
    model: PreTrainedModel = type(read)(config)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    return model.eval()


def tokenizer_of(file: Path) -> Any:
    """Raises: RequestError if the file names a splitting that is not known."""
    fields = fields_of(file, ("tokenizer.ggml.model", "tokenizer.ggml.pre"))
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    if fields["tokenizer.ggml.model"] == "gpt2":  # byte-level BPE; "llama" splits nothing before
        named = fields["tokenizer.ggml.pre"]
        if named not in SPLITTING:
            raise RequestError(
                f"{file}: text is split as {named!r} before BPE, of which only {', '.join(SPLITTING)} are known; give a "
                "Hugging Face folder"
            )
        splitting = SPLITTING[named]
        if splitting is not None:
            tokenizer.backend_tokenizer.pre_tokenizer = splitting()
    return tokenizer


def fields_of(file: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Values of metadata fields, None where the file has none."""
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    return {name: fields[name].contents() if name in fields else None for name in names}
