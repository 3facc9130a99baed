"""Checks of `model_params`, the keyword arguments that a user gives to a network."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import nn

SHAPE_ARGUMENTS = ("spatial_dims", "in_channels", "out_channels")
"""Arguments of MONAI's networks that other fields of the config decide."""


def check_model_params(
    network: str,
    constructor: Callable[..., nn.Module],
    model_params: Mapping[str, Any],
    fixed: Collection[str],
) -> None:
    """Refuse arguments that the constructor does not take or that other fields decide.

    Args:
        network: name of the network, for the message.
        constructor: class of the network.
        model_params: arguments as given.
        fixed: arguments of the constructor that its builder sets.

    Raises:
        ValueError: names each unknown argument and the nearest valid ones.
    """
    valid = [name for name in inspect.signature(constructor).parameters if name not in fixed]
    for name in model_params:
        problem = model_params_problem(network, name, valid)
        if problem is not None:
            raise ValueError(problem)


def model_params_problem(network: str, name: str, valid: Collection[str]) -> str | None:
    """The error of the name of a network parameter; None if it is valid."""
    if name in valid:
        return None
    near = difflib.get_close_matches(name, valid)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    takes = f"It takes {', '.join(sorted(valid))}" if valid else "It takes none"
    return f"model_params.{name} is not a parameter of {network}: {hint}{takes}"


def stride_product(strides: Sequence[int | Sequence[int]], dims: int = 3) -> tuple[int, int, int]:
    """Voxels per axis of the coarsest grid's voxel, of strides that are cubes or one an axis.

    With `dims` of 2 they are strides within slices.
    """
    depth = height = width = 1
    for stride in strides:
        along = (stride,) * dims if isinstance(stride, int) else tuple(stride)
        if dims == 2:
            along = (1, *along)
        depth, height, width = depth * along[0], height * along[1], width * along[2]
    return depth, height, width
