"""Thumbnails of cases: planes in a window of intensities, with the contours of the label map."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from training.data.statistics.measures import CaseMeasures
from training.data.statistics.planes import Plane

Window = tuple[float, float]
"""Intensities that are shown black and white."""

COLOURS = (
    "#e6194b",
    "#3cb44b",
    "#4363d8",
    "#f58231",
    "#911eb4",
    "#42d4f4",
    "#f032e6",
    "#bfef45",
    "#fabed4",
    "#469990",
    "#dcbeff",
    "#9a6324",
    "#ffe119",
    "#800000",
    "#aaffc3",
    "#808000",
)
"""Colours of the classes, the foreground's first; the next classes have the first colours again."""

GREYS = 128
"""Greys of a thumbnail."""

_PALETTE = [grey * 255 // (GREYS - 1) for grey in range(GREYS) for _ in range(3)]
_PALETTE += [part for colour in COLOURS for part in bytes.fromhex(colour.lstrip("#"))]

SIDE = 220
"""Pixels of the longer side of a thumbnail."""


def class_colour(value: int) -> str:
    """The colour of a class, from 1."""
    return COLOURS[(value - 1) % len(COLOURS)]


def shared_window(cases: Sequence[CaseMeasures], channel: int) -> Window | None:
    """The window of a CT: around the labelled intensities of all cases; None without any.

    A half of their range is added on either side, so that what lies around a structure is seen.
    """
    known = [
        case.channels[channel].foreground
        for case in cases
        if case.channels and case.channels[channel].foreground is not None
    ]
    if not known:
        return None
    low = float(np.median([each[0] for each in known if each]))
    high = float(np.median([each[-1] for each in known if each]))
    margin = max((high - low) / 2, 50.0)
    return low - margin, high + margin


def own_window(case: CaseMeasures, channel: int) -> Window:
    """The window of one image: from its lowest to its highest intensity, but for outliers."""
    percentiles = case.channels[channel].percentiles
    return percentiles[0], percentiles[-1]


def thumbnail(plane: Plane, channel: int, window: Window) -> str:
    """A plane as the address of an embedded PNG, `data:image/png;base64,...`.

    Args:
        plane: The plane.
        channel: Which of its channels.
        window: Intensities that are black and white.
    """
    low, high = window
    grey = (plane.images[channel] - low) / max(high - low, 1e-6)
    rows, columns = (
        size * step for size, step in zip(plane.labels.shape, plane.spacing, strict=True)
    )
    scale = SIDE / max(rows, columns)
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    picture = Image.fromarray((np.clip(grey, 0, 1) * 255).astype(np.uint8)).resize(
        size, Image.Resampling.BILINEAR
    )
    labels = _resized(plane.labels, size)
    contour = _contours(labels)
    indices = np.asarray(picture) // np.uint8(256 // GREYS)
    indices[contour] = GREYS + (labels[contour] - 1) % len(COLOURS)
    content = io.BytesIO()
    # a palette has the contours' colours exactly, and a third of the bytes
    shown = Image.fromarray(indices, mode="P")
    shown.putpalette(_PALETTE)
    shown.save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _resized(labels: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Labels of the nearest pixels on a grid of `(columns, rows)`."""
    columns, rows = size
    at_row = ((np.arange(rows) + 0.5) * labels.shape[0] / rows).astype(int)
    at_column = ((np.arange(columns) + 0.5) * labels.shape[1] / columns).astype(int)
    return np.asarray(labels[np.ix_(at_row, at_column)])


def _contours(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Labelled pixels beside a pixel of another class."""
    highest = ndimage.maximum_filter(labels, footprint=_CROSS, mode="nearest")
    lowest = ndimage.minimum_filter(labels, footprint=_CROSS, mode="nearest")
    return np.asarray((labels > 0) & (highest != lowest))


_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=bool)
