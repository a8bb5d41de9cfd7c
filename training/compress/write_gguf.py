"""Codes -> one GGUF file that llama.cpp runs and transformers reads (`gguf_file=`). Nothing is rounded again.

Symmetric codes in groups of a multiple of 32 inputs are blocks of GGUF as they are: 8 bits Q8_0, 4 bits Q4_0; a wider
group's scale is repeated for each block. Everything else is stored in the narrowest type that holds it exactly (F16, BF16,
F32; vectors always F32). A tied head is not stored: llama.cpp uses the embedding, codes included.

llama.cpp turns neighbouring pairs of a head's outputs where transformers turns halves: the rows of q and k change places.
Source: gguf 0.19; llama.cpp convert_hf_to_gguf.py (LlamaModel.permute); blocks: ggml-common.h.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spark_jobs.errors import RequestError
from training.compress import write_safetensors
from training.compress.already_quantized import GGUF_FILE
from training.compress.compressed import Compressed
from training.compress.quantized import Grid, Quantized

BLOCK = 32
BLOCK_TYPES = {8: "Q8_0", 4: "Q4_0"}
FAMILY = ("llama", "mistral")  # model types of transformers whose blocks are llama.cpp's "llama"
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
NORMAL, CONTROL, BYTE = 1, 3, 6  # gguf.TokenType


def write(
    folder: Path, source: Path, compressed: Compressed, name: str
) -> tuple[dict[str, Tensor], int, dict[str, Any]]:
    """Returns the unquantised rest, the number of tensors, and nothing to add to config.json.

    Raises: RequestError naming the model, the layer or the tokenizer that GGUF cannot hold.
    """
    import gguf

    check(compressed)
    config = compressed.model.config
    writer = gguf.GGUFWriter(folder / GGUF_FILE, "llama")
    writer.add_name(name)
    _add_shape(writer, config)
    _add_tokenizer(writer, source, config)
    rest = {
        tensor_name: value.float() if value.ndim == 1 else value  # llama.cpp wants vectors in fp32
        for tensor_name, value in write_safetensors.rest(compressed.model, set(compressed.quantized)).items()
    }
    for tensor_name, value in rest.items():
        rows = _turned(tensor_name, value, config)
        if value.dtype == torch.bfloat16:
            raw = rows.contiguous().view(torch.uint8).numpy()
            writer.add_tensor(gguf_name(tensor_name), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(gguf_name(tensor_name), rows.numpy())
    for layer, quantized in compressed.quantized.items():
        kind = getattr(gguf.GGMLQuantizationType, BLOCK_TYPES[quantized.grid.bits])
        codes_OI = _turned(f"{layer}.weight", quantized.codes_OI, config)
        scales_OG = _turned(f"{layer}.weight", quantized.scales_OG, config)
        writer.add_tensor(gguf_name(f"{layer}.weight"), blocks(codes_OI, scales_OG, quantized.grid), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return rest, len(rest) + len(compressed.quantized), {}


def blocks(codes_OI: Tensor, scales_OG: Tensor, grid: Grid) -> NDArray[np.uint8]:
    """uint8 (O, bytes of a row): each block of 32 inputs is its fp16 scale and its codes, Q8_0 as int8, Q4_0 as codes + 8
    in nibbles, input i beside input i + 16, the lower in the low half."""
    num_outputs, num_inputs = codes_OI.shape
    codes: NDArray[np.int8] = codes_OI.contiguous().numpy().reshape(num_outputs, -1, BLOCK)
    packed: NDArray[np.uint8]
    if grid.bits == 8:
        packed = codes.view(np.uint8)
    else:
        unsigned: NDArray[np.uint8] = (codes + 8).astype(np.uint8)
        packed = (unsigned[..., : BLOCK // 2] | unsigned[..., BLOCK // 2 :] << 4).astype(np.uint8)
    group_B = torch.arange(0, num_inputs, BLOCK) // grid.group(num_inputs)  # of each block of a row
    scales = scales_OG[:, group_B].contiguous().numpy().astype("<f2")
    return np.concatenate([scales[..., None].view(np.uint8), packed], axis=-1).reshape(num_outputs, -1)


def gguf_name(name: str) -> str:
    """The name of llama.cpp for a parameter of a Llama of transformers."""
    module, _, kind = name.rpartition(".")
    if module in NAMES:
        return f"{NAMES[module]}.{kind}"
    _, _, index, inside = module.split(".", 3)
    return f"blk.{index}.{NAMES[inside]}.{kind}"


def _turned(name: str, rows: Tensor, config: Any) -> Tensor:
    """Rows of q and k from halves of a head to pairs."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    layer = name.split(".")[-2]
    if layer not in heads:
        return rows
    shape = rows.shape
    return rows.reshape(heads[layer], 2, shape[0] // heads[layer] // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def _add_shape(writer: Any, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: Any, source: Path, config: Any) -> None:
    """Byte-level BPE as llama.cpp's "gpt2", BPE with byte fallback as its "llama" (merges as scores, first best)."""
    told = json.loads((source / "tokenizer.json").read_text())
    model = told["model"]
    if model.get("type", "BPE") != "BPE":
        raise RequestError(f"llama.cpp has no {model['type']} tokenizer: train a BPE one, or export compressed-tensors")
    tokens, special = _tokens(told, config.vocab_size)
    fallback = bool(model.get("byte_fallback"))
    writer.add_tokenizer_model("llama" if fallback else "gpt2")
    writer.add_token_list(tokens)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    if fallback:
        ranks = {pair.replace(" ", ""): -float(rank) for rank, pair in reversed(list(enumerate(merges)))}
        writer.add_token_scores([ranks.get(token, -float(len(merges))) for token in tokens])
        writer.add_token_types([CONTROL if t in special else BYTE if _is_byte(t) else NORMAL for t in tokens])
    else:
        writer.add_tokenizer_pre(_splitting(told))
        writer.add_token_merges(merges)
        writer.add_token_types([CONTROL if t in special else NORMAL for t in tokens])
    for add, token_id in (
        (writer.add_bos_token_id, config.bos_token_id),
        (writer.add_eos_token_id, config.eos_token_id),
        (writer.add_pad_token_id, config.pad_token_id),
    ):
        if isinstance(token_id, int):
            add(token_id)
    writer.add_add_bos_token(isinstance(config.bos_token_id, int))  # as Nightmill's own generation starts


def _splitting(told: dict[str, Any]) -> str:
    """llama.cpp's name for how text is split before BPE: GPT-2's way, or the same with digits apart (SmolLM)."""
    found = told["pre_tokenizer"] or {}
    parts = found.get("pretokenizers", [found])
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits") and parts[1].get("use_regex", True):
        return "smollm"
    raise RequestError(
        f"llama.cpp's name for a tokenizer that splits text by {', '.join(map(str, kinds))} is not known: use a byte-level BPE "
        "tokenizer as Nightmill trains, or export compressed-tensors"
    )


def _tokens(told: dict[str, Any], vocab_size: int) -> tuple[list[str], set[str]]:
    """Tokens by id, rows of the embedding without a token named so, and those that stand for no text."""
    ids = dict(told["model"]["vocab"]) | {entry["content"]: entry["id"] for entry in told.get("added_tokens", [])}
    names = {number: token for token, number in ids.items()}
    special = {entry["content"] for entry in told.get("added_tokens", []) if entry.get("special")}
    unused = {number: f"<unused{number}>" for number in range(vocab_size) if number not in names}
    return [(names | unused)[number] for number in range(vocab_size)], special | set(unused.values())


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def check(compressed: Compressed) -> None:
    """Raises: RequestError with what to set instead."""
    config = compressed.model.config
    scaling = config.rope_parameters.get("rope_type", "default") if config.model_type in FAMILY else "default"
    if config.model_type not in FAMILY or scaling != "default":
        kind = config.model_type if config.model_type not in FAMILY else f"{config.model_type} with rope {scaling}"
        raise RequestError(f"GGUF is written for {', '.join(FAMILY)} models, not {kind}: export compressed-tensors")
    for name, quantized in compressed.quantized.items():
        _check_layer(name, quantized)


def _check_layer(name: str, quantized: Quantized) -> None:
    grid, num_inputs = quantized.grid, quantized.codes_OI.shape[1]
    group = grid.group(num_inputs)
    if grid.bits not in BLOCK_TYPES:
        raise RequestError(f"{name}: GGUF has no blocks of {grid.bits} bits: set quantize.bits 4 or 8")
    if not grid.symmetric:
        raise RequestError(f"{name}: blocks Q4_0 and Q8_0 have no zero point: set quantize.symmetric true")
    if group % BLOCK or num_inputs % BLOCK:
        raise RequestError(
            f"{name}: {num_inputs} inputs in groups of {group} are no blocks of {BLOCK}: set quantize.group_size {BLOCK}, "
            "and a model whose widths it divides, or export compressed-tensors"
        )
    if quantized.group_I is not None:
        raise RequestError(
            f"{name} has groups in order of activation, for which GGUF has no index: set quantize.static_groups true"
        )
