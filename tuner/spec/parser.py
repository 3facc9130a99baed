"""Collects what is wrong with a search space, each problem with its place."""

from __future__ import annotations

from typing import Any

from tuner.errors import SpecError
from tuner.spec.yaml_source import YamlPath, YamlSource


class SpecParser:
    """The values of a search space, and the problems that were found in them.

    Args:
        source: The values and where they are written.
    """

    def __init__(self, source: YamlSource) -> None:
        self.source = source
        self._problems: list[str] = []

    @property
    def data(self) -> dict[str, Any]:
        """The values."""
        values: dict[str, Any] = self.source.data
        return values

    def mapping(self, name: str) -> dict[str, Any]:
        """A part of the values that should be a mapping; empty if it is not, or not there."""
        given = self.data.get(name)
        return given if isinstance(given, dict) else {}

    @property
    def ok(self) -> bool:
        """Whether no problem was found so far."""
        return not self._problems

    def where(self, *path: str | int) -> str:
        """The place of a value, for error messages."""
        return self.source.where(*path)

    def problem(self, path: YamlPath, message: str, *, key: bool = False) -> None:
        """Note what is wrong with the value (or the key) at `path`."""
        line = f"{self.source.where(*path, key=key)}: {message}"
        if line not in self._problems:
            self._problems.append(line)

    def raise_problems(self) -> None:
        """Raise all problems so far, if there are any."""
        if self._problems:
            raise SpecError("\n".join(self._problems))
