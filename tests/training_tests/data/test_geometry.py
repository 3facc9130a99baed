from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_data import SHAPE, boxes, make_data, save

from training.config import ModelTrainingConfig
from training.data import Preprocessing, prepare_dataset
from training.data.prepared.normalisation import ChannelNormalisation
from training.data.raw.header import VolumeHeader, check_same_grid, open_volume
from training.errors import DatasetError

MR = ChannelNormalisation(modality="MR")


def settings(**changes: Any) -> Preprocessing:
    return Preprocessing(**{"spacing": (1, 1, 1), "channels": [MR], "num_classes": 2, **changes})


def compare(affine: Any, other: Any, shape: tuple[int, int, int] = (20, 20, 20)) -> None:
    one, two = (VolumeHeader(shape, 1, np.asarray(a, dtype=float)) for a in (affine, other))
    check_same_grid(Path("label.nii.gz"), one, Path("image.nii.gz"), two)


def shifted(affine: np.ndarray, *offset: float) -> np.ndarray:
    moved = affine.copy()
    moved[:3, 3] += offset
    return moved


def test_axes_swapped_on_a_square_grid_are_another_grid(tmp_path: Path) -> None:
    swapped = np.eye(4)[[1, 0, 2, 3]]
    with pytest.raises(DatasetError, match=r"its axes are ARS, those of image\.nii\.gz RAS"):
        compare(swapped, np.eye(4))
    image = save(tmp_path / "image.nii.gz", np.ones((9, 9, 5), dtype=np.int16))
    label = save(tmp_path / "label.nii.gz", np.ones((9, 9, 5), dtype=np.uint8), swapped)
    with pytest.raises(DatasetError, match="are not on the same grid"):
        settings().apply([image], label)


@pytest.mark.parametrize("axis", range(3))
def test_a_mirrored_or_turned_grid_is_another_one(axis: int) -> None:
    # a flip about the middle of the volume leaves its box where it was
    flipped = np.eye(4)
    flipped[axis, axis] = -1
    flipped[axis, 3] = 19
    with pytest.raises(DatasetError, match="not on the same grid"):
        compare(flipped, np.eye(4))
    turned = np.eye(4)
    angle = np.deg2rad(2)
    one, other = [i for i in range(3) if i != axis]
    turned[one, one] = turned[other, other] = np.cos(angle)
    turned[one, other], turned[other, one] = np.sin(angle), -np.sin(angle)
    with pytest.raises(DatasetError, match="not on the same grid"):
        compare(turned, np.eye(4))


@given(size=st.floats(0.02, 5), part=st.floats(0, 1))
def test_the_tolerance_is_a_part_of_a_voxel_whatever_its_size(size: float, part: float) -> None:
    affine = np.diag([size, 2 * size, 5 * size, 1])
    moved = shifted(affine, part * size, 0, 0)
    if abs(part - 0.1) < 1e-6:
        return
    if part < 0.1:
        compare(moved, affine)
    else:
        with pytest.raises(DatasetError, match="voxels: the two are not on the same grid"):
            compare(moved, affine)


@pytest.mark.parametrize("spacing", [150, 1000, 0.001, 0.005])
def test_an_implausible_spacing_is_named_before_voxels_are_read(
    tmp_path: Path, spacing: float
) -> None:
    path = save(tmp_path / "i.nii", np.ones(SHAPE, np.uint8), np.diag([1, spacing, 1, 1]))
    # the voxels are not even there
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DatasetError, match=rf"i\.nii: a spacing of 1 x {spacing:g} x 1 mm is im"):
        open_volume(path)
    with pytest.raises(DatasetError, match=rf"{spacing:g} x 1 mm is implausible"):
        settings().apply([path])


def test_a_header_in_metres_is_told_to_be_so(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.ones(SHAPE, np.uint8), np.diag([0.001, 0.001, 0.001, 1]))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "i.nii.gz")
    with pytest.raises(DatasetError, match="gives meters, but mm are read"):
        open_volume(tmp_path / "i.nii.gz")


@pytest.mark.parametrize("spacing", [12.0, 10.0, 0.1, 0.05])
def test_a_case_far_off_the_median_is_named_with_all_other_problems(
    tmp_path: Path, spacing: float
) -> None:
    folder = make_data(tmp_path / "data", {f"c{i}": boxes(1, 2) for i in range(6)})
    for kind in ("imagesTr", "labelsTr"):
        path = folder / kind / "c3.nii.gz"
        voxels = np.asarray(nib.load(path).dataobj)
        save(path, voxels, np.diag([1, 1, spacing, 1]))
    save(folder / "labelsTr" / "c5.nii.gz", np.full(SHAPE, 9, dtype=np.uint8))
    with pytest.raises(DatasetError, match="2 problems") as error:
        prepare_dataset(folder, ModelTrainingConfig(), cache_dir=tmp_path / "cache")
    text = str(error.value)
    assert f"imagesTr/c3.nii.gz: a spacing of {spacing:g} x 1 x 1 mm" in text
    assert "10 times off the median of the data or more, 1 x 1 x 1 mm" in text
    assert "labelsTr/c5.nii.gz: unknown label 9" in text


def test_an_image_to_predict_is_compared_with_the_training_data(tmp_path: Path) -> None:
    path = save(tmp_path / "i.nii.gz", np.ones(SHAPE, np.uint8), np.diag([1, 1, 11, 1]))
    settings().apply([path])
    known = settings(data_spacing=(1, 1, 1))
    with pytest.raises(DatasetError, match=r"i\.nii\.gz: a spacing of 11 x 1 x 1 mm .* or more"):
        known.apply([path])
    usual = save(tmp_path / "u.nii.gz", np.ones(SHAPE, np.uint8), np.diag([1, 1, 9, 1]))
    assert known.apply([usual]).image.shape == (1, 90, 11, 12)


@pytest.mark.parametrize(
    ("spacing", "model", "grid"), [(50, 0.03, "16667 x 18333 x 20000"), (0.05, 5, "1 x 1 x 1")]
)
def test_an_absurd_grid_is_refused_before_it_is_allocated(
    tmp_path: Path, spacing: float, model: float, grid: str
) -> None:
    path = save(tmp_path / "i.nii.gz", np.ones(SHAPE, np.uint8), np.diag([spacing] * 3 + [1]))
    with pytest.raises(DatasetError, match=rf"i\.nii\.gz: its spacing .* makes {grid} voxels out"):
        settings(spacing=(model, model, model)).apply([path])


def test_sform_and_qform_that_disagree_are_said(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.ones(SHAPE, np.float32), np.eye(4))
    image.set_sform(shifted(np.eye(4), 0, 0, 3), code=1)
    image.set_qform(np.eye(4), code=1)
    nib.save(image, tmp_path / "i.nii.gz")
    (warning,) = settings().apply([tmp_path / "i.nii.gz"]).warnings
    assert "sform and qform of its header disagree by up to 3 voxels; the sform is taken" in warning
    agreeing = save(tmp_path / "a.nii.gz", np.ones(SHAPE, np.float32))
    assert settings().apply([agreeing]).warnings == ()
    _, header = open_volume(tmp_path / "i.nii.gz")
    assert header.affine[2, 3] == 3


def damage(path: Path, **fields: Any) -> Path:
    """Write values into the header of a file that nibabel would not write."""
    header = nib.Nifti1Header(path.read_bytes()[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + path.read_bytes()[348:])
    return path


@pytest.mark.parametrize("value", [5.0, np.nan])
def test_a_qform_that_is_none_is_said_where_there_is_an_sform(tmp_path: Path, value: float) -> None:
    path = save(tmp_path / "i.nii", np.ones(SHAPE, np.float32))
    damage(path, quatern_b=value, qform_code=1)
    (warning,) = settings().apply([path]).warnings
    assert warning == f"{path}: the qform of its header is damaged; the sform is taken"
    damage(path, sform_code=0)
    with pytest.raises(DatasetError, match=r"i\.nii: "):
        settings().apply([path])


def test_a_damaged_place_or_size_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "i.nii", np.ones(SHAPE, np.float32))
    damage(path, srow_z=[0, 0, np.nan, 0])
    with pytest.raises(DatasetError, match=r"i\.nii: its affine is not invertible"):
        open_volume(path)
    damage(path, srow_z=[0, 0, 1, 0], dim=[3, -12, 11, 10, 1, 1, 1, 1])
    with pytest.raises(DatasetError, match=r"i\.nii: a volume is needed, .* \(-12, 11, 10\)"):
        open_volume(path)


def test_a_spacing_that_stands_twice_in_a_header_is_said_where_it_differs(tmp_path: Path) -> None:
    path = save(tmp_path / "i.nii", np.ones(SHAPE, np.float32), np.diag([2, 2, 2, 1]))
    assert settings().apply([path]).warnings == ()
    damage(path, pixdim=[1, 2, 2, 5, 0, 0, 0, 0])
    (warning,) = settings().apply([path]).warnings
    assert "voxels of 2 x 2 x 5 mm (pixdim), but 2 x 2 x 2 mm in its sform; the sform" in warning
    damage(path, pixdim=[1, 1, 1, 1, 0, 0, 0, 0])
    assert settings().apply([path]).warnings == ()


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    image = save(tmp_path / "imagesTr" / "c.nii.gz", np.ones((9, 9, 5), np.float32))
    label = save(tmp_path / "labelsTr" / "c.nii.gz", np.ones((9, 9, 4), np.uint8))
    with pytest.raises(DatasetError, match=r"differs from \(9, 9, 5\) of imagesTr/c\.nii\.gz"):
        settings().apply([image], label)


def test_a_header_without_a_place_is_said(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.float32), None), tmp_path / "i.nii.gz")
    (warning,) = settings().apply([tmp_path / "i.nii.gz"]).warnings
    assert "neither sform nor qform" in warning


def test_doubts_about_headers_reach_the_manifest_and_are_said_again(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data", {f"c{i}": boxes(1, 2) for i in range(5)})
    path = folder / "imagesTr" / "c2.nii.gz"
    image = nib.load(path)
    doubtful = nib.Nifti1Image(np.asarray(image.dataobj), image.affine)
    doubtful.set_qform(shifted(np.eye(4), 5, 0, 0), code=1)
    nib.save(doubtful, path)
    runs: list[list[str]] = []
    for _ in range(2):
        told: list[str] = []
        prepare_dataset(
            folder, ModelTrainingConfig(), cache_dir=tmp_path / "cache", on_progress=told.append
        )
        runs.append([line for line in told if line.startswith("warning: ")])
    assert runs[0] == runs[1]
    assert len(runs[0]) == 1
    assert "c2.nii.gz: sform and qform" in runs[0][0]
