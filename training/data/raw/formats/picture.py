"""Pictures, by Pillow: PNG, TIFF, JPEG, BMP, 8 and 16 bit.

A picture is a volume of one slice: columns are axis i, rows axis j. Pixels are taken to be 1 mm,
whatever resolution a file gives (as scanners of paper write it), and to lie as ITK places them:
columns grow to the left of the patient, rows to the back. RGB is three channels. An index into a
palette is the value of a label map, and a colour of an image.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from PIL import Image

from training.data.raw.formats.geometry import Place
from training.data.raw.formats.opened_file import OpenedFile
from training.durable_write import write_durably
from training.errors import DatasetError

PLACE = Place((1.0, 1.0), (0.0, 0.0), np.eye(2))

CHANNELS = {"1": 1, "L": 1, "I": 1, "F": 1, "RGB": 3, "RGBA": 3, "LA": 1, "P": 3, "PA": 3}
"""Channels of an image by Pillow's mode; all 16-bit greys begin with `I;16`."""

ALPHA = {"RGBA", "LA", "PA"}

ORIENTATION = 0x0112
"""EXIF's tag for how a camera was held."""


def open_file(path: Path, *, as_label: bool = False) -> OpenedFile:
    """Open a picture without reading its pixels.

    Args:
        path: The file.
        as_label: Whether it is a label map: an index into a palette is then the value.

    Raises:
        DatasetError: if its pixels are no intensities or labels, or a label map is JPEG.
        OSError: if it cannot be read.
    """
    with Image.open(path) as picture:
        mode, size = picture.mode, picture.size
        if as_label and picture.format == "JPEG":
            raise DatasetError(
                "a label map cannot be JPEG, whose compression changes values: save it as PNG"
            )
        frames = getattr(picture, "n_frames", 1)
        if frames > 1:
            raise DatasetError(
                f"it has {frames} pages, but a picture is one slice: save the volume as NIfTI or "
                "NRRD, which also hold its spacing, or each page as a file"
            )
        # Pillow reads colours of 16 bits as 8
        deep = mode in {"RGB", "RGBA", "LA"} and ";16" in str([tile[3] for tile in picture.tile])
        channels = _channels(picture, as_label)
        doubts = _doubts(path, picture)
    grid = (size[0], size[1], 1)
    shape = (*grid, channels) if channels > 1 else grid

    def read() -> NDArray[Any]:
        pixels = _deep_pixels(path) if deep else _pixels(path, channels, as_label)
        # rows and columns become columns and rows
        return np.asarray(
            np.swapaxes(pixels[..., :channels] if pixels.ndim == 3 else pixels, 0, 1).reshape(shape)
        )

    return OpenedFile(
        path,
        shape,
        PLACE.affine(),
        _dtype(mode, deep),
        read,
        flat=True,
        native=PLACE,
        doubts=lambda: doubts,
    )


def parts(path: Path) -> list[Path]:
    """The file."""
    return [path]


def is_whole(path: Path) -> bool:
    """Whether a file can be read to its end."""
    try:
        open_file(path).read()
    except (RuntimeError, OSError, ValueError, SyntaxError):
        return False
    return True


def write_label(
    label: NDArray[np.unsignedinteger[Any]],
    source: OpenedFile,
    output: Path,
    *,
    names: Mapping[int, str] | None = None,
) -> None:
    """Write a label map of one slice as a grey picture of 8 or 16 bits, whole or not at all.

    Args:
        label: Label map on the image's grid, `(i, j, 1)`.
        source: The image.
        output: File to write, `.png`, `.tif` or `.tiff`; its folder must be there.
        names: Not held by this format.

    Raises:
        DatasetError: if the image has several slices.
        OSError: if the file cannot be written; one that was there stays.
    """
    del names
    if label.shape[2] != 1:
        raise DatasetError(
            f"the image has {label.shape[2]} slices, but a picture is one: choose another "
            "--format, such as nifti"
        )
    pixels = np.ascontiguousarray(label[..., 0].T)
    if pixels.dtype.itemsize > 2:
        raise DatasetError(
            f"the label map has values up to {pixels.max()}, but a picture holds 65535 at most: "
            "choose another --format, such as nifti"
        )
    content = io.BytesIO()
    if output.suffix.lower() == ".png":
        Image.fromarray(pixels).save(content, "PNG")
    else:
        Image.fromarray(pixels).save(content, "TIFF", compression="tiff_adobe_deflate")
    write_durably(output, content.getvalue())


def _channels(picture: Any, as_label: bool) -> int:
    mode = picture.mode
    if mode.startswith("I;16"):
        return 1
    if mode not in CHANNELS:
        raise DatasetError(
            f"its pixels are {mode}, neither grey nor RGB: save it as one of them, for example "
            "as PNG"
        )
    if mode in {"P", "PA"} and (as_label or _is_grey(picture)):
        return 1
    return CHANNELS[mode]


def _is_grey(picture: Any) -> bool:
    """Whether all colours of a palette are grey."""
    colours = np.array(picture.getpalette() or []).reshape(-1, 3)
    return bool((colours == colours[:, :1]).all())


def _dtype(mode: str, deep: bool) -> np.dtype[Any]:
    if deep or mode.startswith("I;16"):
        return np.dtype("u2")
    return np.dtype({"I": "i4", "F": "f4"}.get(mode, "u1"))


def _doubts(path: Path, picture: Any) -> tuple[str, ...]:
    found = []
    if picture.mode in ALPHA or "transparency" in picture.info:
        found.append(f"{path}: it has transparency (an alpha channel), which is not used")
    if picture.getexif().get(ORIENTATION, 1) != 1:
        found.append(
            f"{path}: its EXIF data say that it is turned; the pixels are taken as they are stored"
        )
    return tuple(found)


def _pixels(path: Path, channels: int, as_label: bool) -> NDArray[Any]:
    with Image.open(path) as picture:
        colours = picture.mode in {"P", "PA"} and not as_label
        shown = picture.convert("L" if channels == 1 else "RGB") if colours else picture
        pixels = np.array(shown)
        if shown.mode in {"LA", "PA"}:
            pixels = pixels[..., 0]
    return pixels.astype(np.uint8) if pixels.dtype == bool else pixels


def _deep_pixels(path: Path) -> NDArray[Any]:
    pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    # grey with an alpha channel
    return np.asarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 2 else pixels)
