"""Folders of every format that Nightmill writes, and an adapter beside its base, answered by the server's own engine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from spark_jobs.errors import DataError
from training.compress.compressed import Compressed
from training.compress.files import write
from training.compress.layers import is_matrix, set_weight, weight_OI
from training.compress.quantized import Grid
from training.compress.rounding import round_to_grid
from training.compress_spec import QuantizeSpec, RecipeSpec
from training.serve.batching import Batching
from training.serve.sampling import Sampling
from training.serve.serial import Serial
from training.serve.serve_spec import ServeSpec
from training.serve.served import identity_of_folder, load

SPEC = ServeSpec(cache_tokens=1024, max_batch=4)
PROMPT = [1, 40, 77, 12]


def answered(folder: Path, kind: type) -> list[int]:
    torch.set_num_threads(1)

    async def story() -> list[int]:
        served = load(folder, identity_of_folder(folder, "m"), SPEC)
        try:
            await served.smoke()
            assert isinstance(served.engine, kind)
            generation = served.engine.start(PROMPT, Sampling(), 10, every_token=False)
            return [token async for step in generation.steps() for token in step]
        finally:
            served.close()

    return asyncio.run(story())


def continued(model: Any) -> list[int]:
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False)
    return output[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize(
    ("export", "grid"),
    [("compressed-tensors", Grid(8, 32)), ("compressed-tensors", Grid(8, 32, symmetric=False)), ("gguf", Grid(8, 32)), ("torchao", Grid(8))],
)  # fmt: skip
def test_compressed_folder_answers_as_the_model_in_memory(tiny: Path, tmp_path: Path, export: str, grid: Grid) -> None:
    model, codes = LlamaForCausalLM.from_pretrained(tiny).eval(), {}
    for name, module in model.named_modules():
        if is_matrix(module) and name != "lm_head":
            codes[name] = round_to_grid(weight_OI(module), grid)
            set_weight(module, codes[name].weight())
    quantize = QuantizeSpec(bits=8, group_size=grid.group_size, symmetric=grid.symmetric)
    recipe = RecipeSpec(name="try", quantize=quantize, export=export)
    write(tmp_path / "data", tiny, Compressed(model, codes), recipe, tmp_path / "scratch")
    assert answered(tmp_path / "data", Batching) == continued(model)


def test_gpt2_whose_positions_are_learned_is_batched(tiny: Path, tmp_path: Path) -> None:
    torch.manual_seed(4)
    config = GPT2Config(
        vocab_size=300,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.4,
    )
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    assert answered(tmp_path, Batching) == continued(model)


def adapter_folder(tiny: Path, folder: Path, config: Any) -> Any:
    """The model, and its folder as a fine-tuning leaves it."""
    model = get_peft_model(LlamaForCausalLM.from_pretrained(tiny), config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.prompt_encoder.parameters():
            parameter.normal_(std=3.0)
    for path in tiny.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    model.save_pretrained(folder / "adapter")
    return model.eval()


def test_adapter_beside_its_base_is_answered_one_by_one(tiny: Path, tmp_path: Path) -> None:
    model = adapter_folder(tiny, tmp_path, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    found = answered(tmp_path, Serial)
    assert found == continued(model)
    assert found != continued(LlamaForCausalLM.from_pretrained(tiny).eval())


def test_adapter_that_is_left_out_when_writing_is_not_served(tiny: Path, tmp_path: Path) -> None:
    """peft 0.21 hands a prefix to `generate` of transformers 5.24 by a name that is ignored there. Fails once that is mended."""
    model = adapter_folder(tiny, tmp_path, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    assert continued(model) == continued(LlamaForCausalLM.from_pretrained(tiny).eval())
    with pytest.raises(DataError, match="left out"):
        answered(tmp_path, Serial)
