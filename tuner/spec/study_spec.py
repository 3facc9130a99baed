"""A search space: values or YAML in, a validated `StudySpec` out.

Everything that can be wrong is found before Ray starts, and all of it at once, with file,
line, column, the value and the nearest valid name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tuner.errors import SpecError
from tuner.spec.checks import check_point, check_together
from tuner.spec.parser import SpecParser
from tuner.spec.read_config import read_config
from tuner.spec.read_metrics import read_metrics
from tuner.spec.read_sections import apply_overrides, check_parts, read_section
from tuner.spec.read_space import read_space
from tuner.spec.spec_values import FORMAT, PARTS, SECTIONS, SpecValues
from tuner.spec.yaml_source import Override, YamlSource, dump_yaml


class StudySpec(SpecValues):
    """A valid search space with all its settings.

    Example:
        >>> spec = StudySpec.from_dict({
        ...     "config": {"data_dir": "phantom", "max_epochs": 9},
        ...     "space": {"learning_rate": {"loguniform": [1e-5, 1e-2]}},
        ...     "search": {"num_trials": 4},
        ... })
        >>> spec.policy.name, spec.rungs()
        ('asha', (1, 3))
    """

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The spec of the values that a search space file would have.

        Args:
            values: Sections by name; a path is text or a `Path`, a list may be a tuple.

        Raises:
            SpecError: for every problem at once, each with its key.
        """
        source = YamlSource.of_values(values)
        return cls.from_source(source, dump_yaml(source.data))

    @classmethod
    def from_source(cls, source: YamlSource, text: str) -> Self:
        """The spec of values whose places are known.

        Args:
            source: The values.
            text: The text that they were given in.

        Raises:
            SpecError: for every problem at once, each with its place.
        """
        if source.data is None:
            raise SpecError(f"{source.name} is empty: it needs at least the section `space`")
        if not isinstance(source.data, dict):
            raise SpecError(
                f"{source.where()}: a search space is a mapping of {', '.join(PARTS)}, "
                f"but this is {source.data!r}"
            )
        parser = SpecParser(source)
        check_parts(parser)
        (metric, mode), *further = read_metrics(parser)
        config = read_config(parser)
        space = read_space(parser, config)
        sections = {name: read_section(parser, name) for name in SECTIONS}
        parser.raise_problems()
        spec = cls(
            source=Path(source.name),
            source_text=text,
            format=source.data.get("format", FORMAT),
            metric=metric,
            mode=mode,
            further_metrics=tuple(further),
            config=config,
            space=space,
            **sections,
        )
        check_together(spec, parser)
        parser.raise_problems()
        return spec

    def completed(self, values: Mapping[str, Any], origin: str) -> Self:
        """The spec with fixed values of the config that are known later.

        Args:
            values: Config fields that do not vary.
            origin: Where they come from, for error messages.

        Raises:
            SpecError: if they do not fit the rest.
        """
        parser = self._parser()
        for name in values:
            parser.source.origins["config", name] = origin
        spec = self.model_copy(update={"config": {**self.config, **values}})
        if check_point(parser, spec, {}):
            check_together(spec, parser)
        parser.raise_problems()
        return spec

    def with_settings(self, overrides: Mapping[str, Override]) -> Self:
        """The spec with other settings in its sections.

        Args:
            overrides: The settings by dotted key, e.g. `search.num_trials`.

        Raises:
            SpecError: if a setting is not valid, or does not fit the rest.
        """
        parser = self._parser()
        changed = {key.partition(".")[0] for key in overrides}
        assert changed <= set(SECTIONS), changed
        parser.data.update({name: self.to_dict()[name] for name in changed})
        apply_overrides(parser.source, overrides)
        settings = {name: read_section(parser, name) for name in changed}
        parser.raise_problems()
        spec = self.model_copy(update=settings)
        check_together(spec, parser)
        parser.raise_problems()
        return spec

    def _parser(self) -> SpecParser:
        """A parser of the spec's values with their places, for new error messages."""
        if self.source == Path():
            return SpecParser(YamlSource.of_values(self.to_dict()))
        return SpecParser(YamlSource.parse(self.source_text, str(self.source)))
