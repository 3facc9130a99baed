"""Turns pydantic's errors into messages that name the field, the value and the way out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from training.config import ModelTrainingConfig
from training.errors import FieldsError
from tuner.errors import suggestion


@dataclass(frozen=True)
class FieldProblem:
    """An error of one field of a model, or of several together.

    Attributes:
        fields: The fields that it is about, the first one to change first; empty if it does not
            say.
        message: What is wrong, and the way out.
        is_name: Whether the model has no field of that name.
        is_fraction: Whether a whole number is needed where one with a fraction was given.
    """

    fields: tuple[str, ...]
    message: str
    is_name: bool = False
    is_fraction: bool = False

    def name_in(self, values: Iterable[str]) -> str | None:
        """The first of the names in `values` that it is about; `class_weights.2` has a part."""
        for field in self.fields:
            for name in values:
                if field in (name, name.partition(".")[0]):
                    return name
        return None


def field_problem(name: str, value: Any) -> FieldProblem | None:
    """The error of a value for one config field; None if it is valid."""
    field, dot, _ = name.partition(".")
    if dot:
        if field == "class_weights":
            return field_problem("class_weights", [value])
        return None
    try:
        _adapter(field).validate_python(value)
    except ValidationError as error:
        return _described(name, value, error.errors(include_url=False))
    return None


def model_problems(
    error: ValidationError, model: type[BaseModel], given: Mapping[str, Any]
) -> list[FieldProblem]:
    """Everything that pydantic found wrong, one problem a field.

    Args:
        error: What it raised.
        model: The model that was to be made.
        given: The values by field, to show a list whole where one entry of it is wrong.
    """
    by_field: dict[str, list[Any]] = {}
    problems = []
    for detail in error.errors(include_url=False):
        if detail["loc"]:
            by_field.setdefault(str(detail["loc"][0]), []).append(detail)
        else:
            problems.append(_of_several(detail))
    for field, details in by_field.items():
        if details[0]["type"] == "extra_forbidden":
            message = f"unknown name {field!r}{suggestion(field, model.model_fields)}"
            problems.append(FieldProblem((field,), message, is_name=True))
        else:
            problems.append(_described(field, given.get(field, details[0]["input"]), details))
    return problems


def value_problems(error: ValueError, given: Mapping[str, Any] | None = None) -> list[FieldProblem]:
    """The errors of values that are not a valid config; see `model_problems`."""
    if isinstance(error, ValidationError):
        return model_problems(error, ModelTrainingConfig, given or {})
    return [FieldProblem(error.fields if isinstance(error, FieldsError) else (), str(error))]


@cache
def _adapter(field: str) -> TypeAdapter[Any]:
    info = ModelTrainingConfig.model_fields[field]
    annotation: Any = info.annotation
    if info.metadata:
        annotation = Annotated[annotation, *info.metadata]
    return TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))


def _of_several(detail: Any) -> FieldProblem:
    """A problem of several fields together, which a validator of the model has raised."""
    error = detail.get("ctx", {}).get("error")
    return FieldProblem(error.fields if isinstance(error, FieldsError) else (), _sentence(detail))


NUMBERS = ("int_parsing", "int_type", "float_parsing", "float_type", "decimal_parsing")
"""Kinds of pydantic's errors of a value that should be a number."""


def _described(field: str, value: Any, details: Sequence[Any]) -> FieldProblem:
    """One message for all errors of a value; pydantic has one for each member of a union."""
    subject = f"{field}={value!r}"
    known = [
        name
        for detail in details
        if detail["type"] == "literal_error"
        # the context has the names as one text
        for name in re.findall(r"'([^']*)'", detail["ctx"]["expected"])
    ]
    others = [detail for detail in details if detail["type"] != "literal_error"]
    if isinstance(value, str) and known:
        number = any(detail["type"] in NUMBERS for detail in others)
        instead = " and is not a number" if number else ""
        return FieldProblem((field,), f"{subject} is not known{instead}{suggestion(value, known)}")
    if isinstance(value, list | tuple) and any(
        detail["type"] in {"missing", "too_long"} for detail in others
    ):
        message = f"{subject} has {len(value)} entries, but needs another number of them"
        return FieldProblem((field,), message)
    others = others or list(details)
    accepted = "; or ".join(dict.fromkeys(_sentence(detail) for detail in others))
    fraction = any(detail["type"] == "int_from_float" for detail in others)
    return FieldProblem((field,), f"{subject}: {accepted}", is_fraction=fraction)


def _sentence(detail: Any) -> str:
    text: str = detail["msg"].removeprefix("Value error, ")
    return text[0].lower() + text[1:] if text.startswith("Input ") else text
