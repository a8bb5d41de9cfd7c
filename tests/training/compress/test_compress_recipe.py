"""Recipes followed on small models in memory: order of parts, zeros that stay, refusals, going on after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from spark_jobs.errors import DataError, RequestError, TrainingError
from training.compress import recipe as recipes
from training.compress.blocks import blocks_of
from training.compress.layers import prunable_layers, set_weight, weight_OI
from training.compress.masks import valid_groups
from training.compress.recipe import check_still_pruned, compress, quantize, shrink_and_prune
from training.compress_spec import PruneSpec, RecipeSpec

torch.set_num_threads(1)
VOCABULARY = 60


def llama(blocks: int = 2, tied: bool = True, **fields: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=blocks, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=64, tie_word_embeddings=tied, **fields,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def texts(count: int = 12, length: int = 24) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, VOCABULARY, (length - i % 3,), generator=generator) for i in range(count)]


def recipe(**parts: Any) -> RecipeSpec:
    if "quantize" in parts:
        parts["quantize"] = {"group_size": 16} | parts["quantize"]
    parts.setdefault("export", "compressed-tensors" if "quantize" in parts else "safetensors")
    return RecipeSpec.model_validate({"name": "test"} | parts)


def matrices(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {
        f"{block}.{name}": weight_OI(layer)
        for block, module in blocks_of(model).items()
        for name, layer in prunable_layers(module).items()
    }


def test_compress_replaces_each_layer_by_what_its_codes_decode_to() -> None:
    model = llama()
    before, rest = matrices(model), model.model.embed_tokens.weight.detach().clone()
    made = compress(model, texts(), recipe(quantize={"method": "gptq", "bits": 4}))
    assert list(made.quantized) == list(before)
    assert [report.name for report in made.reports] == list(before)
    for name, weight in matrices(made.model).items():
        assert torch.equal(weight, made.quantized[name].weight())
        assert not torch.equal(weight, before[name])
    assert torch.equal(model.model.embed_tokens.weight, rest)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("method", ["rtn", "dynamic"])
def test_recipes_that_look_at_weights_alone_need_no_calibration(method: str) -> None:
    chosen = recipe(quantize={"method": method, "bits": 8})
    assert not chosen.wants_calibration
    alone, measured = compress(llama(), [], chosen), compress(llama(), texts(), chosen)
    for name, weight in matrices(alone.model).items():
        assert torch.equal(weight, matrices(measured.model)[name])


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_zeros_of_a_prune_pass_survive_quantization_to_the_last_group(method: str) -> None:
    made = compress(llama(), texts(), recipe(prune={"method": "sparsegpt"}, quantize={"method": method, "bits": 4}))
    for name, weight in matrices(made.model).items():
        assert valid_groups(weight, "2:4") == 1.0, name
        assert int((weight == 0).sum()) >= weight.numel() // 2
        assert torch.equal(made.quantized[name].weight() == 0, weight == 0)
    assert len(made.reports) == 2 * len(made.quantized)


def test_zeros_that_the_model_came_with_survive_a_recipe_without_pruning() -> None:
    pruned, _ = shrink_and_prune(llama(), texts(), recipe(prune={"method": "magnitude", "pattern": "4:8"}))
    zeros = {name: weight == 0 for name, weight in matrices(pruned).items()}
    made = compress(pruned, texts(), recipe(quantize={"method": "gptq", "bits": 3}))
    for name, weight in matrices(made.model).items():
        assert bool((weight[zeros[name]] == 0).all())
        assert valid_groups(weight, "4:8") == 1.0


def test_the_second_stage_refuses_a_model_that_lost_its_zeros() -> None:
    model = llama()
    chosen = recipe(prune={"method": "magnitude"}, quantize={"method": "rtn", "bits": 8})
    with pytest.raises(DataError, match=r"14 layers are no longer 2:4 at 0\.5: model\.layers\.0\.self_attn\.q_proj"):
        quantize(model, [], chosen)
    pruned, _ = shrink_and_prune(model, [], chosen)
    assert len(quantize(pruned, [], chosen).quantized) == 14


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_a_pruned_model_passes_the_check_of_its_own_zeros(method: str) -> None:
    spec = PruneSpec.model_validate({"method": method, "pattern": "unstructured", "sparsity": 0.37})
    pruned, _ = shrink_and_prune(llama(), texts(), recipe(prune=spec))
    check_still_pruned(pruned, spec)
    layer = blocks_of(pruned)["model.layers.1"].mlp.up_proj
    set_weight(layer, weight_OI(layer) + (torch.arange(32) % 5 == 0))
    with pytest.raises(
        DataError, match=r"1 layers are no longer unstructured at 0\.37: model\.layers\.1\.mlp\.up_proj"
    ):
        check_still_pruned(pruned, spec)


def test_two_stages_give_what_one_call_gives() -> None:
    chosen = recipe(prune={"method": "wanda"}, quantize={"method": "gptq", "bits": 4})
    once = compress(llama(), texts(), chosen)
    thin, reports = shrink_and_prune(llama(), texts(), chosen)
    twice = quantize(thin, texts(), chosen, reports=reports)
    for name, weight in matrices(once.model).items():
        assert torch.equal(weight, matrices(twice.model)[name])


def test_a_shrunk_model_is_quantised_in_its_own_widths() -> None:
    chosen = recipe(shrink={"neurons": 0.5, "blocks": 0.5}, quantize={"method": "rtn", "bits": 4})
    made = compress(llama(), texts(), chosen)
    assert (made.model.config.num_hidden_layers, made.model.config.intermediate_size) == (1, 32)
    assert made.quantized["model.layers.0.mlp.down_proj"].codes_OI.shape == (32, 32)
    wrong = recipe(shrink={"neurons": 0.5}, quantize={"method": "rtn", "bits": 4, "group_size": 64})
    with pytest.raises(RequestError, match="group_size 64 does not divide"):
        compress(llama(), texts(), wrong)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"quantize": {"method": "gptq", "group_size": 48}}, r"group_size 48 .*model\.layers\.0\.self_attn\.q_proj \(32 inputs\)"),
        ({"quantize": {"bits": 3, "group_size": 32}, "export": "gguf"}, "GGUF has no blocks of 3 bits"),
        ({"quantize": {"bits": 8}, "export": "torchao"}, "set quantize.bits 8, group_size 0"),
        ({"quantize": {"method": "gptq", "static_groups": False}}, "set quantize.static_groups true"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_before_any_forward(parts: dict[str, Any], said: str) -> None:
    model, forwards = llama(), []
    model.model.register_forward_hook(lambda *_: forwards.append(1))
    with pytest.raises(RequestError, match=said):
        compress(model, texts(), recipe(**parts))
    assert not forwards


def test_an_odd_width_is_refused_for_a_pattern_before_any_forward() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=18, n_layer=1, n_head=2, n_positions=32))
    with pytest.raises(RequestError, match=r"transformer\.h\.0\.attn\.c_attn \(18 inputs\)"):
        compress(model, texts(), recipe(prune={"method": "wanda"}))


def test_methods_that_measure_are_refused_without_sequences() -> None:
    for parts in ({"quantize": {"method": "gptq"}}, {"prune": {"method": "wanda"}}, {"shrink": {"neurons": 0.5}},
                  {"quantize": {"mixed_bits": 4.0}}):  # fmt: skip
        with pytest.raises(RequestError, match="wants calibration sequences, there are none"):
            compress(llama(), [], recipe(**parts))


def test_a_head_tied_to_the_embedding_is_quantised_once_and_shared() -> None:
    chosen = recipe(quantize={"bits": 8, "group_size": 32, "tied_head": "once"}, export="gguf")
    made = compress(llama(), [], chosen)
    assert list(made.quantized)[-1] == "model.embed_tokens"
    assert "lm_head" not in made.quantized
    assert made.model.lm_head.weight is made.model.model.embed_tokens.weight
    assert torch.equal(made.model.lm_head.weight, made.quantized["model.embed_tokens"].weight())
    with pytest.raises(RequestError, match="the head of this LlamaForCausalLM is not its embedding"):
        compress(llama(tied=False), [], chosen)


def test_too_many_layers_rounded_to_nearest_fail_by_name() -> None:
    """Activations whose squares are beyond fp32 have no Hessian."""
    model = llama()
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight.fill_(1e20)
        model.model.layers[1].mlp.down_proj.weight.zero_()
    with pytest.raises(
        TrainingError, match=r"3 of 14 layers were rounded to nearest.*model\.layers\.1\.mlp\.gate_proj"
    ):
        compress(model, texts(), recipe(quantize={"method": "gptq"}))


def test_mixed_bits_give_the_mean_asked_for_and_more_to_layers_that_lose_more() -> None:
    model = llama()
    made = compress(model, texts(), recipe(quantize={"method": "rtn", "mixed_bits": 4.5}))
    bits = {name: codes.grid.bits for name, codes in made.quantized.items()}
    sizes = {name: codes.codes_OI.numel() for name, codes in made.quantized.items()}
    assert set(bits.values()) <= {3, 4, 8}
    assert len(set(bits.values())) > 1
    mean = sum(bits[name] * sizes[name] for name in bits) / sum(sizes.values())
    assert 3.5 < mean <= 4.5


def test_finished_blocks_are_read_back_and_not_treated_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies in the third block of four leaves two; the next one treats two, and ends with the same codes."""
    chosen = recipe(prune={"method": "wanda"}, quantize={"method": "gptq", "symmetric": False})
    undisturbed = compress(llama(4), texts(), chosen)
    real, treated = recipes.quantize_block, []

    def dying(block: Any, *rest: Any) -> Any:
        if block.name == "model.layers.2" and len(treated) == 2:
            raise KeyboardInterrupt
        treated.append(block.name)
        return real(block, *rest)

    monkeypatch.setattr(recipes, "quantize_block", dying)
    with pytest.raises(KeyboardInterrupt):
        compress(llama(4), texts(), chosen, tmp_path)
    monkeypatch.setattr(recipes, "prune_block", lambda *_: pytest.fail("pruned twice"))
    treated.append("a new process")
    resumed = compress(llama(4), texts(), chosen, tmp_path)
    assert treated == ["model.layers.0", "model.layers.1", "a new process", "model.layers.2", "model.layers.3"]
    for name, codes in undisturbed.quantized.items():
        again = resumed.quantized[name]
        assert again.grid == codes.grid
        assert torch.equal(again.codes_OI, codes.codes_OI)
        assert torch.equal(again.scales_OG, codes.scales_OG)
        assert torch.equal(again.zeros_OG, codes.zeros_OG)
    for name, value in undisturbed.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value)
    assert [r.error_after for r in resumed.reports] == [r.error_after for r in undisturbed.reports]


def test_training_with_rounded_weights_is_not_done_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = recipe(quantize={"method": "qat", "bits": 4, "qat_steps": 3})
    undisturbed = compress(llama(), texts(), chosen, tmp_path)
    for path in (tmp_path / "quantized").iterdir():
        path.unlink()
    monkeypatch.setattr(recipes, "train_rounded", lambda *_: pytest.fail("trained twice"))
    resumed = compress(llama(), texts(), chosen, tmp_path)
    plain = compress(llama(), texts(), recipe(quantize={"method": "rtn", "bits": 4}))
    for name, weight in matrices(undisturbed.model).items():
        assert torch.equal(matrices(resumed.model)[name], weight)
    assert any(not torch.equal(w, matrices(undisturbed.model)[n]) for n, w in matrices(plain.model).items())


def test_blocks_kept_for_another_recipe_or_calibration_are_not_used(tmp_path: Path) -> None:
    four, three = recipe(quantize={"method": "gptq", "bits": 4}), recipe(quantize={"method": "gptq", "bits": 3})
    compress(llama(), texts(), four, tmp_path)
    made = compress(llama(), texts(), three, tmp_path)
    assert {codes.grid.bits for codes in made.quantized.values()} == {3}
    other, plain = compress(llama(), texts(6), three, tmp_path), compress(llama(), texts(6), three)
    for name, codes in plain.quantized.items():
        assert torch.equal(other.quantized[name].codes_OI, codes.codes_OI)
