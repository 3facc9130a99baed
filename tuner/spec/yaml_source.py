"""YAML text with the line and column of every value.

Numbers and booleans follow YAML 1.2: `1e-5` is a number and `no` is text, which PyYAML by
itself, following YAML 1.1, has the other way round. A key that comes twice is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from training.errors import PluginError
from tuner.errors import SpecError
from tuner.spec.registry import name_of

YamlPath = tuple[str | int, ...]

_RESOLVERS = {
    "tag:yaml.org,2002:null": r"~|null|Null|NULL|",
    "tag:yaml.org,2002:bool": r"true|True|TRUE|false|False|FALSE",
    "tag:yaml.org,2002:int": r"[-+]?[0-9]+",
    "tag:yaml.org,2002:float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    ),
}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 (PyYAML's own class attribute)


for _tag, _pattern in _RESOLVERS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), None)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: text that looks like a YAML 1.2 number is quoted."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal values out, each in its place."""
        return True


@dataclass(frozen=True)
class Override:
    """A value that replaces one of the file.

    Attributes:
        value: The value.
        origin: Where it comes from, for error messages, e.g. `--max-epochs 0`.
        is_text: Whether a value that is text is YAML text of the value.
    """

    value: Any
    origin: str
    is_text: bool = True


@dataclass
class YamlSource:
    """Values read from YAML text.

    Attributes:
        name: File name, for error messages; empty for values without a file, whose place is their
            dotted key.
        data: The values as plain Python objects.
        marks: Line and column, from 1, of every value by its path.
        key_marks: Line and column of every key by the path of its value.
        origins: Origin of values that were replaced.
    """

    name: str
    data: Any
    marks: dict[YamlPath, tuple[int, int]] = field(default_factory=dict)
    key_marks: dict[YamlPath, tuple[int, int]] = field(default_factory=dict)
    origins: dict[YamlPath, str] = field(default_factory=dict)
    _open: list[Node] = field(default_factory=list)

    @classmethod
    def parse(cls, text: str, name: str) -> YamlSource:
        """Read YAML text.

        Raises:
            SpecError: if the text is not valid YAML, or a key comes twice.
        """
        source = cls(name, None)
        try:
            node = yaml.compose(text, Loader=_Loader)
            if node is not None:
                source.data = source._construct(node, ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
            raise SpecError(f"{where}: not valid YAML: {error.problem}") from error
        except yaml.YAMLError as error:
            raise SpecError(f"{name}: not valid YAML: {error}") from error
        return source

    @classmethod
    def of_values(cls, values: Any) -> YamlSource:
        """Values that were not read from a file.

        Raises:
            SpecError: if there is one that YAML does not have.
        """
        return cls("", plain_value(values, ""))

    def where(self, *path: str | int, key: bool = False) -> str:
        """`file:line:column` of a value (or its key), or of what is nearest around it."""
        if key and path in self.key_marks and path not in self.origins:
            line, column = self.key_marks[path]
            return f"{self.name}:{line}:{column}"
        for length in range(len(path), -1, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
            if path[:length] in self.marks:
                line, column = self.marks[path[:length]]
                return f"{self.name}:{line}:{column}"
        return self.name or ".".join(str(part) for part in path) or "the search space"

    def replace(self, path: tuple[str, str] | tuple[str], override: Override) -> None:
        """Put another value at `path`.

        Raises:
            SpecError: if the value is not valid YAML.
        """
        value = override.value
        if isinstance(value, str) and override.is_text:
            value = YamlSource.parse(value, override.origin).data
        if not isinstance(self.data, dict):
            self.data = {}
        parent = self.data
        if len(path) == 2:
            if not isinstance(parent.get(path[0]), dict):
                parent[path[0]] = {}
            parent = parent[path[0]]
        parent[path[-1]] = value
        self.origins[path] = override.origin

    def remove(self, section: str, key: str) -> None:
        """Take a key out of a section, if it is there."""
        if isinstance(self.data, dict) and isinstance(self.data.get(section), dict):
            self.data[section].pop(key, None)

    def _construct(self, node: Node, path: YamlPath) -> Any:
        self.marks.setdefault(path, _position(node))
        if isinstance(node, ScalarNode):
            return _scalar(node)
        if any(node is around for around in self._open):
            raise SpecError(f"{self.where(*path)}: a value must not contain itself")
        self._open.append(node)
        try:
            if isinstance(node, MappingNode):
                return self._mapping(node, path)
            assert isinstance(node, SequenceNode)
            return [self._construct(item, (*path, i)) for i, item in enumerate(node.value)]
        finally:
            self._open.pop()

    def _mapping(self, node: MappingNode, path: YamlPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line, column = _position(key_node)
            if not isinstance(key_node, ScalarNode):
                raise SpecError(f"{self.name}:{line}:{column}: a key must be a single word")
            key = str(key_node.value)
            if key in values:
                first = self.where(*path, key, key=True)
                raise SpecError(
                    f"{self.name}:{line}:{column}: {key!r} comes twice, first at {first}"
                )
            self.key_marks[(*path, key)] = (line, column)
            # a mapping or list is found at its key, a plain value at itself
            if not isinstance(value_node, ScalarNode):
                self.marks[(*path, key)] = (line, column)
            values[key] = self._construct(value_node, (*path, key))
        return values


def dump_yaml(values: Mapping[str, Any]) -> str:
    """YAML text that reads back as `values`."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, default_flow_style=None)


def plain_value(value: Any, key: str) -> Any:
    """A value as YAML would give it: a tuple is a list, a path is text, a function its name.

    Args:
        value: The value.
        key: Its dotted key, for error messages.

    Raises:
        SpecError: if YAML has no such value, or no other process could import a function.
    """
    if isinstance(value, Mapping):
        return {
            str(name): plain_value(part, f"{key}.{name}" if key else str(name))
            for name, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [plain_value(part, f"{key}.{place}") for place, part in enumerate(value)]
    if isinstance(value, PurePath):
        return str(value)
    if value is None or type(value) in {bool, int, float, str}:
        return value
    if callable(value):
        try:
            return name_of(value)
        except PluginError as error:
            raise SpecError(f"{key}: {error}") from error
    raise SpecError(
        f"{key}: {value!r} is a {type(value).__name__}, but a search space has numbers, text, "
        "true, false, null, lists and mappings alone"
    )


def _position(node: Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _scalar(node: ScalarNode) -> Any:
    text = node.value
    match node.tag:
        case "tag:yaml.org,2002:null":
            return None
        case "tag:yaml.org,2002:bool":
            return text.lower() == "true"
        case "tag:yaml.org,2002:int":
            return int(text)
        case "tag:yaml.org,2002:float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        case _:
            return text
