"""Masks of a DICOM-SEG or an RTSTRUCT, on the grid of the image that they were drawn on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.raw.header import VolumeHeader
from training.data.sources.dicom import SEGMENTATION
from training.errors import DatasetError, reason_of

OFF_PLANE = 0.1
"""Share of the slice distance by which a contour may lie beside its slice."""

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From RAS to LPS, and back."""


def masks_of(path: Path, grid: VolumeHeader) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Names and masks `(i, j, k)` of a segmentation; of one name in several parts, each part.

    Args:
        path: A DICOM-SEG or an RTSTRUCT.
        grid: The grid of the image.

    Raises:
        DatasetError: if it cannot be read, or does not lie on the grid.
    """
    try:
        import pydicom

        dataset = pydicom.dcmread(path, force=True)
        if dataset.SOPClassUID == SEGMENTATION:
            yield from _segments(path, grid)
        else:
            yield from _structures(path, dataset, grid)
    except DatasetError:
        raise
    except ModuleNotFoundError as error:
        raise DatasetError(
            "segmentations are read with pydicom and highdicom: pip install 'segtune[dicom]'"
        ) from error
    except Exception as error:
        # pydicom and highdicom raise errors of many types for damaged files
        raise DatasetError(
            f"{path}: cannot be read as a segmentation ({reason_of(error)})"
        ) from error


def _segments(path: Path, grid: VolumeHeader) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    import highdicom

    segmentation = highdicom.seg.segread(path)
    place = highdicom.VolumeGeometry(
        affine=LPS @ grid.affine, spatial_shape=grid.shape, coordinate_system="PATIENT"
    )
    for number in segmentation.segment_numbers:
        name = str(segmentation.get_segment_description(number).segment_label)
        try:
            part = segmentation.get_volume(
                segment_numbers=[number], combine_segments=True, relabel=True, dtype=np.uint8
            )
            matched = part.match_geometry(place, tol=1e-3)
        except (ValueError, RuntimeError) as error:
            raise DatasetError(
                f"{path}: {name} does not lie on the grid of its image ({reason_of(error)}): "
                "resample it by nearest neighbour"
            ) from error
        yield name, np.asarray(matched.array > 0)


def _structures(
    path: Path, dataset: Any, grid: VolumeHeader
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Contours filled by the even-odd rule: a voxel is inside where its centre is."""
    names = {int(roi.ROINumber): str(roi.ROIName) for roi in dataset.StructureSetROISequence}
    to_voxels = np.linalg.inv(LPS @ grid.affine)
    for roi in dataset.get("ROIContourSequence", ()):
        mask = np.zeros(grid.shape, dtype=bool)
        name = names[int(roi.ReferencedROINumber)]
        for contour in roi.get("ContourSequence", ()):
            if contour.ContourGeometricType != "CLOSED_PLANAR":
                continue
            points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
            voxels = points @ to_voxels[:3, :3].T + to_voxels[:3, 3]
            plane = voxels[:, 2]
            number = round(float(plane.mean()))
            if np.abs(plane - number).max() > OFF_PLANE or not 0 <= number < grid.shape[2]:
                raise DatasetError(
                    f"{path}: a contour of {name} lies in no slice of its image (at slice "
                    f"{plane.min():.2f} to {plane.max():.2f} of {grid.shape[2]})"
                )
            # a contour in another one is a hole
            mask[:, :, number] ^= filled(voxels[:, :2], (grid.shape[0], grid.shape[1]))
        yield name, mask


def filled(points: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Which points of a grid lie in a polygon, by the even-odd rule.

    Args:
        points: Corners of the polygon `(n, 2)`, in voxels of the grid.
        shape: The grid.
    """
    inside = np.zeros(shape, dtype=bool)
    nexts = np.roll(points, -1, axis=0)
    for column in range(
        max(0, int(np.ceil(points[:, 1].min()))),
        min(shape[1] - 1, int(np.floor(points[:, 1].max()))) + 1,
    ):
        crosses = (points[:, 1] <= column) != (nexts[:, 1] <= column)
        start, end = points[crosses], nexts[crosses]
        share = (column - start[:, 1]) / (end[:, 1] - start[:, 1])
        places = np.sort(start[:, 0] + share * (end[:, 0] - start[:, 0]))
        for first, last in zip(places[::2], places[1::2], strict=True):
            begin = max(0, int(np.ceil(first)))
            inside[begin : max(begin, int(np.floor(last)) + 1), column] = True
    return inside
