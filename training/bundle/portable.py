"""Removes paths and user names of this machine from what an exported model holds."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.config import ModelTrainingConfig

ABSOLUTE = re.compile(
    r"""(?<![^\s=\[\](){},;:'"])(?:~?/(?=[^\s/])|[A-Za-z]:\\)[^\s\[\](){},;'"]*"""
)
"""An absolute path in a text, up to a blank or a bracket."""


def portable_config(config: ModelTrainingConfig) -> dict[str, Any]:
    """A config without its folders and files, which mean nothing on another machine.

    They take their defaults when it is read again: what predicts does not look at them.
    """
    return {
        name: value
        for name, value in config.flat().items()
        if not isinstance(getattr(config, name), Path)
        and not (isinstance(value, str) and _is_absolute(value))
    }


def without_paths(value: Any) -> Any:
    """A value of JSON types in which each absolute path is its last part alone."""
    if isinstance(value, dict):
        return {without_paths(key): without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    option, equals, rest = value.partition("=")
    if equals and _is_absolute(rest):
        return f"{option}={_last_part(rest)}"
    if _is_absolute(value):
        return _last_part(value)
    return ABSOLUTE.sub(lambda found: _last_part(found[0]), value)


def _is_absolute(text: str) -> bool:
    # a path may hold blanks; a second line it does not
    return ABSOLUTE.match(text) is not None and "\n" not in text


def _last_part(path: str) -> str:
    kind = PureWindowsPath if "\\" in path else PurePosixPath
    return kind(path).name
