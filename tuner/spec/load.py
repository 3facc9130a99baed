"""Reads and validates a search space file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuner.errors import SpecError, suggestion
from tuner.spec.old_sections import translate
from tuner.spec.read_sections import apply_overrides
from tuner.spec.study_spec import StudySpec
from tuner.spec.yaml_source import Override, YamlSource, plain_value


def load_spec(
    path: str | Path, options: Mapping[str, Override] | None = None, /, **overrides: Any
) -> StudySpec:
    """Read and validate a search space file.

    Args:
        path: The file.
        options: See `parse_spec`.
        **overrides: The same as plain values: `load_spec("liver.yaml", num_trials=40)`.

    Raises:
        SpecError: if the file cannot be read, or for every problem in it at once.
    """
    given = {
        key: Override(plain_value(value, key), f"{key}={value!r}", is_text=False)
        for key, value in overrides.items()
    }
    path = Path(path)
    return parse_spec(_text(path), source=path, overrides={**(options or {}), **given})


def parse_spec(
    text: str, *, source: str | Path, overrides: Mapping[str, Override] | None = None
) -> StudySpec:
    """Validate a search space.

    Args:
        text: YAML text.
        source: File name, for error messages.
        overrides: Values that replace those of the file. A key is a config field, which is
            fixed and leaves the space, or a dotted name such as `search.num_trials`; the section
            may be left out where no other has a setting of that name.

    Raises:
        SpecError: for every problem at once, each with its place.
    """
    values = YamlSource.parse(text, str(source))
    apply_overrides(values, overrides or {})
    return StudySpec.from_source(values, text)


def load_resolved_spec(path: Path) -> StudySpec:
    """Read the resolved spec of a study, which an earlier version may have written.

    Raises:
        SpecError: if the file cannot be read, or for every problem in it at once.
    """
    text = _text(path)
    values = YamlSource.parse(text, str(path))
    if isinstance(values.data, dict):
        translate(values.data)
        # the first format did not name itself
        values.data.setdefault("format", 1)
    return StudySpec.from_source(values, text)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        others = [str(other) for other in sorted(path.parent.glob("*.yaml"))]
        hint = suggestion(path, others) if others else ""
        raise SpecError(f"there is no search space {path}{hint}") from error
    except IsADirectoryError as error:
        raise SpecError(
            f"{path} is a folder, not a search space: `tune init {path}` writes one for the data "
            "in it"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SpecError(f"the search space {path} cannot be read: {reason}") from error
