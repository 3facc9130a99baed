"""Class probabilities of one preprocessed case, also where there is too little memory for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from jaxtyping import Float
from pytorch_lightning.utilities.memory import is_cuda_out_of_memory
from torch import Tensor

from training.inference import whole_case

if TYPE_CHECKING:
    from training.lightning_module import SegmentationLightningModule

CPU = torch.device("cpu")

PLANES = 16
"""Planes whose probabilities are made at once."""

Predicted = TypeVar("Predicted")

Tell = Callable[[str], None]
"""A callback that takes a line of text for the user."""


def case_probabilities(
    module: SegmentationLightningModule,
    image: Float[Tensor, "c d h w"],
    *,
    blend_device: torch.device | None = None,
    mirror_axes: Sequence[int] = (),
) -> Float[Tensor, "k d h w"]:
    """Probabilities of one preprocessed case: of classes, two with a target label, or regions.

    Args:
        module: The network, on its device, in evaluation mode.
        image: The case.
        blend_device: Device that holds image and probabilities, where that is not the network's:
            the network's then has a few windows at a time.
        mirror_axes: Axes that windows are mirrored along as well (0 depth, 1 height, 2 width).
    """
    slabs = probability_slabs(module, image, blend_device=blend_device, mirror_axes=mirror_axes)
    return whole_case(slabs, image.shape[1])


# a generator that entered the mode by itself would leave it on for whoever reads from it
@torch.inference_mode()
def probability_slabs(
    module: SegmentationLightningModule,
    image: Float[Tensor, "c d h w"],
    *,
    blend_device: torch.device | None = None,
    mirror_axes: Sequence[int] = (),
) -> Iterator[Float[Tensor, "k slab h w"]]:
    """What `case_probabilities` gives, slab by slab along the depth, with as little memory.

    Arguments are those of `case_probabilities`.
    """
    slabs = module.logit_slabs(image.to(blend_device or module.device), mirror_axes=mirror_axes)
    for slab in slabs:
        for first in range(0, slab.shape[1], PLANES):
            yield module.probabilities(slab[None, :, first : first + PLANES].float())[0]


def probabilities_within_memory(
    module: SegmentationLightningModule,
    image: Float[Tensor, "c d h w"],
    tell: Tell,
    *,
    mirror_axes: Sequence[int] = (),
) -> Float[Tensor, "k d h w"]:
    """Class probabilities of one preprocessed case, see `within_memory`."""

    def predict(blend_device: torch.device | None) -> Tensor:
        return case_probabilities(module, image, blend_device=blend_device, mirror_axes=mirror_axes)

    return within_memory([module], predict, tell)


def within_memory(
    modules: Sequence[SegmentationLightningModule],
    predict: Callable[[torch.device | None], Predicted],
    tell: Tell,
) -> Predicted:
    """Predict one case with as little GPU memory as it takes.

    Out of GPU memory, the windows are blended on the CPU, where a whole case has more room; out
    of it again, the networks predict on the CPU, and go back to their devices afterwards.

    Args:
        modules: The networks, on their devices, in evaluation mode.
        predict: Predicts the case; given the device to blend windows on, None for the networks'.
        tell: Called with a line when it falls back to the CPU.

    Raises:
        MemoryError: if the CPU has too little memory as well (or a RuntimeError of torch's).
    """
    ways: tuple[tuple[str, Callable[[], Predicted]], ...] = (
        ("", lambda: predict(None)),
        ("out of GPU memory: blends its windows on the CPU", lambda: predict(CPU)),
        (
            "out of GPU memory again: predicts on the CPU alone, which is slow",
            lambda: _on_the_cpu(modules, predict),
        ),
    )
    for line, way in ways:
        if line:
            # the memory of the attempt before is free only now that its error is gone
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            tell(line)
        found = _try_in_memory(way)
        if found is not None:
            return found
    raise MemoryError("out of GPU memory in every way")


def _try_in_memory(way: Callable[[], Predicted]) -> Predicted | None:
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
    )


def _on_the_cpu(
    modules: Sequence[SegmentationLightningModule],
    predict: Callable[[torch.device | None], Predicted],
) -> Predicted:
    devices = [module.device for module in modules]
    for module in modules:
        module.to(CPU)
    try:
        return predict(None)
    finally:
        for module, device in zip(modules, devices, strict=True):
            module.to(device)
