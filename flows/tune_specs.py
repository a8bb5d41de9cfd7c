"""A search as one frozen model: the sections of a fine-tuning, and what is varied in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import JsonValue, ValidationError, model_validator

from flows.finetune_specs import FinetuneRunSpec
from flows.spec_files import load_preset, presets_in
from training.search.space import drawn, grid, grid_values
from training.search_spec import SearchSpec, Values

PRESETS = Path(__file__).parent / "presets" / "tune"


class TuneRunSpec(FinetuneRunSpec):
    """A fine-tuning, and a search over its settings."""

    search: SearchSpec

    @model_validator(mode="after")
    def every_value_fits(self) -> Self:
        """Each choice, and both ends of each range, is a valid setting by itself; so is every point of a grid.

        Settings that do not go together show where a draw brings them together: that trial fails, and says why.
        """
        if self.ensemble is not None:
            raise ValueError(
                "ensemble: a search trains its best trial alone; leave it out, and fine-tune best.yaml with it"
            )
        for parameter in self.search.space:
            for value in parameter.choices or [parameter.low, parameter.high, *grid_values(parameter)]:
                self.with_values({parameter.path: value})
        if self.search.method == "grid":
            points = grid(self.search.space)
            if len(points) > self.search.num_trials:
                raise ValueError(
                    f"search: the grid has {len(points)} points, num_trials is {self.search.num_trials}; raise it, or take "
                    "fewer choices or num_points"
                )
            for point in points:
                self.with_values(point)
        self.with_values(drawn(self.search.space, self.search.seed, 0))
        return self

    def with_values(self, values: Values) -> FinetuneRunSpec:
        """The fine-tuning of a trial. Raises: ValueError naming setting, value and what was wanted."""
        tree = self.model_dump(mode="json", exclude={"search"})
        for path, value in values.items():
            _set(tree, path, value)
        try:
            return FinetuneRunSpec.model_validate(tree)
        except ValidationError as error:
            told = ", ".join(f"{path} = {value!r}" for path, value in values.items())
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise ValueError(f"search.space: {told}: {where}: {problem['msg']}") from error


def _set(tree: dict[str, Any], path: str, value: JsonValue) -> None:
    *sections, last = path.split(".")
    branch: Any = tree
    for section in sections:
        branch = branch.get(section) if isinstance(branch, dict) else None
    if not isinstance(branch, dict) or last not in branch:
        raise ValueError(f"search.space: {path}: no such setting, or its section is not set in this preset")
    branch[last] = value


def load_tune_spec(preset: str, settings: list[str]) -> TuneRunSpec:
    """See `flows.spec_files.load_preset`."""
    return load_preset(TuneRunSpec, PRESETS, preset, settings)


def tune_preset_names() -> list[str]:
    return presets_in(PRESETS)
