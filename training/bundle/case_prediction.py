"""Class probabilities of one preprocessed case, also where the GPU has too little memory for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from pytorch_lightning.utilities.memory import is_cuda_out_of_memory
from torch import Tensor

if TYPE_CHECKING:
    from training.lightning_module import SegmentationLightningModule

CPU = torch.device("cpu")

Tell = Callable[[str], None]
"""A callback that takes a line of text for the user."""


def case_probabilities(
    module: SegmentationLightningModule,
    image: Float[Tensor, "c d h w"],
    *,
    blend_device: torch.device | None = None,
    mirror_axes: Sequence[int] = (),
) -> Float[Tensor, "k d h w"]:
    """Class probabilities of one preprocessed case; two classes with a target label.

    Args:
        module: The network, on its device, in evaluation mode.
        image: The case.
        blend_device: Device that holds image and probabilities, where that is not the network's:
            the network's then has a few windows at a time.
        mirror_axes: Axes that windows are mirrored along as well (0 depth, 1 height, 2 width).
    """
    with torch.inference_mode():
        logits = module.predict_logits(
            image[None].to(blend_device or module.device), mirror_axes=mirror_axes
        )
    return torch.softmax(logits.float(), dim=1)[0]


def probabilities_within_memory(
    module: SegmentationLightningModule,
    image: Float[Tensor, "c d h w"],
    tell: Tell,
    whole: Callable[[], Tensor] | None = None,
    mirror_axes: Sequence[int] = (),
) -> Float[Tensor, "k d h w"]:
    """Class probabilities of one preprocessed case, with as little GPU memory as it takes.

    Out of GPU memory, the windows are blended on the CPU, where a whole case has more room; out
    of it again, the network predicts on the CPU, and goes back to its device afterwards.

    Args:
        module: The network, on its device, in evaluation mode.
        image: The case.
        tell: Called with a line when it falls back to the CPU.
        whole: The first way; `case_probabilities` on the network's device by default.
        mirror_axes: Axes that windows are mirrored along as well (0 depth, 1 height, 2 width).

    Raises:
        MemoryError: if the CPU has too little memory as well (or a RuntimeError of torch's).
    """
    first = whole or (lambda: case_probabilities(module, image, mirror_axes=mirror_axes))
    ways: tuple[tuple[str, Callable[[], Tensor]], ...] = (
        (
            "out of GPU memory: blends its windows on the CPU",
            lambda: case_probabilities(module, image, blend_device=CPU, mirror_axes=mirror_axes),
        ),
        (
            "out of GPU memory again: predicts on the CPU alone, which is slow",
            lambda: _on_the_cpu(module, image, mirror_axes),
        ),
    )
    found = _try_in_memory(first)
    for line, way in ways:
        if found is not None:
            return found
        # the memory of the attempt before is free only now that its error is gone
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        tell(line)
        found = _try_in_memory(way)
    if found is None:
        raise MemoryError("out of GPU memory in every way")
    return found


def _try_in_memory(way: Callable[[], Tensor]) -> Tensor | None:
    try:
        return way()
    except RuntimeError as error:
        if not _out_of_gpu_memory(error):
            raise
    return None


def _out_of_gpu_memory(error: BaseException | None) -> bool:
    return error is not None and (
        isinstance(error, torch.OutOfMemoryError)
        or is_cuda_out_of_memory(error)
        # how cuBLAS, cuDNN and the like report it
        or "ALLOC_FAILED" in str(error)
        # MONAI raises an error of its own where the map of weights did not fit
        or _out_of_gpu_memory(error.__cause__)
    )


def _on_the_cpu(
    module: SegmentationLightningModule, image: Tensor, mirror_axes: Sequence[int]
) -> Tensor:
    device = module.device
    module.to(CPU)
    try:
        return case_probabilities(module, image, mirror_axes=mirror_axes)
    finally:
        module.to(device)
