"""What a study aims at beside its metric: constraints that trials keep to, and a confirmation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, ByteSize, Field

from tuner.errors import suggestion
from tuner.settings import Section, Whole

if TYPE_CHECKING:
    from tuner.spec import StudySpec
    from tuner.spec_parser import SpecParser

UNITS = {"K": 10**3, "M": 10**6, "G": 10**9}


def _count(value: Any) -> Any:
    """A number such as `44650000`, `30e6` or `30M`."""
    if isinstance(value, bool):
        raise ValueError("a number is needed here, not true or false")
    if isinstance(value, str):
        try:
            return round(float(value[:-1]) * UNITS[value[-1:].upper()])
        except (KeyError, ValueError) as error:
            raise ValueError(f"{value!r} is no number: write e.g. 30000000 or 30M") from error
    return value


class ConstraintSettings(Section):
    """The section `constraints`: a trial that breaks one ends, and cannot win."""

    max_parameters: Annotated[int, BeforeValidator(_count), Field(ge=1)] | None = None
    """Parameters of the network, e.g. `30M`, counted before it trains; null for no limit."""

    max_memory: Annotated[ByteSize, Field(gt=0)] | None = None
    """Memory that training and validation take, e.g. `10GB`: the peak that torch allocates on a
    GPU, or by which the process grows on a CPU, measured after each epoch; null for no limit."""


class ConfirmSettings(Section):
    """The section `confirm`: the best trials are trained again, with other seeds."""

    top: Annotated[Whole, Field(ge=1)] = 3
    """How many of the best trials, beside the default config."""

    seeds: Annotated[Whole, Field(ge=2)] = 3
    """With how many seeds each."""


def read_confirm(parser: SpecParser) -> ConfirmSettings | None:
    """The section `confirm`; None if it is left out, false, or wrong."""
    if parser.data.get("confirm", False) in (False, None):
        return None
    return parser.section("confirm", ConfirmSettings)


def _check_start_point(spec: StudySpec, parser: SpecParser, index: int) -> None:
    """Check that a point of `search.start_from` lies in the space."""
    path = ("search", "start_from", index)
    point = spec.search.start_from[index]
    completed = spec.start_points()[index]
    for name, value in point.items():
        domain = spec.space.domains.get(name)
        if domain is None:
            parser.problem(
                path, f"{name} does not vary in this space{suggestion(name, spec.space.domains)}"
            )
        elif not domain.contains(value):
            parser.problem(path, f"{name}={value!r} lies outside its domain: {domain.describe()}")
        elif name not in completed:
            needed = ", ".join(spec.space.conditions[name])
            parser.problem(
                path, f"{name} takes no part in this point: give the {needed} that it depends on"
            )
    parser.check_point(spec, completed)


def _check_class_metric(metric: str, spec: StudySpec, parser: SpecParser) -> None:
    """`val_dice_2` needs a class 2; the number of classes may come from the data later."""
    number = metric.removeprefix("val_dice_").removeprefix("val_nsd_")
    if number == metric or not number.isdecimal():
        return
    config = spec.base_config()
    known = [config.target_label] if config.target_label else list(range(1, config.num_classes))
    if ("num_classes" in spec.config or config.target_label) and int(number) not in known:
        parser.problem(
            ("metric",),
            f"metric {metric} names no foreground class: they are "
            f"{', '.join(str(label) for label in known)}",
        )


def check_goals(spec: StudySpec, parser: SpecParser) -> None:
    """Check metrics, points, warm start and confirmation against the rest of a spec."""
    for index in range(len(spec.search.start_from)):
        _check_start_point(spec, parser, index)
    for index, (metric, _) in enumerate(spec.objectives):
        _check_class_metric(metric, spec, parser)
        if metric in {name for name, _ in spec.objectives[:index]}:
            parser.problem(("metric", index), f"{metric} comes twice")
        if metric.startswith("val_nsd") and not spec.metric.startswith("val_nsd"):
            parser.problem(
                ("metric", index),
                f"{metric} is measured in validation only where it is the first metric: "
                "put it first, or leave it out",
            )
    learns_nothing = {"random", "qmc", "grid"}
    if spec.search.warm_start and spec.search.searcher in learns_nothing:
        parser.problem(
            ("search", "warm_start"),
            f"searcher={spec.search.searcher} learns nothing from trials: leave warm_start out, or "
            "choose another searcher, e.g. tpe",
        )
    base = spec.base_config()
    # whether a split file keeps test cases apart is seen where it is read
    if spec.confirm is not None and base.splits_file is None and not base.held_out_share:
        given = "fold" if base.test_fraction is None else "test_fraction"
        parser.problem(
            ("config", given) if given in spec.config else ("confirm",),
            "confirm judges trials on test cases, which no trial has seen, but this config keeps "
            f"none apart ({given}={spec.config.get(given)}): set e.g. test_fraction: 0.2",
        )
