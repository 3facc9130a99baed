"""Prediction of whole cases: a sliding window over the volume, blended by a gaussian."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations, groupby, islice

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Predictor = Callable[[Tensor], Tensor]

Box = tuple[slice, ...]
"""Where a window is in a case, on each spatial axis."""


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
    """Logits of whole cases, predicted window by window, see `logit_slabs`.

    Args:
        network: Maps windows `(n, c, *patch)` to logits `(n, k, *patch)`.
        image: Preprocessed cases of one size.
        patch_size: Size of a window in voxels; of a 2D image its last two entries count.
        overlap: Overlap of neighbouring windows as a share of the window, in [0, 1).
        windows_per_batch: Windows predicted at once.
        window_device: Device of the network, where it is not that of `image`; the logits are
            blended where `image` is.
        mirror_axes: Axes that windows are mirrored along as well, see `mirrored`.

    Returns:
        Logits of the cases, at the resolution of `image`.
    """
    cases = [
        whole_case(
            logit_slabs(
                network,
                case,
                patch_size=patch_size,
                overlap=overlap,
                windows_per_batch=windows_per_batch,
                window_device=window_device,
                mirror_axes=mirror_axes,
            ),
            case.shape[1],
        )
        for case in image
    ]
    return cases[0][None] if len(cases) == 1 else torch.stack(cases)


def whole_case(
    slabs: Iterable[Float[Tensor, "k slab *plane"]], planes: int
) -> Float[Tensor, "k planes *plane"]:
    """Slabs that follow each other, put together; `planes` is their number of planes."""
    whole: Tensor | None = None
    first = 0
    for slab in slabs:
        if whole is None:
            whole = slab.new_empty(len(slab), planes, *slab.shape[2:])
        whole[:, first : first + slab.shape[1]] = slab
        first += slab.shape[1]
    assert whole is not None
    return whole


def logit_slabs(
    network: Predictor,
    image: Float[Tensor, "c *spatial"],
    *,
    patch_size: Sequence[int],
    overlap: float = 0.5,
    windows_per_batch: int = 1,
    window_device: torch.device | None = None,
    mirror_axes: Sequence[int] = (),
) -> Iterator[Float[Tensor, "k slab *plane"]]:
    """Logits of a case, slab by slab along its first axis; together they are the whole case.

    Windows overlap and are blended with a gaussian importance map, as in nnU-Net
    (Isensee et al., 2021): the same windows and map as in MONAI's `sliding_window_inference`.
    MONAI holds the logits of all of the case, which for a CT of the whole body with many classes
    are more than most computers can. Here planes are given away when no more windows reach them,
    so no more than the depth of a window is held. A case smaller than the window is padded
    and cropped back.

    Arguments are those of `predict_case`, for one case.

    Yields:
        Logits of the next planes, on the device of `image`; the next ones take over their memory.

    Raises:
        ValueError: for a case of other than 2 or 3 spatial axes.
    """
    # MONAI takes seconds to import, which a user of the losses or metrics never needs.
    from monai.data.utils import compute_importance_map, dense_patch_slices

    spatial_dims = image.ndim - 1
    if spatial_dims not in (2, 3):
        raise ValueError(f"a case has 2 or 3 spatial axes, but its shape is {tuple(image.shape)}")
    window = tuple(patch_size)[-spatial_dims:]
    padded, inside = _padded(image, window)
    size = tuple(padded.shape[1:])
    steps = [
        patch if patch == whole else max(int(patch * (1 - overlap)), 1)
        for patch, whole in zip(window, size, strict=True)
    ]
    device = window_device or image.device
    importance = compute_importance_map(window, mode="gaussian", dtype=image.dtype).to(device)
    predict = mirrored(network, mirror_axes)
    blending: _Blending | None = None
    for first, row in groupby(dense_patch_slices(size, window, steps), lambda box: box[0].start):
        if blending is not None:
            yield blending.finished(first)[inside]
            blending.move(first)
        for boxes in _batched(row, windows_per_batch):
            windows = torch.stack([padded[(slice(None), *box)] for box in boxes]).to(device)
            # a network under autocast gives half of the precision
            logits = predict(windows).to(image.dtype)
            if blending is None:
                blending = _Blending(padded.new_zeros(logits.shape[1], window[0], *size[1:]))
            for box, window_logits in zip(boxes, logits * importance, strict=True):
                blending.add(box, window_logits, importance)
    assert blending is not None
    yield blending.finished(size[0])[inside]


class _Blending:
    """The planes of a case that windows are still added to, from the plane `first` on."""

    def __init__(self, total: Float[Tensor, "k depth *plane"]) -> None:
        self.first = 0
        self.total = total
        self.weight = torch.zeros_like(total[0])

    def add(
        self,
        box: Box,
        logits: Float[Tensor, "k *patch"],
        importance: Float[Tensor, "*patch"],
    ) -> None:
        """Add a window's logits, which its importance has been multiplied with."""
        planes = slice(box[0].start - self.first, box[0].stop - self.first)
        self.total[(slice(None), planes, *box[1:])] += logits.to(self.total.device)
        self.weight[(planes, *box[1:])] += importance.to(self.total.device)

    def finished(self, first: int) -> Float[Tensor, "k slab *plane"]:
        """The planes before the plane `first`, which no more windows reach."""
        done = first - self.first
        return self.total[:, :done].div_(self.weight[:done])

    def move(self, first: int) -> None:
        """Let go of the planes before the plane `first`; what is kept moves to their place."""
        done, depth = first - self.first, len(self.weight)
        # in steps that do not overlap, so that there is never a second copy of all
        for start in range(0, depth - done, done):
            moved = slice(start, min(start + done, depth - done))
            source = slice(moved.start + done, moved.stop + done)
            self.total[:, moved] = self.total[:, source]
            self.weight[moved] = self.weight[source]
        self.total[:, depth - done :] = 0
        self.weight[depth - done :] = 0
        self.first = first


def _padded(
    image: Float[Tensor, "c *spatial"], window: Sequence[int]
) -> tuple[Float[Tensor, "c *padded"], tuple[slice, ...]]:
    """The case, at least as large as a window, and where in its slabs the case itself is."""
    lacking = [max(need - size, 0) for need, size in zip(window, image.shape[1:], strict=True)]
    before = [lack // 2 for lack in lacking]
    # along the first axis a padded case is one slab
    inside = (
        slice(None),
        *(
            slice(first, first + size) if lack else slice(None)
            for first, lack, size in zip(before, lacking, image.shape[1:], strict=True)
        ),
    )
    if not any(lacking):
        return image, inside
    sides = [(first, lack - first) for first, lack in zip(before, lacking, strict=True)]
    # torch wants the last axis first
    return F.pad(image, [side for pair in reversed(sides) for side in pair]), inside


def _batched(boxes: Iterable[Box], size: int) -> Iterator[list[Box]]:
    boxes = iter(boxes)
    while batch := list(islice(boxes, size)):
        yield batch


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
