"""Checks what only several values of a search space together can get wrong."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from training.config.regions import PRESETS
from tuner.errors import suggestion
from tuner.spec.field_errors import FieldProblem, value_problems
from tuner.spec.read_metrics import is_measured

if TYPE_CHECKING:
    from tuner.spec.parser import SpecParser
    from tuner.spec.spec_values import SpecValues
    from tuner.spec.yaml_source import YamlPath


def check_point(parser: SpecParser, spec: SpecValues, values: dict[str, Any]) -> bool:
    """Whether a point of the space is a valid config; notes why not."""
    try:
        spec.trial_config(values)
    except ValueError as error:
        problems = value_problems(error, {**spec.config, **values})
    else:
        return True
    point = f"with {', '.join(f'{k}={v}' for k, v in values.items())}: " if values else ""
    for problem in problems:
        parser.problem(_place(problem, spec, values), f"{point}{problem.message}")
    return False


def _place(problem: FieldProblem, spec: SpecValues, values: dict[str, Any]) -> YamlPath:
    """Path of the first value that a problem is about; values that vary come first."""
    for section, given in (("space", values), ("config", spec.config)):
        name = problem.name_in(given)
        if name is not None:
            return section, name
    return ("space",) if values else ("config",)


def _check_start_point(spec: SpecValues, parser: SpecParser, index: int) -> None:
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
    check_point(parser, spec, completed)


def _check_class_metric(metric: str, spec: SpecValues, parser: SpecParser) -> None:
    """`val_dice_2` needs a label 2, `val_dice_core` a region; the data may name them later."""
    name = metric.removeprefix("val_dice_").removeprefix("val_nsd_")
    config = spec.base_config()
    if name == metric or (config.lightning_module is not None and not name.isdecimal()):
        return
    known: tuple[str, ...]
    if isinstance(config.regions, str):
        known = PRESETS[config.regions]
    elif config.regions is None and not ("num_classes" in spec.config or config.target_label):
        return
    else:
        known = config.score_names
    if name not in known:
        kind = "foreground class" if config.regions is None else "region"
        parser.problem(("metric",), f"metric {metric} names no {kind}: they are {', '.join(known)}")


def _check_metrics(spec: SpecValues, parser: SpecParser) -> None:
    """Check the metrics against the config and each other."""
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


def _check_search(spec: SpecValues, parser: SpecParser) -> None:
    """Check the points to start from, and whether the searcher can use earlier studies."""
    for index in range(len(spec.search.start_from)):
        _check_start_point(spec, parser, index)
    learns_nothing = {"random", "qmc", "grid"}
    if spec.search.warm_start and spec.search.searcher in learns_nothing:
        parser.problem(
            ("search", "warm_start"),
            f"searcher={spec.search.searcher} learns nothing from trials: leave warm_start out, or "
            "choose another searcher, e.g. tpe",
        )


def _check_confirmation(spec: SpecValues, parser: SpecParser) -> None:
    """Check that a confirmation has test cases to judge by."""
    base = spec.base_config()
    if spec.confirm is not None and not is_measured(spec.metric, base):
        parser.problem(
            ("confirm",),
            f"confirm cannot measure {spec.metric} on test cases, since only your Lightning module "
            "logs it: leave confirm out, or make a metric of your own of it (my_metrics:function)",
        )
    # whether a split file keeps test cases apart is seen where it is read
    if spec.confirm is not None and base.splits_file is None and not base.held_out_share:
        given = "fold" if base.test_fraction is None else "test_fraction"
        parser.problem(
            ("config", given) if given in spec.config else ("confirm",),
            "confirm judges trials on test cases, which no trial has seen, but this config keeps "
            f"none apart ({given}={spec.config.get(given)}): set e.g. test_fraction: 0.2",
        )


NETWORK_FIELDS = frozenset({"model_name", "model_params", "patch_size", "spatial_dims"})
"""Fields that decide which weights there are."""


def _check_population(spec: SpecValues, parser: SpecParser) -> None:
    """Note settings with which trials cannot copy each other's weights, or never would."""
    for name, _ in spec.space.items():
        if name.partition(".")[0] in NETWORK_FIELDS:
            parser.problem(
                ("space", name),
                f"{name} cannot vary with policy={spec.policy.name}, in which a trial takes over "
                "the weights of another: they would not fit; fix it in `config`, or choose "
                "another policy",
            )
    base = spec.base_config()
    for name in ("patch_size", "train_batch_size"):
        if getattr(base, name) == "auto":
            parser.problem(
                ("config", name),
                f"{name}=auto does not go with policy={spec.policy.name}, in which a trial takes "
                "over the weights of another, whose memory may have planned another network: give "
                "a number (`tune check` with another policy says what would be planned)",
            )
    if spec.search.searcher == "grid":
        parser.problem(
            ("search", "searcher"),
            f"searcher=grid does not go with policy={spec.policy.name}, which changes the values "
            "of trials while they train: choose another one",
        )
    if spec.confirm is not None:
        parser.problem(
            ("confirm",),
            f"confirm does not go with policy={spec.policy.name}: it trains one config from the "
            "start, but the best weights came about with several; leave one of them out",
        )
    if spec.search.num_trials < 2:
        parser.problem(
            ("search", "num_trials"),
            f"num_trials={spec.search.num_trials} is not a population: policy={spec.policy.name} "
            "compares trials with each other and needs 2, better 8 or more",
        )


def _check_folds(spec: SpecValues, parser: SpecParser) -> None:
    """Note settings that do not go with several folds."""
    folds = f"folds={spec.folds}"
    if "fold" in spec.config:
        parser.problem(
            ("config", "fold"),
            f"fold={spec.config['fold']} and search.{folds}: with several folds each configuration "
            "is trained on one after the other; remove fold, or set folds: 1",
        )
    known = spec.config.get("num_folds", spec.folds)
    if spec.folds > known:
        parser.problem(
            ("search", "folds"),
            f"{folds} must not be above num_folds={known}, the folds that there are: lower it, or "
            "leave num_folds out",
        )
    if spec.population:
        parser.problem(
            ("search", "folds"),
            f"{folds} does not go with policy={spec.policy.name}, in which trials exchange weights "
            "while they train once: set folds: 1, or choose another policy, e.g. asha",
        )


def _shares_batch(parser: SpecParser, spec: SpecValues, values: dict[str, Any]) -> bool:
    """Whether the GPUs of a trial can share the batch of a point; notes why not."""
    gpus = spec.resources.gpu
    if spec.resources.batch != "trial" or not isinstance(gpus, int | float) or gpus <= 1:
        return True
    size = spec.trial_config(values).train_batch_size
    if size == "auto" or size % int(gpus) == 0:
        return True
    name = "train_batch_size"
    given = (section for section, at in (("space", values), ("config", spec.config)) if name in at)
    section = next(given, None)
    parser.problem(
        ("resources", "batch") if section is None else (section, name),
        f"{name}={size} cannot be shared by the {int(gpus)} GPUs of a trial (resources.batch: "
        "trial): choose multiples, or batch: gpu",
    )
    return False


SAMPLES = 200
"""Points of the space that are checked for values that do not fit together."""


def check_together(spec: SpecValues, parser: SpecParser) -> None:
    """Check what only several values together can get wrong."""
    _check_search(spec, parser)
    _check_metrics(spec, parser)
    _check_confirmation(spec, parser)
    for setting, message in spec.policy.problems(spec.max_epochs):
        parser.problem(("policy", setting), message)
    if spec.population:
        _check_population(spec, parser)
    if spec.folds > 1:
        _check_folds(spec, parser)
    rng = random.Random(0)
    for _ in range(SAMPLES):
        values = spec.space.sample(rng)
        if not check_point(parser, spec, values) or not _shares_batch(parser, spec, values):
            return
