"""GGUF files as the model that they were made from."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from spark_jobs.errors import RequestError
from spark_jobs.requests import Request
from training.compress import write_gguf
from training.compress.blocks import blocks_of
from training.compress.compressed import Compressed
from training.compress.layers import prunable_layers, set_weight, weight_OI
from training.compress.quantized import Grid
from training.compress.rounding import round_to_grid
from training.finetune.import_model import run
from training.finetune.read_gguf import dequantized, tokenizer_of, write_folder
from training.finetune.source import source_of
from training.finetune_spec import ImportModelSpec

torch.set_num_threads(1)
TEXT = "In 1234 the mill  ground 5 sacks,\n\nisn't it? café"


def tokenizer_folder(folder: Path, digits_apart: bool) -> Path:
    tokenizer = Tokenizer(models.BPE())
    splitting = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), splitting])
        if digits_apart
        else splitting
    )
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(["the mill ground sacks 12 34 12 34", "the café isn't 1234"] * 3, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    ).save_pretrained(folder)
    return folder


def written(folder: Path, digits_apart: bool = True) -> tuple[LlamaForCausalLM, Path, Path]:
    """A tied Llama whose layers are codes of 4 bits, the folder of its tokenizer, and its GGUF file."""
    torch.manual_seed(0)
    source = tokenizer_folder(folder / "source", digits_apart)
    size = len(AutoTokenizer.from_pretrained(source))
    config = LlamaConfig(
        vocab_size=size, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=96, max_position_embeddings=32, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    quantized = {}
    for block, module in blocks_of(model).items():
        for name, layer in prunable_layers(module).items():
            quantized[f"{block}.{name}"] = round_to_grid(weight_OI(layer), Grid(4, 32))
            set_weight(layer, quantized[f"{block}.{name}"].weight())
    (folder / "gguf").mkdir()
    write_gguf.write(folder / "gguf", source, Compressed(model, quantized), "tiny")
    return model, source, next((folder / "gguf").glob("*.gguf"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[LlamaForCausalLM, Path, Path]:
    return written(tmp_path_factory.mktemp("tiny"))


def test_a_gguf_file_becomes_the_model_that_its_codes_decode_to(tiny, tmp_path) -> None:
    model, _, file = tiny
    write_folder(file, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is LlamaForCausalLM
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("digits_apart", [True, False])
def test_its_tokenizer_splits_text_as_the_one_written(digits_apart: bool, tmp_path) -> None:
    """Merges of digits exist in the one vocabulary only; splitting makes the difference."""
    _, source, file = written(tmp_path, digits_apart)
    original, read = AutoTokenizer.from_pretrained(source), tokenizer_of(file)
    ids = original.encode(TEXT, add_special_tokens=False)
    assert read.encode(TEXT, add_special_tokens=False) == ids
    assert read.decode(ids) == TEXT
    assert (read.bos_token_id, read.eos_token_id, read.pad_token_id) == (1, 2, 0)
    pairs = [token for token in original.convert_ids_to_tokens(ids) if sum(c.isdigit() for c in token) > 1]
    assert bool(pairs) is not digits_apart


def test_a_tokenizer_of_unknown_splitting_is_refused_by_its_name(tiny, tmp_path) -> None:
    file = tmp_path / "other.gguf"
    content = tiny[2].read_bytes()
    assert content.count(b"smollm") == 1
    file.write_bytes(content.replace(b"smollm", b"viking"))
    with pytest.raises(RequestError, match=r"text is split as 'viking' before BPE, of which only gpt-2, smollm, qwen2"):
        tokenizer_of(file)


def test_an_unknown_architecture_is_refused(tiny, tmp_path) -> None:
    file = tmp_path / "other.gguf"
    file.write_bytes(tiny[2].read_bytes().replace(b"llama", b"lemma"))
    with pytest.raises(RequestError, match="lemma"):
        dequantized(file)


def test_source_is_a_file_a_folder_with_one_file_or_a_package_of_one(tiny, tmp_path, monkeypatch) -> None:
    package = tmp_path / "carrier_of_gguf"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "x.gguf").write_bytes(tiny[2].read_bytes())
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    file = package / "x.gguf"
    for spec in ({"path": str(file)}, {"path": str(package)}, {"package": "carrier_of_gguf"},
                 {"package": "carrier_of_gguf/x.gguf"}):  # fmt: skip
        assert source_of(ImportModelSpec.model_validate(spec)) == file
    (package / "y.gguf").write_bytes(b"")
    with pytest.raises(RequestError, match=r"it has x\.gguf, y\.gguf, name one"):
        source_of(ImportModelSpec(package="carrier_of_gguf"))
    with pytest.raises(RequestError, match="is no GGUF file; name a Hugging Face folder or a GGUF file"):
        source_of(ImportModelSpec(path=str(tmp_path / "nowhere")))


def test_import_model_of_a_gguf_file_is_a_dense_folder(tiny, tmp_path) -> None:
    request = Request(
        job="import-model", spec={"path": str(tiny[2])}, inputs={}, out=str(tmp_path / "out"), night="2026-01-01"
    )
    outcome = run(request)
    assert outcome.fields["scheme"] == "dense"
    assert outcome.fields["num_parameters"] == sum(p.numel() for p in tiny[0].parameters())
    assert (tmp_path / "out" / "data" / "tokenizer.json").is_file()
