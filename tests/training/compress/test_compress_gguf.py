"""GGUF files: bytes of blocks, and the same model in transformers and in llama.cpp."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from spark_jobs.errors import RequestError
from training.compress.already_quantized import GGUF_FILE
from training.compress.compressed import Compressed
from training.compress.files import write
from training.compress.layers import is_matrix, set_weight, weight_OI
from training.compress.quantized import Grid
from training.compress.rounding import round_to_grid
from training.compress.verify import verify_folder
from training.compress.write_gguf import blocks, gguf_name
from training.compress_spec import QuantizeSpec, RecipeSpec
from training.export import probe_logits
from training.model_folder import load_folder

gguf = pytest.importorskip("gguf")
torch.set_num_threads(1)

STORIES = Path(__file__).parents[4] / "shared" / "data" / "models" / "stories260k"


def write_tokenizer(folder: Path, vocab_size: int, **changes: object) -> Path:
    """Byte-level BPE of `vocab_size` tokens, as the tokenizer step trains it."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [["Ġ", letter] for letter in "abcdefghijklmnopqrstuvwxyz"][: vocab_size - 3 - len(alphabet)]
    names = ["<pad>", "<bos>", "<eos>", *alphabet, *("".join(pair) for pair in merges)]
    added = [{"id": i, "content": names[i], "special": True} | dict.fromkeys(FLAGS, False) for i in range(3)]
    told = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {name: i for i, name in enumerate(names)}, "merges": merges},
    }
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(told | changes))
    return folder


FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def tiny_llama(tied: bool = True, **fields: object) -> LlamaForCausalLM:
    torch.manual_seed(7)
    shape = {
        "vocab_size": 280, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "tie_word_embeddings": tied, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "initializer_range": 0.2, "max_position_embeddings": 128,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**(shape | fields))).eval()


def quantize_all(model: torch.nn.Module, grid: Grid, embedding: bool = False) -> Compressed:
    found = {}
    for name, module in model.named_modules():
        wanted = is_matrix(module) and name != "lm_head"
        if wanted or (embedding and isinstance(module, torch.nn.Embedding)):
            found[name] = round_to_grid(weight_OI(module), grid)
            set_weight(module, found[name].weight())
    return Compressed(model, found)


def recipe_of(bits: int = 4, group_size: int = 32, **quantize: object) -> RecipeSpec:
    spec = QuantizeSpec.model_validate({"bits": bits, "group_size": group_size} | quantize)
    return RecipeSpec(name="try", quantize=spec, export="gguf")


def test_block_of_q4_0_is_its_scale_and_nibbles_of_inputs_sixteen_apart() -> None:
    """Scale 0.5 is 0x3800; codes + 8: inputs 0..15 hold 0..15 in the low half, inputs 16..31 hold 15..0 in the high."""
    codes = torch.tensor([[*range(-8, 8), *range(7, -9, -1)]], dtype=torch.int8)
    found = blocks(codes, torch.tensor([[0.5]], dtype=torch.float16), Grid(4))
    assert found.tolist() == [[0x00, 0x38, *(low | (15 - low) << 4 for low in range(16))]]
    decoded = gguf.quants.dequantize(found, gguf.GGMLQuantizationType.Q4_0)
    assert decoded.tolist() == (codes.float() * 0.5).tolist()


def test_block_of_q8_0_is_its_scale_and_signed_bytes_and_a_wide_group_repeats_its_scale() -> None:
    codes = torch.tensor([[-128, 127, *range(62)]], dtype=torch.int8)
    found = blocks(codes, torch.tensor([[-2.0]], dtype=torch.float16), Grid(8))
    assert found.tolist() == [[0x00, 0xC0, 0x80, 0x7F, *range(30), 0x00, 0xC0, *range(30, 62)]]
    decoded = gguf.quants.dequantize(found, gguf.GGMLQuantizationType.Q8_0)
    assert decoded.tolist() == (codes.float() * -2).tolist()


@pytest.mark.parametrize(("bits", "group_size", "tied"), [(4, 32, True), (4, 64, True), (8, 32, False), (8, 0, True)])
def test_gguf_read_by_transformers_is_the_model_in_memory(
    tmp_path: Path, bits: int, group_size: int, tied: bool
) -> None:
    source = write_tokenizer(tmp_path / "source", 280)
    fields = {"hidden_size": 64, "intermediate_size": 96} if group_size else {}
    compressed = quantize_all(tiny_llama(tied, **fields), Grid(bits, group_size))
    write(tmp_path / "data", source, compressed, recipe_of(bits, group_size), tmp_path / "scratch")
    verified = verify_folder(tmp_path / "data", tmp_path / "scratch")
    assert verified.max_logit_difference < 1e-6
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "data", gguf_file=GGUF_FILE, dtype=torch.float32).eval()
    assert torch.equal(probe_logits(plain), probe_logits(load_folder(tmp_path / "data")))
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "data" / GGUF_FILE).tensors}
    assert ("output.weight" in names) is not tied
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "data" / GGUF_FILE).tensors}
    assert types["blk.1.ffn_down.weight"] == {4: "Q4_0", 8: "Q8_0"}[bits]
    assert types["blk.0.attn_norm.weight"] == "F32"


def test_tied_head_quantised_once_is_stored_once_and_shared(tmp_path: Path) -> None:
    source = write_tokenizer(tmp_path / "source", 280)
    compressed = quantize_all(tiny_llama(), Grid(8, 32), embedding=True)
    written = write(tmp_path / "data", source, compressed, recipe_of(8, tied_head="once"), tmp_path / "scratch")
    verified = verify_folder(tmp_path / "data", tmp_path / "scratch")
    assert verified.tied
    assert verified.max_logit_difference < 1e-6
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "data" / GGUF_FILE).tensors}
    assert types["token_embd.weight"] == "Q8_0"
    assert "output.weight" not in types
    assert written.effective_bits == 8.5


@pytest.mark.parametrize(
    ("bits", "tied", "layers", "near"), [(4, True, 99, 0.02), (8, False, 99, 0.02), (8, True, 1, 0.002)]
)
def test_llama_cpp_gives_the_same_logits_and_token_ids(
    tmp_path: Path, bits: int, tied: bool, layers: int, near: float
) -> None:
    """llama.cpp rounds to 8 bits the activations that meet codes, and keys and values to 16: the fewer layers hold codes,
    the nearer. A row of q in the wrong place would be far off."""
    llama_cpp = pytest.importorskip("llama_cpp")
    source = write_tokenizer(tmp_path / "source", 280)
    compressed = quantize_all(tiny_llama(tied, initializer_range=0.05), Grid(bits, 32), embedding=tied and layers > 1)
    kept = dict(list(compressed.quantized.items())[:layers])
    compressed = dataclasses.replace(compressed, quantized=kept)
    write(tmp_path / "data", source, compressed, recipe_of(bits, tied_head="once"), tmp_path / "scratch")
    engine = llama_cpp.Llama(str(tmp_path / "data" / GGUF_FILE), logits_all=True, n_ctx=64, verbose=False, n_threads=1)
    logits_TV = probe_logits(compressed.model)[0]
    engine.eval((torch.arange(len(logits_TV)) * 7919 % 280).tolist())
    found_TV = torch.tensor(np.array(engine.scores[: len(logits_TV)]))
    assert (found_TV - logits_TV).square().mean().sqrt() < near * logits_TV.square().mean().sqrt()
    text = "a quick fox, 12 naïve\n cafés"
    own = Tokenizer.from_file(str(source / "tokenizer.json")).encode(text).ids
    assert engine.tokenize(text.encode(), add_bos=False) == own
    assert engine.tokenize(text.encode(), add_bos=True) == [1, *own]


@pytest.mark.skipif(not STORIES.is_dir(), reason="wants shared/data/models/stories260k")
def test_model_with_byte_fallback_tells_stories_in_llama_cpp(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    model = AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.float32).eval()
    compressed = Compressed(model, {"model.layers.0.self_attn.q_proj": round_to_grid(
        model.model.layers[0].self_attn.q_proj.weight.detach(), Grid(8, 32))})  # fmt: skip
    set_weight(model.model.layers[0].self_attn.q_proj, next(iter(compressed.quantized.values())).weight())
    write(tmp_path / "data", STORIES, compressed, recipe_of(8), tmp_path / "scratch")
    engine = llama_cpp.Llama(str(tmp_path / "data" / GGUF_FILE), n_ctx=64, verbose=False, n_threads=1)
    tokenizer = Tokenizer.from_file(str(STORIES / "tokenizer.json"))
    text = "Once upon a time, Zoë had 3 cats."
    assert engine.tokenize(text.encode(), add_bos=True, special=False) == tokenizer.encode(text).ids
    ids = torch.tensor([tokenizer.encode("Once upon a time").ids])
    with torch.no_grad():
        following = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    told = engine("Once upon a time", max_tokens=12, temperature=0.0)["choices"][0]["text"]
    assert told.strip() == tokenizer.decode(following[0, ids.shape[1] :].tolist()).strip()


def test_what_gguf_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    source = write_tokenizer(tmp_path / "source", 280)

    def refused(compressed: Compressed, match: str, folder: Path = source) -> None:
        with pytest.raises(RequestError, match=match):
            write(tmp_path / "data", folder, compressed, recipe_of(), tmp_path / "scratch")

    refused(quantize_all(tiny_llama(), Grid(3, 32)), r"q_proj: GGUF has no blocks of 3 bits: set quantize.bits 4 or 8")
    refused(quantize_all(tiny_llama(), Grid(4, 32, symmetric=False)), "set quantize.symmetric true")
    refused(
        quantize_all(tiny_llama(), Grid(4, 16)),
        "64 inputs in groups of 16 are no blocks of 32: set quantize.group_size 32",
    )
    good = quantize_all(tiny_llama(), Grid(4, 32))
    name, codes = next(iter(good.quantized.items()))
    moved = dataclasses.replace(codes, group_I=torch.arange(64, dtype=torch.int32) % 2)
    refused(Compressed(good.model, {name: moved}), "set quantize.static_groups true")
    small = {
        "vocab_size": 280,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    qwen = Qwen2ForCausalLM(Qwen2Config(**small, num_key_value_heads=2))
    refused(
        quantize_all(qwen, Grid(4, 32)),
        "GGUF is written for llama, mistral models, not qwen2: export compressed-tensors",
    )
    unigram = write_tokenizer(tmp_path / "unigram", 280, model={"type": "Unigram"})
    refused(good, "llama.cpp has no Unigram tokenizer", unigram)
    spaces = write_tokenizer(tmp_path / "spaces", 280, pre_tokenizer={"type": "Whitespace"})
    refused(good, "splits text by Whitespace is not known", spaces)


def test_names_are_those_of_llama_cpp() -> None:
    assert gguf_name("model.layers.12.self_attn.q_proj.bias") == "blk.12.attn_q.bias"
    assert gguf_name("model.norm.weight") == "output_norm.weight"
    assert gguf_name("lm_head.weight") == "output.weight"
