"""Recipes that a name stands for in presets and on the command line: `--set compress.recipes=[int8,int4-awq]`."""

from __future__ import annotations

from typing import Any

from training.compress_spec import PruneSpec, QuantizeSpec, RecipeSpec, RecoverSpec, ShrinkSpec

GROUP = 32  # divides the widths of small models too


def _weights(name: str, **quantize: Any) -> RecipeSpec:
    return RecipeSpec(name=name, quantize=QuantizeSpec.model_validate({"group_size": GROUP} | quantize))


NAMED: dict[str, RecipeSpec] = {
    recipe.name: recipe
    for recipe in (
        _weights("int8", method="rtn", bits=8),
        _weights("int4", method="gptq", bits=4),
        _weights("int3", method="gptq", bits=3),
        _weights("int4-rtn", method="rtn", bits=4),
        _weights("int4-awq", method="awq", bits=4),
        _weights("mixed", method="gptq", bits=4, mixed_bits=5.0),
        _weights("w8a8", method="smoothquant", bits=8, group_size=0),
        RecipeSpec(
            name="int8-dynamic", quantize=QuantizeSpec(method="dynamic", bits=8, group_size=0), export="torchao"
        ),
        RecipeSpec(
            name="gguf-q8", quantize=QuantizeSpec(method="rtn", bits=8, group_size=32), export="gguf"
        ),
        RecipeSpec(
            name="gguf-q4", quantize=QuantizeSpec(method="gptq", bits=4, group_size=32), export="gguf"
        ),
        RecipeSpec(name="sparse", prune=PruneSpec(), recover=RecoverSpec(), export="safetensors"),
        RecipeSpec(
            name="sparse-int4", prune=PruneSpec(), recover=RecoverSpec(),
            quantize=QuantizeSpec(method="gptq", bits=4, group_size=GROUP),
        ),
        RecipeSpec(name="half-wide", shrink=ShrinkSpec(neurons=0.5), recover=RecoverSpec(), export="safetensors"),
    )
}  # fmt: skip


def recipe_of(told: Any) -> Any:
    """A name becomes its recipe; anything else is left to the model's own validation. Raises: ValueError with the names."""
    if not isinstance(told, str):
        return told
    if told not in NAMED:
        raise ValueError(f"no recipe is called {told!r}; there are {', '.join(NAMED)}, or describe one by its parts")
    return NAMED[told]
