"""Written folders: bit-exact, loadable by plain transformers, as large as they say."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CompressedTensorsConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from spark_jobs.errors import DataError, RequestError
from training.compress import write_compressed_tensors
from training.compress.already_quantized import refuse_quantized, stored_format
from training.compress.compressed import Compressed
from training.compress.files import Written, write
from training.compress.layer_report import LayerReport
from training.compress.layers import is_matrix, set_weight, weight_OI
from training.compress.model_card import CARD, Lineage, write_card
from training.compress.quantized import Grid, Quantized
from training.compress.rounding import round_to_grid
from training.compress.sizes import memory_bytes
from training.compress.verify import EXPECTED, Verified, bad_groups, verify_folder
from training.compress_spec import PruneSpec, QuantizeSpec, RecipeSpec
from training.export import probe_logits
from training.model_folder import load_folder, weight_bytes
from training.processes import in_fresh_process

VOCABULARY = 300


def tiny_llama(tied: bool = True, **fields: object) -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2, pad_token_id=0, **fields,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # no bfloat16 numbers by chance, and norms that say something
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter) * 0.05)
    return model


def quantize_all(model: nn.Module, grid: Grid, bits_of: dict[str, int] | None = None) -> Compressed:
    """Rounded to nearest, every linear layer but the head; weights replaced by what the codes say."""
    found: dict[str, Quantized] = {}
    for name, module in model.named_modules():
        if is_matrix(module) and name != "lm_head":
            bits = next((b for part, b in (bits_of or {}).items() if part in name), grid.bits)
            found[name] = round_to_grid(weight_OI(module), dataclasses.replace(grid, bits=bits))
            set_weight(module, found[name].weight())
    return Compressed(model, found, reports_of(model, found))


def reports_of(model: nn.Module, found: dict[str, Quantized]) -> list[LayerReport]:
    return [
        LayerReport(
            name, "rtn", *q.codes_OI.shape, 0.1, 0.1, 0.0, False, int((q.weight() == 0).sum()), float(q.grid.bits), 0.0
        )
        for name, q in found.items()
    ]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a byte-level tokenizer of VOCABULARY tokens."""
    folder = tmp_path_factory.mktemp("source")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", "<bos>", "<eos>", *alphabet]
    merges = [(a, b) for a in "abcdef" for b in "ghijklm"][: VOCABULARY - len(names)]
    names += [a + b for a, b in merges]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<pad>", "<bos>", "<eos>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


def recipe_of(export: str = "compressed-tensors", **quantize: object) -> RecipeSpec:
    return RecipeSpec(name="try", quantize=QuantizeSpec.model_validate({"group_size": 32} | quantize), export=export)


def written_and_verified(
    tmp_path: Path, source: Path, compressed: Compressed, recipe: RecipeSpec
) -> tuple[Written, dict]:
    """As a job does it: the reload is in a fresh process."""
    written = write(tmp_path / "data", source, compressed, recipe, tmp_path / "scratch")

    def verify() -> dict[str, object]:
        return dataclasses.asdict(verify_folder(tmp_path / "data", tmp_path / "scratch"))

    return written, in_fresh_process(verify)


@pytest.mark.parametrize(
    ("bits", "group_size", "symmetric", "tied"),
    [(2, 32, True, True), (3, 32, True, False), (4, 0, True, True), (8, 16, True, True), (4, 32, False, True), (3, 0, False, False)],
)  # fmt: skip
def test_compressed_tensors_folder_reloaded_gives_the_same_logits_tie_and_weights(
    tmp_path: Path, source: Path, bits: int, group_size: int, symmetric: bool, tied: bool
) -> None:
    compressed = quantize_all(tiny_llama(tied), Grid(bits, group_size, symmetric))
    recipe = recipe_of(bits=bits, group_size=group_size, symmetric=symmetric)
    written, verified = written_and_verified(tmp_path, source, compressed, recipe)
    assert verified["max_logit_difference"] == 0.0
    assert verified["tied"] is tied
    model = load_folder(tmp_path / "data")
    logits = probe_logits(model)  # the first forward unpacks
    assert torch.equal(logits, probe_logits(compressed.model))
    for name, quantized in compressed.quantized.items():
        assert torch.equal(model.get_submodule(name).weight, quantized.weight())
    assert bits < written.effective_bits < bits + 1.1


def test_compressed_tensors_folder_loads_in_plain_transformers_without_nightmill(tmp_path: Path, source: Path) -> None:
    compressed = quantize_all(tiny_llama(), Grid(4, 32))
    write(tmp_path / "data", source, compressed, recipe_of(bits=4), tmp_path / "scratch")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "data").eval()
    assert type(model) is LlamaForCausalLM
    assert memory_bytes(model) < memory_bytes(compressed.model) / 2  # codes, until the first forward
    assert torch.equal(probe_logits(model), probe_logits(compressed.model))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_zero_points_load_in_plain_transformers_when_asked_to_dequantize(tmp_path: Path, source: Path) -> None:
    """Codes times scales in 16 bits there: near, not equal."""
    compressed = quantize_all(tiny_llama(), Grid(4, 32, symmetric=False))
    write(tmp_path / "data", source, compressed, recipe_of(bits=4, symmetric=False), tmp_path / "scratch")
    with pytest.warns(UserWarning, match="loading attributes"):
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "data", quantization_config=CompressedTensorsConfig(dequantize=True)
        )
    torch.testing.assert_close(probe_logits(model.eval()), probe_logits(compressed.model), atol=1e-3, rtol=0)


def test_packed_codes_are_a_stream_of_bits_from_the_lowest() -> None:
    """Unsigned 3-bit codes 0..7 0.. : 0b...011010001000 in order of weight; a zero point lies along the outputs."""
    codes_OI = torch.arange(-4, 4, dtype=torch.int8).repeat(1, 2)
    zeros_OG = torch.tensor([[1]], dtype=torch.int8)
    quantized = Quantized(Grid(3, 0, symmetric=False), codes_OI, torch.ones(1, 1, dtype=torch.float16), zeros_OG)
    model = nn.Module()
    model.layer = nn.Linear(16, 1)
    model.dtype = torch.float32
    stored = write_compressed_tensors.tensors(Compressed(model, {"layer": quantized}), False)  # type: ignore[arg-type]
    stream = sum((i % 8) << (3 * i) for i in range(16))
    words = [word & 0xFFFFFFFF for word in stored["layer.weight_packed"][0].tolist()]
    assert words == [stream & 0xFFFFFFFF, stream >> 32]
    assert stored["layer.weight_zero_point"].tolist() == [[1 + 4]]  # as it is: no format of ours stores it less one
    assert stored["layer.weight_shape"].tolist() == [1, 16]


@pytest.mark.parametrize("symmetric", [True, False])
def test_code_of_zero_decodes_to_zero_in_the_reloaded_folder(tmp_path: Path, source: Path, symmetric: bool) -> None:
    """A zero point off by one would give every zero the value of a step."""
    model = tiny_llama()
    layer = model.model.layers[0].mlp.gate_proj
    with torch.no_grad():
        layer.weight[:, ::2] = 0
    compressed = quantize_all(model, Grid(4, 32, symmetric))
    write(tmp_path / "data", source, compressed, recipe_of(bits=4, symmetric=symmetric), tmp_path / "scratch")
    loaded = load_folder(tmp_path / "data")
    probe_logits(loaded)
    assert (loaded.model.layers[0].mlp.gate_proj.weight[:, ::2] == 0).all()


def test_mixed_bits_are_groups_of_layers_and_reload_exactly(tmp_path: Path, source: Path) -> None:
    compressed = quantize_all(tiny_llama(), Grid(4, 32), {"down_proj": 8, "layers.1.self_attn": 3})
    recipe = recipe_of(bits=4, mixed_bits=4.5)
    written, verified = written_and_verified(tmp_path, source, compressed, recipe)
    said = json.loads((tmp_path / "data" / "config.json").read_text())["quantization_config"]
    assert sorted(group["weights"]["num_bits"] for group in said["config_groups"].values()) == [3, 4, 8]
    assert said["ignore"] == ["lm_head"]
    assert verified["max_logit_difference"] == 0.0
    weights = {name: q.codes_OI.numel() for name, q in compressed.quantized.items()}
    bits = sum(q.grid.bits * weights[name] for name, q in compressed.quantized.items()) / sum(weights.values())
    assert written.effective_bits == pytest.approx(bits + 16 / 32)


def test_eight_bit_activations_are_rounded_when_the_folder_runs_and_weights_stay_exact(
    tmp_path: Path, source: Path
) -> None:
    compressed = quantize_all(tiny_llama(), Grid(8))
    recipe = recipe_of(method="smoothquant", bits=8, group_size=0)
    _, verified = written_and_verified(tmp_path, source, compressed, recipe)
    assert verified["max_logit_difference"] == 0.0
    assert 0 < verified["activation_difference"] < 0.1
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "data").eval()
    layer = model.model.layers[0].mlp.gate_proj
    assert layer.weight.dtype == torch.int8
    probe_logits(model)
    inputs = torch.randn(1, 3, 64)  # a step of its own for each of three tokens
    steps = inputs.abs().amax(2, keepdim=True) / 127.5
    rounded = (inputs / steps).round().clamp(-128, 127) * steps
    torch.testing.assert_close(layer(inputs), rounded @ layer.weight.T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("method", "rounded"), [("dynamic", True), ("rtn", False)])
def test_torchao_folder_holds_our_codes_and_runs_them(tmp_path: Path, source: Path, method: str, rounded: bool) -> None:
    compressed = quantize_all(tiny_llama(), Grid(8))
    recipe = recipe_of("torchao", method=method, bits=8, group_size=0)
    written, verified = written_and_verified(tmp_path, source, compressed, recipe)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "data").eval()
    for name, quantized in compressed.quantized.items():
        weight = model.get_submodule(name).weight
        assert type(weight).__name__ == "Int8Tensor"
        assert torch.equal(weight.qdata, quantized.codes_OI)
    assert type(model.lm_head.weight.data) is torch.Tensor
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (verified["activation_difference"] > 0) is rounded
    assert verified["running_bytes"] == verified["memory_bytes"] < memory_bytes(compressed.model) / 2
    assert written.effective_bits > 8


def test_sizes_fall_with_bits_and_follow_the_formula(tmp_path: Path, source: Path) -> None:
    sizes = []
    for bits in (3, 4, 8):
        compressed = quantize_all(tiny_llama(), Grid(bits, 32))
        written = write(tmp_path / str(bits), source, compressed, recipe_of(bits=bits), tmp_path / "scratch")
        sizes.append(written.weight_bytes)
        weights = sum(q.codes_OI.numel() for q in compressed.quantized.values())
        rest = sum(p.numel() for p in compressed.model.parameters()) - weights
        shapes = 16 * len(compressed.quantized)
        assert written.expected_bytes <= weights * (bits + 0.5) / 8 + 4 * rest + shapes
        assert written.model_bits == 8 * written.weight_bytes / (weights + rest)
    dense = write(tmp_path / "dense", source, Compressed(tiny_llama()), pruned_recipe(), tmp_path / "scratch")
    assert sizes == sorted(sizes)
    assert sizes[-1] < dense.weight_bytes


def pruned_recipe() -> RecipeSpec:
    return RecipeSpec(name="half", prune=PruneSpec(method="magnitude"), export="safetensors")


def pruned_llama() -> Compressed:
    """2:4 by hand: the first two of four inputs are zero."""
    model = tiny_llama()
    reports = []
    for name, module in model.named_modules():
        if is_matrix(module) and name != "lm_head":
            weight = weight_OI(module)
            weight.reshape(-1, 4)[:, :2] = 0
            set_weight(module, weight)
            reports.append(
                LayerReport(name, "magnitude", *weight.shape, 0.2, 0.2, 0.0, False, weight.numel() // 2, 32.0, 0.0)
            )
    return Compressed(model, reports=reports)


def test_pruned_model_keeps_its_zeros_and_its_size(tmp_path: Path, source: Path) -> None:
    compressed = pruned_llama()
    written, verified = written_and_verified(tmp_path, source, compressed, pruned_recipe())
    assert verified["num_zeros"] == sum(report.zeros for report in compressed.reports)
    assert written.weight_bytes > 4 * written.num_parameters  # zeros save nothing
    write_card(tmp_path / "data", pruned_recipe(), LINEAGE, written, verified_of(verified), compressed.reports)
    assert "they save no bytes in this file" in (tmp_path / "data" / CARD).read_text()


def test_bfloat16_numbers_are_stored_in_16_bits_and_come_back_in_the_models_dtype(tmp_path: Path, source: Path) -> None:
    model = tiny_llama()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).to(torch.float32)
    written = write(tmp_path / "data", source, Compressed(model), pruned_recipe(), tmp_path / "scratch")
    assert written.weight_bytes < 2.2 * written.num_parameters
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "data").eval()
    assert loaded.dtype == torch.float32
    assert torch.equal(probe_logits(loaded), probe_logits(model))


def test_verification_refuses_a_folder_whose_code_changed(tmp_path: Path, source: Path) -> None:
    compressed = quantize_all(tiny_llama(), Grid(8, 32))
    write(tmp_path / "data", source, compressed, recipe_of(bits=8), tmp_path / "scratch")
    tensors = load_file(tmp_path / "data" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight_packed"][0, 0] ^= 64
    save_file(tensors, tmp_path / "data" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="logits after reload differ by"):
        verify_folder(tmp_path / "data", tmp_path / "scratch")


def test_verification_refuses_a_size_off_the_formula_and_a_lost_zero(tmp_path: Path, source: Path) -> None:
    compressed = pruned_llama()
    write(tmp_path / "data", source, compressed, pruned_recipe(), tmp_path / "scratch")
    expected = torch.load(tmp_path / "scratch" / EXPECTED)
    torch.save(expected | {"bytes": expected["bytes"] * 1.02}, tmp_path / "scratch" / EXPECTED)
    with pytest.raises(DataError, match=r"tensors take \d+ bytes"):
        verify_folder(tmp_path / "data", tmp_path / "scratch")
    name = "model.layers.0.mlp.up_proj"
    torch.save(expected | {"zeros": expected["zeros"] | {name: 1}}, tmp_path / "scratch" / EXPECTED)
    with pytest.raises(DataError, match=f"{name}: 3072 zeros after reload, 1 before"):
        verify_folder(tmp_path / "data", tmp_path / "scratch")


def test_verification_refuses_a_group_that_recovery_filled(tmp_path: Path, source: Path) -> None:
    """As many zeros as before, one of them in another group."""
    compressed = dataclasses.replace(pruned_llama(), reports=[])
    weight = compressed.model.model.layers[1].self_attn.o_proj.weight
    with torch.no_grad():
        weight[0, 0], weight[0, 7] = 0.5, 0.0
    recipe = RecipeSpec(name="half", prune=PruneSpec(method="magnitude", pattern="2:4"), export="safetensors")
    write(tmp_path / "data", source, compressed, recipe, tmp_path / "scratch")
    with pytest.raises(DataError, match=r"layers.1.self_attn.o_proj: 1 groups of 4 inputs have fewer than 2 zeros"):
        verify_folder(tmp_path / "data", tmp_path / "scratch")


def test_report_of_another_state_is_refused_when_written(tmp_path: Path, source: Path) -> None:
    compressed = pruned_llama()
    wrong = dataclasses.replace(compressed.reports[0], zeros=7)
    with pytest.raises(DataError, match="the report counts 7 zeros, the model has 2048"):
        write(
            tmp_path / "data", source, dataclasses.replace(compressed, reports=[wrong]), pruned_recipe(), tmp_path / "s"
        )


def test_groups_short_of_zeros_are_counted() -> None:
    weight_OI = torch.tensor([[0.0, 1, 0, 2, 3, 0, 4, 5], [0, 0, 0, 0, 1, 1, 0, 0]])
    assert bad_groups(weight_OI, 2, 4) == 1
    assert bad_groups(weight_OI, 4, 8) == 1


LINEAGE = Lineage("models/dense-1", 400_000, "calibrations/c-1", "corpora/x-1", 8, 512)


def verified_of(found: dict) -> Verified:
    return Verified(**found)


@pytest.mark.parametrize("export", ["compressed-tensors", "gguf", "torchao"])
def test_card_report_and_folder_agree_to_the_byte(tmp_path: Path, source: Path, export: str) -> None:
    grid, group_size = (Grid(8), 0) if export == "torchao" else (Grid(8, 32), 32)
    compressed = quantize_all(tiny_llama(), grid)
    recipe = recipe_of(export, bits=8, group_size=group_size)
    written, verified = written_and_verified(tmp_path, source, compressed, recipe)
    folder = tmp_path / "data"
    write_card(folder, recipe, LINEAGE, written, verified_of(verified), compressed.reports)
    card = (folder / CARD).read_text()
    ((name, size),) = re.findall(r"\| `(model\.\w+)` on disk, bytes \| (\d+) \|", card)
    assert int(size) == (folder / name).stat().st_size == written.weight_bytes == weight_bytes(folder)
    assert f"| in memory as loaded, bytes of distinct storage | {memory_bytes(load_folder(folder))} |" in card
    assert f"| bits a weight, quantised layers, scales included | {written.effective_bits:.3f} |" in card
    assert all(
        word in card for word in ("calibrations/c-1", "corpora/x-1", "8 sequences, 512 tokens", "from_pretrained")
    )
    assert ("vllm serve" in card, "llama-cli" in card) == (export == "compressed-tensors", export == "gguf")


def test_card_refuses_a_folder_that_changed_since(tmp_path: Path, source: Path) -> None:
    written = write(tmp_path / "data", source, pruned_llama(), pruned_recipe(), tmp_path / "scratch")
    verified = verify_folder(tmp_path / "data", tmp_path / "scratch")
    with (tmp_path / "data" / "model.safetensors").open("ab") as file:
        file.write(b" ")
    with pytest.raises(DataError, match="bytes of weights"):
        write_card(tmp_path / "data", pruned_recipe(), LINEAGE, written, verified, [])


def test_tied_head_quantised_once_is_refused_where_codes_cannot_be_shared(tmp_path: Path, source: Path) -> None:
    model = tiny_llama()
    embedding = model.model.embed_tokens
    compressed = Compressed(model, {"model.embed_tokens": round_to_grid(embedding.weight.detach(), Grid(8, 32))})
    recipe = recipe_of(bits=8)  # a request for it is refused before; the writer looks at what it is given
    with pytest.raises(RequestError, match=r"head: set quantize\.tied_head skip, or export gguf"):
        write(tmp_path / "data", source, compressed, recipe, tmp_path / "scratch")
    with pytest.raises(RequestError, match="torchao's int8 holds no Embedding"):
        write(
            tmp_path / "data", source, compressed, recipe.model_copy(update={"export": "torchao"}), tmp_path / "scratch"
        )


def test_what_compressed_tensors_cannot_hold_is_refused_by_name(tmp_path: Path, source: Path) -> None:
    def refused(compressed: Compressed, match: str) -> None:
        with pytest.raises(RequestError, match=match):
            write(tmp_path / "data", source, compressed, recipe_of(bits=4), tmp_path / "scratch")

    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2, n_positions=32))
    refused(quantize_all(gpt2, Grid(4, 32)), r"holds no Conv1D \(transformer.h.0.attn.c_attn\): export safetensors")
    compressed = quantize_all(tiny_llama(), Grid(4, 32))
    first, quantized = next(iter(compressed.quantized.items()))
    order = dataclasses.replace(quantized, group_I=torch.arange(64, dtype=torch.int32) % 2)
    refused(Compressed(compressed.model, {first: order}), "set quantize.static_groups true")
    refused(quantize_all(tiny_llama(), Grid(4, 32, False), {"down": 8}), "set quantize.symmetric true")
    refused(Compressed(compressed.model.to(torch.bfloat16), compressed.quantized), "load the model in float32")


@pytest.mark.parametrize(
    ("said", "found"),
    [({"quant_method": "gptq", "bits": 4}, "gptq"), ({"quant_method": "awq"}, "awq"), ({"bits": 4}, "codes of an unnamed format")],
)  # fmt: skip
def test_model_that_is_quantised_already_is_refused_with_its_format(tmp_path: Path, said: dict, found: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": said}))
    with pytest.raises(RequestError, match=f"model m-1 is {found} already.*compress the dense one"):
        refuse_quantized(tmp_path, "m-1")


def test_codes_that_no_configuration_mentions_are_found_by_their_type(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"a.weight": torch.zeros(2, 2), "positions": torch.arange(3)}, tmp_path / "model.safetensors")
    refuse_quantized(tmp_path, "m-1")
    save_file({"a.qweight": torch.zeros(2, 2, dtype=torch.int32)}, tmp_path / "model.safetensors")
    with pytest.raises(RequestError, match=r"codes of an unnamed format already \(a.qweight is I32\)"):
        refuse_quantized(tmp_path, "m-1")


@pytest.mark.parametrize(("export", "group_size"), [("compressed-tensors", 32), ("gguf", 32), ("torchao", 0)])
def test_written_folder_says_its_format_and_is_refused_as_input(
    tmp_path: Path, source: Path, export: str, group_size: int
) -> None:
    compressed = quantize_all(tiny_llama(), Grid(8, group_size))
    write(tmp_path / "data", source, compressed, recipe_of(export, bits=8, group_size=group_size), tmp_path / "scratch")
    assert stored_format(tmp_path / "data") == export
    with pytest.raises(RequestError, match=f"is {export} already"):
        refuse_quantized(tmp_path / "data", "m-1")


def test_folder_of_a_format_that_nightmill_does_not_write_is_refused_when_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(DataError, match="holds gptq; wanted dense, adapter"):
        load_folder(tmp_path)
