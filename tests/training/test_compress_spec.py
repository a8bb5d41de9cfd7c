"""Recipes as they are asked for: by name, by parts, and what does not go together."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from training.compress_spec import RecipeSpec
from training.named_recipes import NAMED
from training.specs import CompressSpec


def test_recipe_by_name_is_the_recipe_it_stands_for() -> None:
    spec = CompressSpec.model_validate({"recipes": ["int8", {"name": "own", "prune": {}, "export": "safetensors"}]})
    assert spec.recipes[0] == NAMED["int8"]
    assert spec.recipes[1].prune is not None


def test_named_recipes_survive_the_way_through_a_form() -> None:
    spec = CompressSpec.model_validate({"recipes": list(NAMED)})
    assert CompressSpec.model_validate(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("recipes", "told"),
    [
        (["int9"], "no recipe is called 'int9'; there are int8"),
        (["int8", "int8"], "'int8' names more than one model"),
        ([{"name": "dense", "quantize": {}}], "names more than one model"),
        ([{"name": "idle"}], "recipe idle does nothing"),
        ([{"name": "Big", "quantize": {}}], "String should match pattern"),
        ([{"name": "a", "quantize": {"method": "smoothquant", "bits": 4}}], "smoothquant is for bits 8, not 4"),
        ([{"name": "a", "quantize": {"mixed_bits": 2.5}}], "mixed_bits is between 3 and 8"),
        ([{"name": "a", "quantize": {}, "recover": {}}], "recover follows shrink or prune"),
        ([{"name": "a", "prune": {}, "export": "gguf"}], "without quantize it is written as safetensors, not gguf"),
        ([{"name": "a", "prune": {"pattern": "2:4", "sparsity": 0.7}}], "2:4 means sparsity 0.5, not 0.7"),
        ([{"name": "a", "shrink": {}}], "shrink keeps everything"),
    ],
)
def test_recipes_that_cannot_be_followed_are_refused_by_what_is_wrong(recipes: list[Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        CompressSpec.model_validate({"recipes": recipes})


def test_recipe_without_a_name_is_refused() -> None:
    with pytest.raises(ValidationError, match="name"):
        RecipeSpec.model_validate({"quantize": {}})


@pytest.mark.parametrize(
    ("quantize", "export", "told"),
    [
        ({"bits": 8, "tied_head": "once"}, "compressed-tensors", "tied_head once is for export gguf"),
        ({"mixed_bits": 5}, "gguf", "mixed_bits is for export compressed-tensors"),
        ({"mixed_bits": 5, "symmetric": False}, "compressed-tensors", "mixed_bits is for export compressed-tensors and symmetric"),
        ({"tail": "short"}, "compressed-tensors", "tail short is for export gguf or safetensors"),
        ({"method": "qat", "symmetric": False}, "compressed-tensors", "qat rounds symmetric, whole groups"),
    ],
)  # fmt: skip
def test_what_a_format_cannot_hold_is_refused_with_the_request(
    quantize: dict[str, Any], export: str, told: str
) -> None:
    with pytest.raises(ValidationError, match=told):
        RecipeSpec.model_validate({"name": "a", "quantize": quantize, "export": export})
