"""Networks that need certain sizes, made to take volumes of other sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from training.models.slices import SliceNetwork

Size = tuple[int, int, int]


class PaddedNetwork(nn.Module):
    """Pads volumes to a size that a network can halve, and crops its logits.

    The last voxels are repeated at the far ends. The coarsest grid keeps at least two
    voxels, because an instance norm has no statistics over one.

    Args:
        network: logits of a volume's size from volumes whose size the divisor divides; in
            training it may give several, of decreasing resolution.
        divisor: voxels of the coarsest grid's voxel (depth, height, width).
    """

    def __init__(self, network: nn.Module, divisor: Size) -> None:
        super().__init__()
        self.network = network
        self.divisor = divisor

    def forward(
        self, image: Float[Tensor, "batch channels depth height width"]
    ) -> Tensor | list[Tensor]:
        """Logits of every voxel, at the image's size.

        In training with deep supervision a list of logits at full, half, quarter, ... size,
        each size rounded up.
        """
        depth, height, width = image.shape[2:]
        missing = [-size % d for size, d in zip(image.shape[2:], self.divisor, strict=True)]
        coarsest = (depth + missing[0], height + missing[1], width + missing[2])
        # slices are normalised one by one
        first = 1 if isinstance(self.network, SliceNetwork) else 0
        if coarsest[first:] == self.divisor[first:]:
            missing[2] += self.divisor[2]
        padded = pad_far_ends(image, missing)
        logits: Tensor | Sequence[Tensor] = self.network(padded)
        if isinstance(logits, Tensor):
            return logits[:, :, :depth, :height, :width]
        return [_crop(scale, image.shape[2:], padded.shape[2:]) for scale in logits]


class FixedSizeNetwork(nn.Module):
    """A network that was built for volumes of one size; smaller ones are padded to it.

    Args:
        network: logits of a volume's size from volumes of `size`.
        size: depth, height and width of the volumes.
    """

    def __init__(self, network: nn.Module, size: Size) -> None:
        super().__init__()
        self.network = network
        self.size = size

    def forward(
        self, image: Float[Tensor, "batch channels depth height width"]
    ) -> Float[Tensor, "batch classes depth height width"]:
        """Logits of every voxel, at the image's size.

        Raises:
            ValueError: for a volume larger than the network's size.
        """
        depth, height, width = image.shape[2:]
        missing = [size - have for size, have in zip(self.size, image.shape[2:], strict=True)]
        if min(missing) < 0:
            raise ValueError(
                f"the network was built for volumes of {list(self.size)} voxels, but got one of "
                f"{[depth, height, width]}: predict it by a sliding window of that patch_size"
            )
        logits: Tensor = self.network(pad_far_ends(image, missing))
        return logits[:, :, :depth, :height, :width]


def pad_far_ends(image: Tensor, missing: Sequence[int]) -> Tensor:
    """Repeat the last voxels `missing` times along depth, height and width."""
    if not any(missing):
        return image
    return F.pad(image, (0, missing[2], 0, missing[1], 0, missing[0]), mode="replicate")


def _crop(scale: Tensor, size: Sequence[int], padded: Sequence[int]) -> Tensor:
    """The part of coarser logits that covers the image, each size rounded up."""
    depth, height, width = (
        -(-have * coarse // whole)
        for have, coarse, whole in zip(size, scale.shape[2:], padded, strict=True)
    )
    return scale[:, :, :depth, :height, :width]
