"""Arrays on disk of which a part can be read: as they are (.npy), or compressed (Blosc2)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from training.errors import DatasetError

if TYPE_CHECKING:
    import blosc2

CHUNK = 128
"""Voxels of a side of what is one chunk of a compressed file."""

BLOCK = 32
"""Voxels of a side of what is decompressed at once: of a patch little more than is needed."""

LEVEL = 1
"""Of ZSTD, after the bits are shuffled: level 8 saves 5 % more, in ten times the time."""


class StoredArray(Protocol):
    """An array of NumPy or a compressed one: read with a key, and whole by `np.asarray`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each axis."""

    def __getitem__(self, key: Any, /) -> Any:
        """A part of the array, as an array of NumPy."""


class CompressedArray:
    """An array in a Blosc2 file; what is taken of it is decompressed, block by block.

    Args:
        stored: The array of the file.
    """

    def __init__(self, stored: blosc2.NDArray) -> None:
        self._stored = stored

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each axis."""
        return tuple(self._stored.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return np.dtype(str(self._stored.dtype))

    def __len__(self) -> int:
        """Size of the first axis."""
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """A part of the array; the key has integers, slices and an ellipsis."""
        return np.asarray(self._stored[key])

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """The whole array."""
        if copy is False:
            raise ValueError("a compressed array cannot be had without a copy")
        return np.asarray(self._stored[...], dtype=dtype)


def array_file(name: str, *, compressed: bool) -> str:
    """Name of the file of an array."""
    return f"{name}.b2nd" if compressed else f"{name}.npy"


def file_content(array: NDArray[Any], *, compressed: bool) -> bytes | memoryview:
    """The content of the file of an array."""
    if compressed:
        return _compressed(array)
    content = io.BytesIO()
    np.save(content, array)
    return content.getbuffer()


def open_array(path: Path) -> StoredArray:
    """Open an array; what is not read is not loaded.

    Raises:
        DatasetError: if the file is missing or damaged.
    """
    try:
        if path.suffix == ".b2nd":
            # of which the import takes longer than all else here
            import blosc2

            return CompressedArray(
                blosc2.open(str(path), mmap_mode="r", dparams=blosc2.DParams(nthreads=1))
            )
        mapped: NDArray[Any] = np.load(path, mmap_mode="r")
        return mapped
    except (OSError, EOFError, ValueError, RuntimeError) as error:
        raise DatasetError(
            f"{path} is damaged or missing: run the study again, or "
            "training.data.prepare_dataset(data_dir, config), to preprocess this case again"
        ) from error


def _compressed(array: NDArray[Any]) -> bytes:
    import blosc2

    # the cores have other cases
    settings = blosc2.CParams(
        codec=blosc2.Codec.ZSTD,
        clevel=LEVEL,
        filters=[blosc2.Filter.BITSHUFFLE],
        nthreads=1,
    )
    stored = blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=_tiles(array.shape, CHUNK),
        blocks=_tiles(array.shape, BLOCK),
        cparams=settings,
    )
    return bytes(stored.to_cframe())


def _tiles(shape: Sequence[int], side: int) -> tuple[int, ...]:
    """Tiles of a volume; each channel has its own."""
    return tuple([1] * (len(shape) - 3) + [min(size, side) for size in shape[-3:]])
