"""2D networks for volumes: each slice by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from training.config import ModelTrainingConfig


class SliceNetwork(nn.Module):
    """Predicts each slice of a volume by itself, as one image of a larger batch.

    Args:
        network: Logits (slices, classes, height, width) of images (slices, channels, height,
            width); in training it may give several, of decreasing resolution. With
            `keep_depth` it takes and gives volumes of one slice instead.
        keep_depth: Whether the network is one for volumes, whose kernels are flat.
    """

    def __init__(self, network: nn.Module, *, keep_depth: bool = False) -> None:
        super().__init__()
        self.network = network
        self.keep_depth = keep_depth

    def forward(
        self, image: Float[Tensor, "batch channels depth height width"]
    ) -> Tensor | list[Tensor]:
        """Logits of every voxel; in training those of all resolutions, with all slices."""
        batch, _, depth = image.shape[:3]
        slices = image.transpose(1, 2).flatten(0, 1)
        logits: Tensor | Sequence[Tensor] = self.network(
            slices[:, :, None] if self.keep_depth else slices
        )
        if isinstance(logits, Tensor):
            return self._stacked(logits, batch, depth)
        return [self._stacked(scale, batch, depth) for scale in logits]

    def _stacked(self, logits: Tensor, batch: int, depth: int) -> Tensor:
        if self.keep_depth:
            logits = logits[:, :, 0]
        return torch.unflatten(logits, 0, (batch, depth)).transpose(1, 2)


def sliced(
    config: ModelTrainingConfig, network: nn.Module, *, keep_depth: bool = False
) -> nn.Module:
    """The network as one for volumes, whatever `config.spatial_dims` is."""
    if config.spatial_dims == 3:
        return network
    return SliceNetwork(network, keep_depth=keep_depth)


def cube(config: ModelTrainingConfig, edge: int) -> tuple[int, int, int]:
    """Voxels of a cube, or of a square in one slice."""
    return (edge if config.spatial_dims == 3 else 1), edge, edge
