"""The model file that MLflow runs, on folders of every written format."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from training.compress.compressed import Compressed
from training.compress.files import write
from training.compress.layers import is_matrix, set_weight, weight_OI
from training.compress.quantized import Grid
from training.compress.rounding import round_to_grid
from training.compress_spec import QuantizeSpec, RecipeSpec
from training.serving_model import ServedModel

torch.set_num_threads(1)


def tiny_llama(vocab_size: int) -> LlamaForCausalLM:
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("export", "grid"),
    [
        ("compressed-tensors", Grid(8, 32)),
        ("compressed-tensors", Grid(8, 32, symmetric=False)),
        ("gguf", Grid(8, 32)),
        ("torchao", Grid(8)),
    ],
)
def test_served_folder_continues_as_the_model_in_memory_does(tmp_path: Path, export: str, grid: Grid) -> None:
    alphabet = ["<bos>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    (tmp_path / "source").mkdir()
    tokenizer.save(str(tmp_path / "source" / "tokenizer.json"))
    (tmp_path / "source" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>"})
    )
    model, codes = tiny_llama(len(alphabet)), {}
    for name, module in model.named_modules():
        if is_matrix(module) and name != "lm_head":
            codes[name] = round_to_grid(weight_OI(module), grid)
            set_weight(module, codes[name].weight())
    spec = QuantizeSpec(bits=8, group_size=grid.group_size, symmetric=grid.symmetric)
    recipe = RecipeSpec(name="try", quantize=spec, export=export)
    write(tmp_path / "data", tmp_path / "source", Compressed(model, codes), recipe, tmp_path / "scratch")
    served = ServedModel()
    served.load_context(SimpleNamespace(artifacts={"model": str(tmp_path / "data")}))
    text = served.predict(None, pd.DataFrame({"prompt": ["ab"]}), {"max_new_tokens": 5})["text"][0]
    ids = torch.tensor([[0, *tokenizer.encode("ab").ids]])
    with torch.no_grad():
        following = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
    assert text == served.tokenizer.decode(following[0, ids.shape[1] :], skip_special_tokens=True)
    assert text
