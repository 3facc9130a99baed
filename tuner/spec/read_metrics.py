"""Reads the metrics of a search space, and their modes."""

from __future__ import annotations

import re
from typing import Any

from training.config import Mode, ModelTrainingConfig
from training.registry import is_plugin
from tuner.errors import suggestion
from tuner.spec.parser import SpecParser
from tuner.spec.yaml_source import YamlPath

METRICS = ("val_dice", "val_nsd", "val_iou", "val_boundary_f1", "val_accuracy", "val_loss")
"""Metrics that trials can be compared by; `val_dice_K` and `val_nsd_K` are those of the label K."""

OF_A_CLASS = r"val_(dice|nsd)_[1-9]\d*"
"""Pattern of the metrics of one class."""

OF_A_REGION = r"val_(dice|nsd)_\w+"
"""Pattern of the metrics of one region, by its name."""

COSTS = ("val_seconds_per_case", "parameters", "peak_memory")
"""Metrics that may stand after the first one: smaller is better of each."""

DEFAULT_METRIC = "val_dice"


def read_metrics(parser: SpecParser) -> list[tuple[str, Mode]]:
    """The metrics and their modes, the one that trials are compared by first."""
    given = parser.data.get("metric", DEFAULT_METRIC)
    names = given if isinstance(given, list) else [given]
    found = [_metric(parser, name, index) for index, name in enumerate(names)]
    modes = parser.data.get("mode")
    expected = [mode for _, mode in found]
    if "mode" in parser.data and modes not in (expected, *(expected if len(found) == 1 else ())):
        wanted = expected[0] if len(found) == 1 else f"[{', '.join(expected)}]"
        shown = ", ".join(str(name) for name in names)
        parser.problem(
            ("mode",),
            f"mode={modes!r} does not fit metric {shown}: write {wanted}, or leave out",
        )
    if not found:
        parser.problem(("metric",), "metric is empty: name one, or leave it out for val_dice")
    return found or [(DEFAULT_METRIC, "max")]


def _metric(parser: SpecParser, name: Any, index: int) -> tuple[str, Mode]:
    """One of the metrics; notes what is wrong with it."""
    path: YamlPath = (
        ("metric", index) if isinstance(parser.data.get("metric"), list) else ("metric",)
    )
    if isinstance(name, str) and name in COSTS:
        if index == 0:
            parser.problem(
                path,
                f"{name} cannot be the first metric: trials are compared by it, and the "
                "cheapest network is seldom the best; put e.g. val_dice before it",
            )
        return name, "min"
    if isinstance(name, str) and (name in METRICS or re.fullmatch(OF_A_CLASS, name)):
        return name, "min" if name == "val_loss" else "max"
    if _is_own(parser, name):
        return name, _own_mode(parser, path, name, index)
    if isinstance(name, str) and re.fullmatch(OF_A_REGION, name):
        return name, "max"
    known = [*METRICS, "val_dice_1", *COSTS]
    parser.problem(path, f"unknown metric {name!r}{suggestion(name, known)}")
    return DEFAULT_METRIC, "max"


def is_measured(name: str, config: ModelTrainingConfig) -> bool:
    """Whether a metric can be measured on any predicted case, not only logged by a module."""
    of_a_region = config.lightning_module is None and re.fullmatch(OF_A_REGION, name)
    ours = name in METRICS or re.fullmatch(OF_A_CLASS, name) or of_a_region
    return is_plugin(name) or bool(ours)


def _is_own(parser: SpecParser, name: Any) -> bool:
    """Whether a metric is the user's own: by import path, or logged by their own module."""
    config = parser.data.get("config")
    has_module = isinstance(config, dict) and config.get("lightning_module") is not None
    return is_plugin(name) or (has_module and str(name).startswith("val_"))


def _own_mode(parser: SpecParser, path: YamlPath, name: str, index: int) -> Mode:
    """The mode of a metric of the user's own, which must be given."""
    modes = parser.data.get("mode")
    given = modes[index : index + 1] if isinstance(modes, list) else [modes]
    if given == ["min"]:
        return "min"
    if given != ["max"]:
        parser.problem(
            path,
            f"mode is needed, since {name} is a metric of your own: write mode: max "
            "or mode: min (of several metrics a list, one entry each)",
        )
    return "max"
