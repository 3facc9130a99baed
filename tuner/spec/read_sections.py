"""Reads the sections of settings of a search space."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from training.config import ModelTrainingConfig
from tuner.errors import SpecError, suggestion
from tuner.spec.field_errors import model_problems
from tuner.spec.old_sections import old_sections, refusal
from tuner.spec.parser import SpecParser
from tuner.spec.settings import Section
from tuner.spec.spec_values import FORMAT, PARTS, SECTION_OF, SECTIONS, may_be_off
from tuner.spec.yaml_source import Override, YamlSource


def apply_overrides(source: YamlSource, overrides: Mapping[str, Override]) -> None:
    """Put other values in the place of those of a search space.

    Args:
        source: The search space.
        overrides: New values by key. A key is a section, a dotted name such as `search.seed`, a
            config field, which is fixed and leaves the space, or a setting whose name no other
            section and no config field has.

    Raises:
        SpecError: if a value is not valid YAML, or a key names a part of what has none.
    """
    for key, override in overrides.items():
        section, _, name = key.partition(".")
        # `scheduler` alone is the field of the config
        if section not in {*PARTS, "asha", "pbt"}:
            section, name = SECTION_OF.get(key, "config"), key
        if name and section in ("metric", "mode"):
            raise SpecError(f"{override.origin}: {section} has no parts: write {section}=VALUE")
        if not name:
            source.replace((section,), override)
            continue
        if section in SECTIONS and isinstance(source.data, dict) and section in source.data:
            source.data[section] = SECTIONS[section].expand(source.data[section])
        source.replace((section, name), override)
        if section == "config":
            source.remove("space", name)
        elif section == "space":
            source.remove("config", name)


def check_parts(parser: SpecParser) -> None:
    """Note unknown sections, old ones, and sections that are not a mapping."""
    old = old_sections(parser.data)
    if old:
        options = (path for path in parser.source.origins if path[0] in old)
        parser.problem(next(options, (old[0],)), refusal(parser.data), key=True)
    for name in parser.data:
        if name == "format":
            if parser.data[name] not in range(1, FORMAT + 1):
                parser.problem(
                    (name,),
                    f"format={parser.data[name]!r} is not one that this version reads, 1 to "
                    f"{FORMAT}: a newer version of segtune wrote the file",
                )
        elif name not in {*PARTS, *old}:
            hint = suggestion(name, PARTS)
            if name in ModelTrainingConfig.model_fields:
                hint = f": fixed values of the config go under `config:`, e.g. config.{name}"
            parser.problem((name,), f"unknown section {name!r}{hint}", key=True)
    for name in ("config", "space"):
        given = parser.data.get(name, {})
        if not isinstance(given, dict):
            parser.problem((name,), f"{name} must be a mapping of names, but got {given!r}")
    if "space" not in parser.data and parser.ok:
        parser.problem(("space",), "there is no section `space`: nothing would vary")


def read_section(parser: SpecParser, name: str) -> Section | None:
    """A section of settings; None if it is off, or something in it is wrong."""
    model = SECTIONS[name]
    off = may_be_off(name)
    given = parser.data.get(name, False if off else {})
    if off and given in (False, None):
        return None
    settings = model.expand(given)
    if not isinstance(settings, dict):
        form = f"{model.FORM} or false" if off else model.FORM
        parser.problem((name,), f"{name} must be {form}, but got {given!r}")
        return None
    try:
        model = model.kind(settings)
    except ValueError as error:
        parser.problem((name, "name"), str(error))
        return None
    try:
        return model(**settings)
    except ValidationError as error:
        for found in model_problems(error, model, settings):
            named = "name" in model.model_fields and found.is_name
            kind = settings.get("name", model.model_fields["name"].default) if named else None
            chosen = f"{name}={kind}: " if named else ""
            parser.problem((name, *found.fields[:1]), f"{chosen}{found.message}", key=found.is_name)
        return None
