"""The text of a search space, with the reason of each value in a comment."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

import yaml

from training.data.patches.mirroring import LEFT_RIGHT, mirror_axes, sided_labels
from tuner.init.candidates import Plan
from tuner.init.device import Device
from tuner.init.measure import Speed
from tuner.init.schedule import Schedule
from tuner.init.survey import DataSurvey
from tuner.spec.recipes import RECIPES
from tuner.spec.spec_values import FINALE_SHARE

COMMENT = 44
"""Column that comments begin at, where the value leaves room."""

WIDTH = 100

WARMUP_SHARE = 0.07
"""Share of the epochs in which the rate of AdamW rises."""

ADAPTIVE_RATES = (5e-4, 1e-2)
"""Learning rates that are tried where no network trains with SGD."""

RARE = 0.005
"""Share of the voxels below which a class is rare: weights that favour it are tried."""


def write_space(
    survey: DataSurvey,
    device: Device,
    plan: Plan,
    speeds: Mapping[str, Speed],
    schedule: Schedule,
    hours: float,
) -> str:
    """The search space as YAML text.

    Args:
        survey: The data.
        device: Where trials train.
        plan: Networks, patch and batch.
        speeds: What each network takes.
        schedule: Epochs, steps and trials.
        hours: What the study may take.
    """
    parts = [
        _head(survey, device, hours),
        ["metric: val_dice"],
        _config(survey, device, plan, speeds, schedule),
        _space(survey, plan),
        _search(schedule, hours),
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _head(survey: DataSurvey, device: Device, hours: float) -> list[str]:
    dataset = survey.dataset
    shape = " x ".join(f"{size:.0f}" for size in survey.shape)
    spacing = " x ".join(f"{size:g}" for size in survey.spacing)
    shares = ", ".join(
        f"{name} {share:.2%}" for name, share in zip(dataset.labels, survey.shares(), strict=True)
    )
    return list(
        _wrapped(
            f"{dataset.name}: {len(dataset.cases)} cases of {', '.join(dataset.channels)} "
            f"({dataset.modality}). A case has {shape} voxels of {spacing} mm (median; superior, "
            f"anterior, right) once it is prepared; of the voxels are {shares}.",
            f"For {hours:g} {'hour' if hours == 1 else 'hours'} on {device.described}.",
            "Fields that are not here have the value of the network's recipe, see `tune fields`.",
        )
    )


def _config(
    survey: DataSurvey,
    device: Device,
    plan: Plan,
    speeds: Mapping[str, Speed],
    schedule: Schedule,
) -> list[str]:
    dataset = survey.dataset
    splits = {name: len(cases) for name, cases in dataset.splits.items()}
    covers = min(
        patch / size for patch, size in zip(plan.patch.patch_size, survey.shape, strict=True)
    )
    lines = [
        "config:",
        *_line("data_dir", survey.data_dir, ""),
        *_line("num_classes", len(dataset.labels), ", ".join(dataset.labels)),
        *_label_values(survey),
        *_line("input_channels", len(dataset.channels), ", ".join(dataset.channels)),
        *_line("target_spacing", list(survey.spacing), "mm, the median of the cases"),
    ]
    if survey.of_slices:
        lines += _line("spatial_dims", 2, "each case is one slice: 2D networks")
    if len(plan.networks) == 1:
        ((name, params),) = plan.networks.items()
        lines += _line("model_name", name, _source(name))
        if params:
            lines += _line("model_params", params, "narrower than published, for CPU cores")
    lines += _speed_lines(plan, speeds, device)
    lines += _line(
        "patch_size",
        list(plan.patch.patch_size),
        "a whole case" if covers >= 1 else "as large as fits, in the shape of the cases",
    )
    lines += _line("train_batch_size", plan.patch.batch_size, _batch_reason(plan, device))
    if covers >= 1:
        lines += _line("window_overlap", 0.25, "most cases are one window")
    lines += _mirroring(survey)
    if plan.optimizer is not None:
        lines += _line("optimizer", plan.optimizer, "nnU-Net's SGD starts slowly for so few steps")
    lines += _line("scheduler", "wsd", "can be ended early, where a trial would be cut off else")
    if plan.optimizer == "adamw":
        lines += _line("warmup_epochs", max(1, round(WARMUP_SHARE * schedule.epochs)), "")
    if schedule.folds == 1:
        lines += _line(
            "val_fraction",
            survey.split["val_fraction"],
            f"{splits['val']} cases that trials are compared by, {splits['train']} for training",
        )
    lines += _line(
        "test_fraction",
        survey.split["test_fraction"],
        f"{splits['test']} cases that no trial sees, for the report of the winner"
        if splits["test"]
        else "with so few cases none is kept apart",
    )
    seconds = _mean(speeds, "step") * schedule.steps
    lines += _line(
        "steps_per_epoch",
        schedule.steps,
        f"{seconds:.2g} s, then a validation of {_mean(speeds, 'validation'):.2g} s",
    )
    lines += _line(
        "max_epochs",
        schedule.epochs,
        f"a full training: {schedule.epochs * schedule.steps} steps, about "
        f"{_duration(schedule.full_hours)}",
    )
    return lines


def _speed_lines(plan: Plan, speeds: Mapping[str, Speed], device: Device) -> Iterator[str]:
    """What each network takes, as comments."""
    for name, speed in speeds.items():
        how = "measured" if speed.measured else "estimated: as nnU-Net on an A100"
        memory = f", {speed.memory / 1e9:.1f} GB" if speed.memory else ""
        yield from _wrapped(
            f"{name}: {speed.step:.2g} s a step{memory}, {speed.validation:.2g} s a validation "
            f"({how})",
            indent="  ",
        )
    for name, needed in plan.left_out.items():
        yield from _wrapped(
            f"{name} is left out: a step takes about {needed / 1e9:.0f} GB with this patch",
            indent="  ",
        )


def _batch_reason(plan: Plan, device: Device) -> str:
    if device.kind == "cpu":
        return "on CPU cores small batches make more steps"
    if plan.patch.batch_size == 2:
        return "the fewest; memory went into the patch"
    return "as many as fit, and 5 % of the data's voxels at most"


def _space(survey: DataSurvey, plan: Plan) -> list[str]:
    names = list(plan.networks)
    optimizers = {name: plan.optimizer_of(name) for name in names}
    with_sgd = [name for name in names if optimizers[name] == "sgd"]
    lines = ["space:"]
    if len(names) > 1:
        lines += _line("model_name", {"choice": names}, "each trains by its own recipe")
        lines += _params_of_networks(plan)
    if not with_sgd:
        low, high = ADAPTIVE_RATES
    else:
        low, high = (1e-3, 5e-2) if len(with_sgd) == len(names) else (1e-4, 3e-2)
    rates = {
        name: f"{RECIPES[name].optimizers[optimizers[name]]['learning_rate']:g}" for name in names
    }
    usual = ", ".join(f"{name} {rate}" for name, rate in rates.items())
    lines += _line("learning_rate", {"loguniform": [low, high]}, f"matters most; usual: {usual}")
    if with_sgd:
        momentum: dict[str, Any] = {"uniform": [0.9, 0.995]}
        if len(with_sgd) < len(names):
            momentum["when"] = {"model_name": with_sgd}
        lines += _line("momentum", momentum, "of SGD")
    # that of AdamW is multiplied by the learning rate
    decays = {"loguniform": [1e-6, 1e-3] if with_sgd else [1e-5, 1e-1]}
    lines += _line("weight_decay", decays, "")
    rarest = min(survey.shares()[1:], default=1.0)
    top = 0.9 if rarest < RARE else 0.6
    lines += _line(
        "foreground_fraction",
        {"uniform": [0.2, top]},
        f"patches on a structure; the smallest class has {rarest:.2%} of the voxels",
    )
    if rarest < RARE:
        shares = survey.shares()
        weights = [3 if 0 < share < RARE else 1 for share in shares]
        lines += _line(
            "class_weights",
            {"choice": {"uniform": "uniform", "rare_x3": weights}},
            "whether rare classes count more",
        )
    lines += _line("augmentation_strength", {"uniform": [0.2, 1.5]}, "1 is nnU-Net's")
    return lines


def _params_of_networks(plan: Plan) -> Iterator[str]:
    """Arguments of networks that are one of several."""
    for key in dict.fromkeys(key for params in plan.networks.values() for key in params):
        having = {name: params[key] for name, params in plan.networks.items() if key in params}
        alike = all(value == next(iter(having.values())) for value in having.values())
        # a field has one domain, whose options have names of their own
        values = {"usual": next(iter(having.values()))} if alike else having
        domain = {"choice": values, "when": {"model_name": list(having)}}
        yield from _line(f"model_params.{key}", domain, "")


def _search(schedule: Schedule, hours: float) -> list[str]:
    rungs = ", ".join(map(str, schedule.rungs))
    return [
        "search:",
        *_line(
            "num_trials",
            schedule.trials,
            f"about {_duration(schedule.expected_hours)} in all, one of three training past a rung"
            if schedule.trials > 1
            else "the default config alone: trials could not be told apart in so short a time",
        ),
        *_fold_lines(schedule),
        *_line(
            "time_budget",
            f"{round(hours * 60)}m",
            "a limit: the study ends then in any case"
            if schedule.folds > 1 or schedule.trials == 1
            else f"the best trial has up to {FINALE_SHARE:.0%} of it to itself",
        ),
        "",
        "policy:",
        *_line("name", "asha", ""),
        *_line("grace_period", schedule.grace_period, f"trials are compared at epochs {rungs}"),
        *_line("reduction_factor", 3, "one of three goes on"),
    ]


def _label_values(survey: DataSurvey) -> Iterator[str]:
    values = survey.dataset.preprocessing.label_values
    if values is not None:
        yield from _line("label_values", list(values), "in the label files")


def _fold_lines(schedule: Schedule) -> Iterator[str]:
    if schedule.folds > 1:
        yield from _line("folds", schedule.folds, "with few cases one split would decide by chance")


def _source(name: str) -> str:
    return RECIPES[name].source


def _mirroring(survey: DataSurvey) -> Iterator[str]:
    """The axes that patches are mirrored along."""
    labels = survey.dataset.labels
    axes = mirror_axes(survey.base_config(), labels)
    sided = sided_labels(labels)
    reason = "no label names a side of the body"
    if LEFT_RIGHT not in axes:
        few = ", ".join(sided[:3]) + (", ..." if len(sided) > 3 else "")
        reason = f"not from left to right: labels name sides ({few})"
    yield from _line("mirror_axes", axes, reason)


def _line(key: str, value: Any, comment: str) -> Iterator[str]:
    """A value with its reason: beside it where there is room, else above."""
    flow = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    text = f"  {key}: {flow.removesuffix('...' + chr(10)).strip()}"
    if not comment:
        yield text
        return
    # names of the data may have anything in them
    beside = f"{text:<{COMMENT}}# {' '.join(comment.split())}"
    if len(text) < COMMENT and len(beside) <= WIDTH:
        yield beside
        return
    yield from _wrapped(comment, indent="  ")
    yield text


def _wrapped(*paragraphs: str, indent: str = "") -> Iterator[str]:
    """Paragraphs as lines of comments."""
    for paragraph in paragraphs:
        for line in textwrap.wrap(paragraph, WIDTH - len(indent) - 2, break_long_words=False):
            yield f"{indent}# {line}"


def _mean(speeds: Mapping[str, Speed], what: str) -> float:
    """The mean over networks of a figure of their speed."""
    return fmean(getattr(speed, what) for speed in speeds.values())


def _duration(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{max(1, round(hours * 60))} min"
