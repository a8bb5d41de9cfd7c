"""Requests for augmentation that cannot be meant are refused with a reason."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from spark_jobs.errors import RequestError
from training.augment.allowed import CHANGED, changed_columns, check_labels
from training.augment_spec import AugmentSpec, Kind

KINDS = get_args(Kind)
ALLOWED = {  # the table of docs/augmentation.md: s, c, w, b, m for the first letters of the methods
    "classification": "scwbm", "multi_label": "scwbm", "tagging": "scw", "relation": "scw", "question_answering": "scb",
    "translation": "c", "summarization": "scwb", "dialogue": "c", "similarity": "scb", "regression": "scb",
    "preference": "c", "ranking": "scb",
}  # fmt: skip


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([], "at least 1"),
        ([{"kind": "word_noise"}, {"kind": "word_noise"}], "named more than once"),
        ([{"kind": "word_noise", "delete": 0, "swap": 0}], "nothing would be changed"),
        ([{"kind": "character_noise", "strength": 1.5}], "less than or equal to 1"),
        ([{"kind": "typos"}], "typos"),
        ([{"kind": "mixing", "strength": 0.1}], "Extra inputs"),
        ([{"kind": "back_translation", "forward": "a", "backward": "b", "forward_prompt": "To German:"}], "no place for the text"),
        ([{"kind": "back_translation", "forward": "a", "backward": "b", "copies": 2}], "all the same"),
    ],
)  # fmt: skip
def test_augment_spec_that_cannot_be_meant_is_refused(methods: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AugmentSpec.model_validate({"methods": methods})


def test_augment_spec_each_field_is_described() -> None:
    schema = AugmentSpec.model_json_schema()
    for name, model in schema["$defs"].items():
        for field, facts in model["properties"].items():
            assert field == "kind" or facts.get("description"), f"{name}.{field}"


@pytest.mark.parametrize("task", sorted(ALLOWED))
@pytest.mark.parametrize("kind", KINDS)
def test_changed_columns_refuses_what_cannot_keep_labels(task: str, kind: str) -> None:
    if kind[0] in ALLOWED[task]:
        assert changed_columns(task, kind)
    else:
        with pytest.raises(RequestError, match=f"method {kind} cannot keep the labels of task {task}: leave it out"):
            changed_columns(task, kind)


def test_changed_columns_all_tasks_are_known() -> None:
    assert set(CHANGED) == set(ALLOWED)
    with pytest.raises(RequestError, match="task 'pretraining' is not one of"):
        changed_columns("pretraining", "mixing")


def test_changed_columns_never_what_is_to_be_learned() -> None:
    columns = {column for methods in CHANGED.values() for names in methods.values() for column in names}
    assert columns == {"text", "pair", "tokens", "messages"}


def test_check_labels_unknown_class_is_named() -> None:
    with pytest.raises(
        RequestError, match=r"word_noise: only_labels \['sad'\] are not labels of this set; it has \['neg'"
    ):
        check_labels(("pos", "sad"), ("pos", "neg"), "word_noise")
