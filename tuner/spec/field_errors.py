"""What pydantic finds wrong, in words that name the field, the value and the way out."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from training.config import ModelTrainingConfig
from tuner.errors import suggestion

UNKNOWN_NAME = "unknown name"
"""How the message about a name that a model does not have begins."""


def field_problem(name: str, value: Any) -> str | None:
    """What is wrong with a value for a config field by itself; None if nothing."""
    field, dot, _ = name.partition(".")
    if dot:
        if field == "class_weights":
            return field_problem("class_weights", [value])
        return None
    info = ModelTrainingConfig.model_fields[field]
    annotation: Any = info.annotation
    if info.metadata:
        annotation = Annotated[annotation, *info.metadata]
    adapter: TypeAdapter[Any] = TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        return _message(f"{name}={value!r}", value, error.errors(include_url=False))
    return None


def describe_errors(
    error: ValidationError, model: type[BaseModel]
) -> list[tuple[tuple[str, ...], str]]:
    """Path and message of each field that pydantic found wrong."""
    by_field: dict[tuple[str, ...], list[Any]] = {}
    for detail in error.errors(include_url=False):
        path = tuple(str(part) for part in detail["loc"][:1])
        by_field.setdefault(path, []).append(detail)
    described = []
    for path, details in by_field.items():
        if details[0]["type"] == "extra_forbidden":
            message = f"{UNKNOWN_NAME} {path[0]!r}{suggestion(path[0], model.model_fields)}"
        elif not path:
            message = "; ".join(_sentence(detail) for detail in details)
        else:
            value = details[0]["input"]
            message = _message(f"{path[0]}={value!r}", value, details)
        described.append((path, message))
    return described


def _message(subject: str, value: Any, details: list[Any]) -> str:
    """One message of all that pydantic says about a value; a union says one a member."""
    known = [
        name
        for detail in details
        if detail["type"] == "literal_error"
        for name in re.findall(r"'([^']*)'", detail["ctx"]["expected"])
    ]
    others = [detail for detail in details if detail["type"] != "literal_error"]
    if isinstance(value, str) and known:
        number = any("number" in detail["msg"] or "integer" in detail["msg"] for detail in others)
        instead = " and is no number" if number else ""
        return f"{subject} is not known{instead}{suggestion(value, known)}"
    missing = [detail for detail in others if detail["type"] in {"missing", "too_long"}]
    if missing and isinstance(value, list | tuple):
        return f"{subject} has {len(value)} entries, but needs another number of them"
    others = others or details
    return f"{subject}: {'; or '.join(dict.fromkeys(_sentence(detail) for detail in others))}"


def _sentence(detail: Any) -> str:
    text: str = detail["msg"].removeprefix("Value error, ")
    return text[0].lower() + text[1:] if text.startswith("Input ") else text
