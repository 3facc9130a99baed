"""Reads and validates a search space file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.errors import SpecError, suggestion
from tuner.spec.checks import check_together
from tuner.spec.parser import SpecParser
from tuner.spec.settings import (
    AshaSettings,
    CheckpointSettings,
    ConfirmSettings,
    ConstraintSettings,
    FailureSettings,
    PopulationSettings,
    ResourceSettings,
    SearchSettings,
)
from tuner.spec.study_spec import StudySpec
from tuner.spec.yaml_source import Override, YamlSource

if TYPE_CHECKING:
    pass


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
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        others = [str(other) for other in sorted(path.parent.glob("*.yaml"))]
        hint = suggestion(path, others) if others else ""
        raise SpecError(f"there is no search space {path}{hint}") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise SpecError(f"the search space {path} cannot be read: {reason}") from error
    return parse_spec(text, source=path, overrides=overrides)


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
    parser.check_sections()
    (metric, mode), *further = parser.metrics()
    config = parser.config()
    space = parser.space(config)
    search = parser.section("search", SearchSettings)
    asha = _asha(parser)
    scheduler = _scheduler(parser)
    pbt = parser.section("pbt", PopulationSettings)
    resources = parser.section("resources", ResourceSettings)
    failures = parser.section("failures", FailureSettings)
    checkpoints = parser.section("checkpoints", CheckpointSettings)
    constraints = parser.section("constraints", ConstraintSettings)
    confirm = read_confirm(parser)
    parser.raise_problems()
    assert search is not None
    assert pbt is not None
    assert resources is not None
    assert failures is not None
    assert checkpoints is not None
    assert constraints is not None
    spec = StudySpec(
        source=Path(source),
        source_text=text,
        metric=metric,
        mode=mode,
        further_metrics=tuple(further),
        config=config,
        space=space,
        search=search,
        scheduler=scheduler,
        asha=asha,
        pbt=pbt,
        resources=resources,
        failures=failures,
        checkpoints=checkpoints,
        constraints=constraints,
        confirm=confirm,
    )
    check_together(spec, parser)
    parser.raise_problems()
    return spec


def _asha(parser: SpecParser) -> AshaSettings | None:
    given = parser.data.get("asha", True)
    if given is False:
        return None
    if given is True:
        return AshaSettings()
    return parser.section("asha", AshaSettings)


def _scheduler(parser: SpecParser) -> str:
    off = parser.data.get("asha") is False
    name = parser.data.get("scheduler", "none" if off else "asha")
    if name not in POLICY_NAMES:
        parser.problem(
            ("scheduler",), f"unknown scheduler {name!r}{suggestion(name, POLICY_NAMES)}"
        )
        return "none"
    if off and name in NEED_ASHA:
        parser.problem(
            ("scheduler",),
            f"scheduler={name} needs the section asha, which is false: remove one of them",
        )
    return str(name)


POLICY_NAMES = ("asha", "pasha", "hyperband", "median", "pbt", "pb2", "none")
"""Keys of `tuner.search.policies.POLICIES`."""

NEED_ASHA = frozenset({"asha", "pasha", "hyperband", "median"})
"""Schedulers whose settings are in the section `asha`."""
