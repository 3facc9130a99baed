"""Prediction of whole cases: a sliding window over the volume, blended by a gaussian."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

Predictor = Callable[[Tensor], Tensor]


def predict_case(
    network: Predictor,
    image: Float[Tensor, "b c *spatial"],
    *,
    patch_size: Sequence[int],
    overlap: float = 0.5,
    windows_per_batch: int = 1,
    window_device: torch.device | None = None,
    mirror_axes: Sequence[int] = (),
) -> Float[Tensor, "b k *spatial"]:
    """Logits of a whole case, predicted window by window.

    Windows overlap and are blended with a gaussian importance map, as in nnU-Net
    (Isensee et al., 2021), by MONAI's `sliding_window_inference`. A case smaller than the
    window is padded and cropped back.

    Args:
        network: Maps windows `(n, c, *patch)` to logits `(n, k, *patch)`.
        image: The preprocessed case.
        patch_size: Size of a window in voxels; of a 2D image its last two entries count.
        overlap: Overlap of neighbouring windows as a share of the window, in [0, 1).
        windows_per_batch: Windows predicted at once.
        window_device: Device of the network, where it is not that of `image`; the logits are
            blended where `image` is.
        mirror_axes: Axes that windows are mirrored along as well, see `mirrored`.

    Returns:
        Logits of the case, at the resolution of `image`.

    Raises:
        ValueError: for an axis that the image does not have.
    """
    # MONAI takes seconds to import, which a user of the losses or metrics never needs.
    from monai.inferers import sliding_window_inference

    spatial_dims = image.ndim - 2
    logits: Tensor = sliding_window_inference(
        image,
        roi_size=tuple(patch_size)[-spatial_dims:],
        sw_batch_size=windows_per_batch,
        predictor=mirrored(network, mirror_axes),
        overlap=overlap,
        mode="gaussian",
        sw_device=window_device,
    )
    return torch.as_tensor(logits)


def mirrored(network: Predictor, axes: Sequence[int]) -> Predictor:
    """A network whose logits are the mean over mirrored inputs, as nnU-Net predicts.

    Each combination of the axes is mirrored, and the logits are mirrored back: two axes make four
    predictions, three make eight. Logits are averaged, not probabilities, and before windows are
    blended; both are as in nnU-Net (Isensee et al., 2021). A network that was not trained with an
    axis mirrored must not be asked for it: its predictions are worthless there.

    Args:
        network: Maps windows `(n, c, *patch)` to logits `(n, k, *patch)`.
        axes: 0 depth, 1 height, 2 width; none gives the network itself.
    """
    if not axes:
        return network
    chosen = [
        mirrored_axes
        for count in range(1, len(axes) + 1)
        for mirrored_axes in combinations(sorted(set(axes)), count)
    ]

    def mean(windows: Tensor) -> Tensor:
        total = network(windows)
        for mirrored_axes in chosen:
            # counted from the last, a 2D image has height and width
            dims = [axis - 3 for axis in mirrored_axes]
            total = total + torch.flip(network(torch.flip(windows, dims)), dims)
        return total / (len(chosen) + 1)

    return mean
