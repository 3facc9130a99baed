"""Metrics of the user's own, named by their import path, measured on each case.

A metric is a function of one case. Of these arguments it takes those that it names:

| Argument | Value |
|---|---|
| prediction | predicted label map, `(d, h, w)` integers; with a target label 0 and 1 |
| target | true label map, alike |
| spacing | size of a voxel in mm along each axis, None where it is not known |
| num_classes | classes, background included; 2 with a target label |

Voxels that are left out (`training.ignored_voxels`) are background in both label maps.

It returns a number, or nan where it is not defined for the case. As with the metrics of this
package, such a case is left out of the mean over cases, and the mean is nan if no case is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from training.errors import PluginError
from training.ignored_voxels import IGNORE_INDEX
from training.registry import METRICS, call, is_plugin

if TYPE_CHECKING:
    from training.config import ModelTrainingConfig

__all__ = ["measure", "own_metrics"]


def measure(
    name: str,
    prediction: Int[Tensor, "*spatial"],
    target: Int[Tensor, "*spatial"],
    *,
    spacing: Sequence[float] | None,
    num_classes: int,
) -> float:
    """A metric of one case.

    Args:
        name: Its import path.
        prediction: Predicted label map.
        target: True label map, with `IGNORE_INDEX` where a voxel is left out.
        spacing: Size of a voxel in mm along each axis, None where it is not known.
        num_classes: Classes, background included.

    Raises:
        PluginError: if the import path is not a function, or the function does not return a number.
    """
    ignored = target == IGNORE_INDEX
    if bool(ignored.any()):
        prediction, target = (torch.where(ignored, 0, labels) for labels in (prediction, target))
    value = call(
        METRICS.resolve(name),
        f"metric {name}",
        prediction=prediction.cpu(),
        target=target.cpu(),
        spacing=None if spacing is None else tuple(spacing),
        num_classes=num_classes,
    )
    try:
        return float(torch.as_tensor(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise PluginError(
            f"metric {name} returned {value!r} for a case: it must be one number, or nan where it "
            "is not defined"
        ) from error


def own_metrics(config: ModelTrainingConfig) -> list[str]:
    """Import paths of the metrics of the user's own that a config asks for."""
    monitored = [config.monitor] if is_plugin(config.monitor) else []
    return list(dict.fromkeys([*monitored, *config.own_metrics]))
