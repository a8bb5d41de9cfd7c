"""Templates and expressions over the fields of an item, by Jinja, in its sandbox: a task file is data, not a program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateError, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from spark_jobs.errors import DataError

_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)


class Template:
    """A text with `{{ field }}` in it. what: its name in task.yaml, for messages."""

    def __init__(self, what: str, text: str) -> None:
        """Raises: DataError if it is not a template."""
        self.what = what
        try:
            self.template = _ENVIRONMENT.from_string(text)
        except TemplateError as err:
            raise DataError(f"{what}: {text!r} is no template: {err}") from err

    def __call__(self, item: Mapping[str, Any]) -> str:
        """Raises: DataError if the item lacks a field, without saying which item."""
        try:
            return self.template.render(item)
        except Exception as err:  # whatever an item's field did to a filter, it is about this item
            raise DataError(f"{self.what}: {err}; the item has {', '.join(sorted(item))}") from err


class Expression:
    """A value made of an item's fields: `choices.label.index(answerKey)`."""

    def __init__(self, what: str, text: str) -> None:
        """Raises: DataError if it is not an expression."""
        self.what, self.text = what, text
        try:
            self.expression = _ENVIRONMENT.compile_expression(text, undefined_to_none=False)
        except TemplateError as err:
            raise DataError(f"{what}: {text!r} is no expression: {err}") from err

    def __call__(self, item: Mapping[str, Any]) -> Any:
        """Raises: DataError, see `Template`."""
        try:
            value = self.expression(item)
        except Exception as err:  # see Template
            raise DataError(f"{self.what}: {err}; the item has {', '.join(sorted(item))}") from err
        if isinstance(value, Undefined):
            raise DataError(f"{self.what}: {self.text!r} is no field; the item has {', '.join(sorted(item))}")
        return value
