"""Help for everything that can be written in a search space file, taken from the models.

One row for each field of `ModelTrainingConfig` and for each setting of a section: type, range,
default, docstring, and a domain that it can be searched over. `tune fields` and the reference
pages print these rows, so no default and no range is written twice.
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ByteSize

from training.config import ModelTrainingConfig
from training.config.types import NameIn
from tuner.errors import SpecError, suggestion
from tuner.spec.policies import DEFAULT_POLICY, POLICY_SETTINGS
from tuner.spec.settings import Section, seconds
from tuner.spec.spec_values import SECTIONS

__all__ = [
    "FieldHelp",
    "all_fields",
    "config_fields",
    "find_fields",
    "policy_fields",
    "section_fields",
    "sections",
]

CONFIG = "config"
"""Name of the section whose keys are fields of `ModelTrainingConfig`."""

POLICY = "policy"
"""Name of the section whose settings follow from the policy that it names."""


OWN = "package.module:function"
"""How something of the user's own is named, where it can be."""

AT_THE_TOP = {
    "metric": "it stands at the top of the file, e.g. `metric: val_dice`, or a list of which the "
    "first counts",
    "mode": "it stands at the top of the file, `mode: max` or `mode: min`, and follows from the "
    "metric where it is left out",
}
"""Keys of the file that are no sections, and what they hold."""

NEVER_VARY = frozenset({"max_epochs"})
"""Fields that say how a network is trained, and are the same for all trials of a study."""


@dataclass(frozen=True)
class FieldHelp:
    """Help for one field or setting.

    Attributes:
        name: Its key inside the section.
        section: `config`, or the section that it is a setting of.
        group: Heading that it is listed under.
        kind: Type and range, in words.
        default: The default, as YAML.
        text: Its docstring.
        domain: An example of a domain to search it over, as YAML; empty where it cannot vary.
        read_by: The policies that have this setting; empty where it is not a setting of a policy.
    """

    name: str
    section: str
    group: str
    kind: str
    default: str
    text: str
    domain: str = ""
    read_by: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name that `--set` takes: a field by itself, a setting with its section."""
        return self.name if self.section == CONFIG else f"{self.section}.{self.name}"

    @property
    def summary(self) -> str:
        """The first sentence of the docstring, on one line."""
        text = " ".join(self.text.split("\n\n")[0].split())
        return re.split(r"(?<=\.) (?=[A-Z])", text, maxsplit=1)[0]


def config_fields() -> list[FieldHelp]:
    """Every field of `ModelTrainingConfig`, in the order of the file."""
    searchable = set(ModelTrainingConfig.searchable_fields()) - NEVER_VARY
    return [
        _row(ModelTrainingConfig, name, CONFIG, _group(name), searchable=name in searchable)
        for name in ModelTrainingConfig.model_fields
    ]


def sections() -> dict[str, type[Section]]:
    """The sections of settings by name; `policy` has the settings of the policy that it names."""
    return dict(SECTIONS)


def section_fields(name: str) -> list[FieldHelp]:
    """Every setting of a section."""
    if name == POLICY:
        return _policy_fields()
    model = sections()[name]
    return [_row(model, field, name, name, searchable=False) for field in model.model_fields]


def policy_fields(policy: str) -> list[FieldHelp]:
    """Every setting of one policy, but for its name."""
    model = POLICY_SETTINGS[policy]
    rows = [_row(model, field, POLICY, POLICY, searchable=False) for field in model.model_fields]
    return [replace(row, read_by=(policy,)) for row in rows if row.name != "name"]


def _policy_fields() -> list[FieldHelp]:
    """The name of the policy, then each setting once with the policies that read it."""
    name = _row(sections()[POLICY], "name", POLICY, POLICY, searchable=False)
    merged: dict[FieldHelp, list[str]] = {}
    for policy in POLICY_SETTINGS:
        for row in policy_fields(policy):
            merged.setdefault(replace(row, read_by=()), []).append(policy)
    return [
        replace(name, kind=" | ".join([*POLICY_SETTINGS, OWN]), default=DEFAULT_POLICY),
        *(replace(row, read_by=tuple(readers)) for row, readers in merged.items()),
    ]


def all_fields() -> list[FieldHelp]:
    """The fields of the config, then the settings of every section."""
    settings = [row for name in sections() for row in section_fields(name)]
    return [*config_fields(), *settings]


def find_fields(name: str) -> list[FieldHelp]:
    """The rows that a name stands for.

    A name is a field, `section.setting`, a setting, a section, a heading or a policy; `space` is
    all that can vary.

    Raises:
        SpecError: if nothing has that name; says the nearest one.

    Example:
        >>> [row.key for row in find_fields("num_trials")]
        ['search.num_trials']
    """
    rows = all_fields()
    wanted = name.strip().removeprefix(f"{CONFIG}.")
    found = (
        [row for row in rows if row.key == wanted]
        or [row for row in rows if wanted in (row.name, row.section)]
        or [row for row in rows if wanted.lower() == row.group.lower() or wanted in row.read_by]
        or [row for row in rows if wanted == "space" and row.domain]
    )
    if not found and wanted.partition(".")[0] in ("model_params", "class_weights"):
        return [row for row in rows if row.key == wanted.partition(".")[0]]
    if wanted in AT_THE_TOP:
        raise SpecError(f"{wanted} is neither a field nor a setting: {AT_THE_TOP[wanted]}")
    if not found:
        known = list(dict.fromkeys([*(row.key for row in rows), *(row.name for row in rows)]))
        parts = [row.key for row in rows if len(wanted) > 2 and wanted in row.key]
        near = suggestion(wanted, known)
        hint = near if "did you mean" in near else "; `tune fields` lists all of them"
        if parts:
            hint = f"; did you mean {' or '.join(map(repr, parts[:5]))}?"
        raise SpecError(f"there is no field or setting {name!r}{hint}")
    return found


def _row(
    model: type[BaseModel], name: str, section: str, group: str, *, searchable: bool
) -> FieldHelp:
    field = model.model_fields[name]
    metadata = tuple(field.metadata)
    default = field.get_default(call_default_factory=True)
    return FieldHelp(
        name=name,
        section=section,
        group=group,
        kind=_kind(field.annotation, metadata),
        default="required" if field.is_required() else as_yaml(default),
        text=inspect.cleandoc(field.description or ""),
        domain=(
            _example_domain(name, list(_options(field.annotation, metadata)), default)
            if searchable
            else ""
        ),
    )


def as_yaml(value: Any) -> str:
    """A value as it is written in YAML, on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {as_yaml(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(as_yaml(entry) for entry in value) + "]"
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, bool | int):
        return json.dumps(value)
    return str(value)


def _group(name: str) -> str:
    """The heading of a field: the name of the part of the config that it is in."""
    part = next(kind for kind in ModelTrainingConfig.__mro__ if name in kind.__annotations__)
    return part.__name__.removesuffix("Fields")


WORDS: dict[Any, str] = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "text",
    Path: "path",
    dict: "mapping",
    ByteSize: "size, e.g. 500MB or 20GB",
    type(None): "null",
}
"""Names of types in the help."""

LIMITS = {"ge": "{} or more", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
"""Attributes of pydantic's constraints, and their wording."""


@dataclass(frozen=True)
class _Option:
    """One of the types that a field may have, with its constraints."""

    base: Any
    metadata: tuple[Any, ...] = ()

    def names(self) -> list[str]:
        """Names of the entries of a registry, where the type is such a name."""
        return [name for each in self.metadata if isinstance(each, NameIn) for name in each.names()]

    def limit(self, attribute: str) -> Any:
        """The bound that a kind of constraint sets, None if there is none."""
        found = [getattr(each, attribute, None) for each in self.metadata]
        return next((bound for bound in found if bound is not None), None)

    def describe(self) -> str:
        """Type and range in words."""
        if any(getattr(each, "func", None) is seconds for each in self.metadata):
            return "duration, e.g. 90s, 30m or 2h"
        if names := self.names():
            return " | ".join([*names, OWN])
        origin, arguments = typing.get_origin(self.base), typing.get_args(self.base)
        if origin is Literal:
            return " | ".join(as_yaml(value) for value in arguments)
        if origin is tuple:
            return f"list of {len(arguments)}, each: {_kind(arguments[0])}"
        if origin is list:
            return f"list, each: {_kind(arguments[0])}"
        word = WORDS.get(origin or self.base, "any value")
        limits = [
            words.format(limit)
            for attribute, words in LIMITS.items()
            if self.base in (int, float) and (limit := self.limit(attribute)) is not None
        ]
        return f"{word} ({' and '.join(limits)})" if limits else word


def _options(annotation: Any, metadata: tuple[Any, ...] = ()) -> Iterator[_Option]:
    """The types that an annotation allows."""
    if typing.get_origin(annotation) is Annotated:
        base, *more = typing.get_args(annotation)
        inner = [entry for each in more for entry in getattr(each, "metadata", [each])]
        yield from _options(base, (*metadata, *inner))
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _options(part, metadata)
    else:
        yield _Option(annotation, metadata)


def _kind(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    return " or ".join(dict.fromkeys(each.describe() for each in _options(annotation, metadata)))


def _example_domain(name: str, options: list[_Option], default: Any) -> str:
    """A domain around the default that is valid for the field, as it stands in a space."""
    for option in options:
        if names := option.names():
            return f"{name}: {{choice: {as_yaml(names[:3])}}}"
        if typing.get_origin(option.base) is Literal and name != "mirror_axes":
            return f"{name}: {{choice: {as_yaml(typing.get_args(option.base)[:3])}}}"
        if option.base is bool:
            return f"{name}: {{choice: [true, false]}}"
        if option.base in (int, float) and default is None:
            return f"{name}: {{choice: {{off: null, on: {as_yaml(_example_number(option))}}}}}"
        if option.base in (int, float):
            return f"{name}: {_number_domain(option, default)}"
    if isinstance(default, dict):
        return f"{name}.KEY: {{choice: [...]}}"
    other = [2 * entry for entry in default] if isinstance(default, tuple) else []
    return f"{name}: {{choice: {{one: {as_yaml(default)}, other: {as_yaml(other)}}}}}"


def _upper(option: _Option) -> float | None:
    strict: float | None = option.limit("lt")
    return option.limit("le") if strict is None else strict


def _example_number(option: _Option) -> float:
    upper = _upper(option)
    return 10 if upper is None else 0.999 * upper


def _number_domain(option: _Option, default: Any) -> str:
    upper = _upper(option)
    if option.base is int:
        low = int(max(option.limit("ge") or 0, default // 2))
        return f"{{randint: {as_yaml([low, max(2 * default, low + 4)])}}}"
    if default == 0:
        return f"{{uniform: [0, {as_yaml(0.5 * (upper or 1))}]}}"
    if default <= 0.01:
        return f"{{loguniform: {as_yaml([default / 10, default * 10])}}}"
    high = 2 * default if upper is None else min(2 * default, (default + upper) / 2)
    return f"{{uniform: {as_yaml([default / 2, high])}}}"
