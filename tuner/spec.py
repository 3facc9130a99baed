"""A search space file: YAML in, a validated `StudySpec` out.

Everything that can be wrong is found before Ray starts, and all of it at once, with file,
line, column, the value and the nearest valid name.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from training.config import Mode, ModelTrainingConfig
from tuner.errors import SpecError, suggestion
from tuner.space import Space
from tuner.spec_parser import SpecParser
from tuner.yaml_source import Override, YamlSource, dump_yaml

__all__ = [
    "AshaSettings",
    "Override",
    "ResourceSettings",
    "SearchSettings",
    "StudySpec",
    "load_spec",
    "parse_spec",
]


def _seconds(value: Any) -> Any:
    """Seconds of a duration such as `90`, `90s`, `30m` or `1.5h`."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    if isinstance(value, str) and value[-1:] in units:
        try:
            return float(value[:-1]) * units[value[-1]]
        except ValueError:
            pass
    if isinstance(value, str):
        raise ValueError(f"{value!r} is no duration: write seconds, or 90s, 30m, 2h, 1d")
    return value


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed here, not true or false")
    return value


def _one_gpu_at_most(value: Any) -> Any:
    if isinstance(value, int | float) and value > 1:
        raise ValueError(
            "a trial uses one GPU or a fraction of one: more trials at once use more GPUs better"
        )
    return value


Whole = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, BeforeValidator(_no_bool)]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class SearchSettings(_Section):
    """The section `search`: what proposes trials, and how many."""

    searcher: Literal["gp", "tpe", "priorband", "cmaes", "nsga2", "random", "qmc", "grid"] = "gp"
    """Key of `tuner.searchers.SEARCHERS`."""

    default_first: bool = True
    """Whether the first trial is the known good default: each field's value in `config`, or
    else of `ModelTrainingConfig`, or what comes nearest to it in the field's domain."""

    start_from: list[dict[str, Any]] = []
    """Points to try first, each a mapping of fields to values; fields that a point leaves out
    have their default."""

    num_trials: Annotated[Whole, Field(ge=1)] = 20
    """Trials of the study."""

    seed: Annotated[Whole, Field(ge=0, lt=2**31)] = 0
    """Seed of the proposals."""

    time_budget: Annotated[Number, BeforeValidator(_seconds), Field(gt=0)] | None = None
    """Seconds after which the study ends, e.g. `30m`; null for no limit."""


class AshaSettings(_Section):
    """The section `asha`: asynchronous successive halving (Li et al., 2020)."""

    grace_period: Annotated[Whole, Field(ge=1)] = 1
    """Epochs that every trial trains; the first rung."""

    reduction_factor: Annotated[Whole, Field(ge=2)] = 3
    """One of so many trials survives a rung; rungs are apart by this factor."""

    promotion: bool = True
    """Whether trials pause at a rung and the best go on when a worker is free, rather than
    stop there for good."""

    brackets: Annotated[Whole, Field(ge=1)] = 1
    """Ladders of rungs (Hyperband): each leaves out one more of the lowest rungs."""


class ResourceSettings(_Section):
    """The section `resources`: the share of one trial, and how many run at once."""

    cpu: Annotated[Number, Field(gt=0)] | Literal["auto"] = "auto"
    """CPU cores of a trial."""

    gpu: Annotated[Number, BeforeValidator(_one_gpu_at_most), Field(ge=0)] | Literal["auto"] = (
        "auto"
    )
    """GPUs of a trial: 0, 1 or a fraction."""

    max_concurrent: Annotated[Whole, Field(ge=1)] | Literal["auto"] = "auto"
    """Trials at once."""


class StudySpec(BaseModel):
    """A valid search space with all its settings.

    Attributes:
        source: The file it was read from.
        source_text: The file as given.
        metric: Validation metric that trials are compared by.
        mode: Whether a greater ("max") or smaller ("min") metric is better.
        config: Fixed values of `ModelTrainingConfig`, as given.
        space: What varies.
        search: What proposes trials.
        scheduler: Key of `tuner.schedulers.SCHEDULERS`.
        asha: The rungs, None for none.
        resources: Share of a trial.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    source: Path
    source_text: str
    metric: str
    mode: Mode
    config: dict[str, Any]
    space: Space
    search: SearchSettings
    scheduler: str
    asha: AshaSettings | None
    resources: ResourceSettings

    @property
    def rung_settings(self) -> AshaSettings:
        """The section `asha`, the default if there is none."""
        return self.asha or AshaSettings()

    @property
    def max_epochs(self) -> int:
        """Epochs of a full training."""
        return self.base_config().max_epochs

    def base_config(self) -> ModelTrainingConfig:
        """The config of the fixed values alone."""
        return self.trial_config({})

    def trial_config(self, values: Mapping[str, Any]) -> ModelTrainingConfig:
        """The config of a trial with the sampled `values`.

        Raises:
            pydantic.ValidationError: if the values do not fit together.
        """
        return ModelTrainingConfig.from_flat(
            {
                **self.config,
                **values,
                "monitor": self.metric,
                "monitor_mode": self.mode,
            }
        )

    def default_point(self) -> dict[str, Any]:
        """The known good point of the space: each field's default, or what comes nearest."""
        return self._completed({})

    def start_points(self) -> list[dict[str, Any]]:
        """The points of `search.start_from`, with the default of fields that they leave out."""
        return [self._completed(given) for given in self.search.start_from]

    def _completed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        flat = self.base_config().flat()
        values: dict[str, Any] = {}
        for name, domain in self.space.items():
            if not self.space.active(name, values):
                continue
            field, _, part = name.partition(".")
            default = flat.get(field)
            if part:
                default = default.get(part) if isinstance(default, dict) else None
            values[name] = domain.nearest(given.get(name, default))
        return values

    def rungs(self) -> tuple[int, ...]:
        """Epochs at which ASHA compares: grace_period * reduction_factor^k below max_epochs."""
        if self.asha is None or self.scheduler not in {"asha", "pasha"}:
            return ()
        rungs = []
        rung, max_epochs = self.asha.grace_period, self.max_epochs
        while rung < max_epochs:
            rungs.append(rung)
            rung *= self.asha.reduction_factor
        return tuple(rungs)

    def expected_epochs(self) -> float:
        """Epochs that the study takes if one of `reduction_factor` trials survives each rung."""
        steps = [0, *self.rungs(), self.max_epochs]
        factor = self.rung_settings.reduction_factor
        per_trial = sum(
            (after - before) / float(factor) ** survived
            for survived, (before, after) in enumerate(pairwise(steps))
        )
        return per_trial * self.search.num_trials

    def to_yaml(self) -> str:
        """The whole spec as a search space file, every setting written out."""
        return dump_yaml(
            {
                "metric": self.metric,
                "mode": self.mode,
                "config": self.config,
                "space": self.space.to_yaml(),
                "search": self.search.model_dump(mode="json"),
                "scheduler": self.scheduler,
                "asha": False if self.asha is None else self.asha.model_dump(mode="json"),
                "resources": self.resources.model_dump(mode="json"),
            }
        )


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
    metric, mode = parser.metric()
    config = parser.config()
    space = parser.space(config)
    search = parser.section("search", SearchSettings)
    asha = _asha(parser)
    scheduler = _scheduler(parser)
    resources = parser.section("resources", ResourceSettings)
    parser.raise_problems()
    assert search is not None
    assert resources is not None
    spec = StudySpec(
        source=Path(source),
        source_text=text,
        metric=metric,
        mode=mode,
        config=config,
        space=space,
        search=search,
        scheduler=scheduler,
        asha=asha,
        resources=resources,
    )
    _check_together(spec, parser)
    parser.raise_problems()
    return spec


def _asha(parser: SpecParser) -> AshaSettings | None:
    given = parser.data.get("asha", True)
    if given is False:
        return None
    if given is True:
        return AshaSettings()
    return parser.section("asha", AshaSettings)


SCHEDULER_NAMES = ("asha", "pasha", "median", "none")
"""Keys of `tuner.schedulers.SCHEDULERS`."""


def _scheduler(parser: SpecParser) -> str:
    off = parser.data.get("asha") is False
    name = parser.data.get("scheduler", "none" if off else "asha")
    if name not in SCHEDULER_NAMES:
        parser.problem(
            ("scheduler",), f"unknown scheduler {name!r}{suggestion(name, SCHEDULER_NAMES)}"
        )
        return "none"
    if off and name != "none":
        parser.problem(
            ("scheduler",),
            f"scheduler={name} needs the section asha, which is false: remove one of them",
        )
    return str(name)


SAMPLES = 200
"""Points of the space that are checked for values that do not fit together."""


def _check_together(spec: StudySpec, parser: SpecParser) -> None:
    """Check what only several values together can get wrong."""
    if not parser.check_point(spec, {}):
        return
    _check_class_metric(spec, parser)
    if spec.asha is not None and spec.asha.grace_period > spec.max_epochs:
        parser.problem(
            ("asha", "grace_period"),
            f"grace_period={spec.asha.grace_period} must not be above "
            f"max_epochs={spec.max_epochs}: no trial could be stopped",
        )
    rng = random.Random(0)
    for _ in range(SAMPLES):
        if not parser.check_point(spec, spec.space.sample(rng)):
            return


def _check_class_metric(spec: StudySpec, parser: SpecParser) -> None:
    """`val_dice_2` needs a class 2; the number of classes may come from the data later."""
    number = spec.metric.removeprefix("val_dice_").removeprefix("val_nsd_")
    if number == spec.metric or not number.isdecimal():
        return
    config = spec.base_config()
    known = [config.target_label] if config.target_label else list(range(1, config.num_classes))
    if ("num_classes" in spec.config or config.target_label) and int(number) not in known:
        parser.problem(
            ("metric",),
            f"metric {spec.metric} names no foreground class: they are "
            f"{', '.join(str(label) for label in known)}",
        )
