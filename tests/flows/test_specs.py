"""Presets, settings and the messages for what is wrong in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.specs import NightlySpec, load_spec, preset_names
from spark_jobs.errors import RequestError
from tasks.workspace import Workspace, parse_night

EXAMPLES = [str(path) for path in (Path(__file__).parent.parent.parent / "examples").glob("*.yaml")]


@pytest.mark.parametrize("preset", [*preset_names(), *EXAMPLES])
def test_every_preset_is_a_valid_spec(preset: str) -> None:
    assert load_spec(preset, []).name


def test_setting_changes_one_value_and_leaves_the_preset_alone() -> None:
    spec = load_spec("demo", ["train.num_steps=7", "compress.recipes=[int4]"])
    assert spec.train.num_steps == 7
    assert [recipe.name for recipe in spec.compress.recipes] == ["int4"]
    assert load_spec("demo", []).train.num_steps != 7


def test_recipe_that_rounds_activations_has_no_groups_that_could_misfit() -> None:
    recipe = "{name: w8a8, quantize: {method: dynamic, bits: 8}, export: torchao}"
    assert load_spec("demo", [f"compress.recipes=[{recipe}]"]).compress.recipes[0].name == "w8a8"


def test_setting_reaches_into_a_list_of_sources(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("name: mine\ningest:\n  sources:\n  - {kind: jsonl, path: a}\n")
    assert load_spec(str(preset), ["ingest.sources.0.path=b"]).ingest.sources[0].path == "b"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.num_stepz=7"], r"train\.num_stepz: no such setting; did you mean num_steps\?"),
        (["trian.num_steps=7"], r"trian: no such setting; did you mean train\?"),
        (["train.model.num_layerz=7"], r"train\.model\.num_layerz: no such setting; did you mean num_layers\?"),
        (["clean.min_words=0"], r"clean\.min_words: .*greater than or equal to 1, got 0"),
        (["train.num_steps=many"], r"train\.num_steps: .*integer.* got 'many'"),
        (["gate.candidate=int2"], r"gate\.candidate 'int2' is none of tonight's models: best, dense, int8, int4"),
        (["train.num_steps"], r"--set 'train.num_steps': wanted a\.b=value"),
        (
            ["train.model.hidden_size=80"],
            r"compress\.recipes int8: quantize\.group_size 32 does not divide train\.model\.hidden_size 80; change",
        ),
        (
            ["train.objective=masked_lm"],
            r"a llama trained for masked_lm is not compressed; set compress\.recipes to \[\]",
        ),
        (["name=Not Good"], r"name: .*pattern"),
        (["train.model.num_heads=7"], r"train\.model: .*hidden_size \d+ is not a multiple of num_heads 7"),
    ],
)
def test_wrong_setting_is_named_with_what_was_wanted(settings: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        load_spec("demo", settings)


def test_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(RequestError, match=r"preset 'demmo': neither one of .*demo.* nor a YAML file"):
        load_spec("demmo", [])


def test_preset_that_is_not_yaml_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1, 2")
    with pytest.raises(RequestError, match=r"bad\.yaml: not YAML"):
        load_spec(str(bad), [])


@pytest.mark.parametrize("text", ["tomorrow", "2026-13-01", "25.11.2026"])
def test_night_that_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="wanted a date like"):
        parse_night(text)


@pytest.mark.parametrize("name", ["../etc", "a/b", "", "A", "-a"])
def test_pipeline_name_cannot_leave_the_workspace(name: str) -> None:
    with pytest.raises(RequestError):
        Workspace.of(name)


def test_every_field_of_every_spec_has_a_description() -> None:
    def missing(schema: dict[str, object], definitions: dict[str, dict[str, object]]) -> list[str]:
        found = []
        for title, definition in definitions.items():
            for name, field in definition.get("properties", {}).items():  # type: ignore[attr-defined]
                if "description" not in field and "$ref" not in field and "allOf" not in field:
                    found.append(f"{title}.{name}")
        return found

    schema = NightlySpec.model_json_schema()
    assert missing(schema, schema["$defs"]) == []
