"""Reads and validates a search space file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tuner.errors import SpecError, suggestion
from tuner.spec.checks import check_together
from tuner.spec.old_sections import translate
from tuner.spec.parser import SpecParser
from tuner.spec.settings import (
    CheckpointSettings,
    ConfirmSettings,
    ConstraintSettings,
    FailureSettings,
    ResourceSettings,
    SearchSettings,
)
from tuner.spec.study_spec import StudySpec
from tuner.spec.yaml_source import Override, YamlSource


def read_confirm(parser: SpecParser) -> ConfirmSettings | None:
    """The section `confirm`; None if it is left out, false, or wrong."""
    if parser.data.get("confirm", False) in (False, None):
        return None
    return parser.section("confirm", ConfirmSettings)


def load_spec(path: Path, overrides: Mapping[str, Override] | None = None) -> StudySpec:
    """Read and validate a search space file.

    Args:
        path: The file.
        overrides: See `parse_spec`.

    Raises:
        SpecError: if the file cannot be read, or for every problem in it at once.
    """
    return parse_spec(_text(path), source=path, overrides=overrides)


def load_resolved_spec(path: Path) -> StudySpec:
    """Read the resolved spec of a study, which an earlier version may have written.

    Raises:
        SpecError: if the file cannot be read, or for every problem in it at once.
    """
    text = _text(path)
    source = YamlSource.parse(text, str(path))
    if isinstance(source.data, dict):
        translate(source.data)
    return _validated(SpecParser(source), text, path)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        others = [str(other) for other in sorted(path.parent.glob("*.yaml"))]
        hint = suggestion(path, others) if others else ""
        raise SpecError(f"there is no search space {path}{hint}") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise SpecError(f"the search space {path} cannot be read: {reason}") from error


def parse_spec(
    text: str, *, source: str | Path, overrides: Mapping[str, Override] | None = None
) -> StudySpec:
    """Validate a search space.

    Args:
        text: YAML text.
        source: File name, for error messages.
        overrides: Values that replace those of the file. A key is a config field, which is
            fixed and leaves the space, or a dotted name such as `search.num_trials`.

    Raises:
        SpecError: for every problem at once, each with its place.
    """
    parser = SpecParser(YamlSource.parse(text, str(source)))
    parser.apply(overrides or {})
    return _validated(parser, text, Path(source))


def _validated(parser: SpecParser, text: str, source: Path) -> StudySpec:
    """The spec of a file; raises every problem of it at once."""
    parser.check_sections()
    (metric, mode), *further = parser.metrics()
    config = parser.config()
    space = parser.space(config)
    search = parser.section("search", SearchSettings)
    policy = parser.policy()
    resources = parser.section("resources", ResourceSettings)
    failures = parser.section("failures", FailureSettings)
    checkpoints = parser.section("checkpoints", CheckpointSettings)
    constraints = parser.section("constraints", ConstraintSettings)
    confirm = read_confirm(parser)
    parser.raise_problems()
    assert search is not None
    assert policy is not None
    assert resources is not None
    assert failures is not None
    assert checkpoints is not None
    assert constraints is not None
    spec = StudySpec(
        source=source,
        source_text=text,
        metric=metric,
        mode=mode,
        further_metrics=tuple(further),
        config=config,
        space=space,
        search=search,
        policy=policy,
        resources=resources,
        failures=failures,
        checkpoints=checkpoints,
        constraints=constraints,
        confirm=confirm,
    )
    check_together(spec, parser)
    parser.raise_problems()
    return spec
