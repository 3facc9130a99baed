from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from training.data import Preprocessing
from training.data.prepared.normalisation import ChannelNormalisation
from training.errors import DatasetError

ORIENTATIONS = [
    "".join(axes)
    for letters in itertools.product("RL", "AP", "SI")
    for axes in itertools.permutations(letters)
]
"""All 48 ways in which the axes of a volume can lie."""


def write_case(folder: Path, orientation: str = "RAS", *, shift: int = 0) -> tuple[Path, Path]:
    """A body in air with one bright corner, on an anisotropic grid."""
    voxels = np.full((16, 14, 10), -1000, dtype=np.int16)
    voxels[2:15, 1:13, 1:9] = 40
    voxels[9:14, 7:12, 5:8] = 160
    label = (voxels == 160).astype(np.uint8)
    label[3:5, 2:4, 2:4] = 2
    affine = np.diag([2.0, 2.5, 4.0, 1.0])
    affine[:3, 3] = [10 + shift, -20, 5]
    target = nib.orientations.axcodes2ornt(orientation)
    transform = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), target)
    paths = folder / f"image_{orientation}.nii.gz", folder / f"label_{orientation}.nii.gz"
    for path, data in zip(paths, (voxels, label), strict=True):
        nib.save(nib.Nifti1Image(data, affine).as_reoriented(transform), path)
    return paths


def ct(spacing: tuple[float, float, float] = (4.0, 2.5, 2.0)) -> Preprocessing:
    window = ChannelNormalisation(modality="CT", low=-100, high=200, mean=40, std=60)
    return Preprocessing(spacing=spacing, channels=[window], num_classes=3)


def one_hot(label: np.ndarray, classes: int = 3) -> np.ndarray:
    return np.stack([label == k for k in range(classes)]).astype(np.float32)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_comes_back_to_its_own_grid(tmp_path: Path, orientation: str) -> None:
    reference = ct().apply(*_lists(write_case(tmp_path)))
    image, label = write_case(tmp_path, orientation)
    case = ct().apply([image], label)
    assert case.label is not None
    assert reference.label is not None
    np.testing.assert_array_equal(case.image, reference.image)
    np.testing.assert_array_equal(case.label, reference.label)
    back = ct().invert(one_hot(case.label), case.info)
    np.testing.assert_array_equal(back, np.asarray(nib.load(label).dataobj))


def _lists(paths: tuple[Path, Path]) -> tuple[list[Path], Path]:
    return [paths[0]], paths[1]


def test_axes_are_superior_anterior_right_and_the_body_is_cropped(tmp_path: Path) -> None:
    case = ct().apply(*_lists(write_case(tmp_path, "LPI")))
    assert case.image.shape == (1, 8, 12, 13)
    assert case.image.dtype == np.float32
    # the bright corner lies superior, anterior and right
    assert case.image[0, 4:7, 6:11, 7:12].min() == pytest.approx((160 - 40) / 60)
    assert case.image[0, 0, 0, 0] == pytest.approx(0.0)


def test_resampling_keeps_extent_and_comes_back(tmp_path: Path) -> None:
    paths = _lists(write_case(tmp_path, "PIR"))
    finer = ct((2.0, 1.25, 1.0))
    case = finer.apply(*paths)
    assert case.label is not None
    assert case.image.shape == (1, 16, 24, 26)
    back = finer.invert(one_hot(case.label), case.info)
    truth = np.asarray(nib.load(paths[1]).dataobj)
    assert back.shape == truth.shape
    assert np.mean(back == truth) > 0.99
    volume = (case.label == 1).sum() / 8
    assert volume == pytest.approx((truth == 1).sum(), rel=0.05)


def test_mr_is_normalised_by_its_own_voxels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    voxels = np.zeros((8, 9, 10), dtype=np.float32)
    voxels[1:7, 2:8, 3:9] = rng.uniform(1e5, 1.7e6, size=(6, 6, 6))
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "mr.nii.gz")
    settings = Preprocessing(
        spacing=(1, 1, 1), channels=[ChannelNormalisation(modality="MR")], num_classes=2
    )
    case = settings.apply([tmp_path / "mr.nii.gz"])
    assert case.image.shape == (1, 6, 6, 6)
    assert case.label is None
    assert case.image.mean() == pytest.approx(0, abs=1e-5)
    assert case.image.std() == pytest.approx(1, abs=1e-5)


def test_in_a_mostly_empty_image_the_body_alone_decides(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    voxels = np.zeros((12, 12, 12), dtype=np.float32)
    # two bodies far apart: their common box is mostly empty
    voxels[:4, :4, :4] = rng.uniform(50, 150, size=(4, 4, 4))
    voxels[8:, 8:, 8:] = rng.uniform(50, 150, size=(4, 4, 4))
    inside = voxels > 0
    voxels[1, 1, 1] = 0  # a hole in the body is body
    nib.save(nib.Nifti1Image(voxels, np.diag([-1, 1, 1, 1])), tmp_path / "mr.nii.gz")
    masked = ChannelNormalisation(modality="MR", body_only=True)
    settings = Preprocessing(spacing=(1, 1, 1), channels=[masked], num_classes=2)
    case = settings.apply([tmp_path / "mr.nii.gz"])
    expected = np.zeros_like(voxels)
    expected[inside] = (voxels[inside] - voxels[inside].mean()) / voxels[inside].std()
    # the file's axes grow to left, anterior, superior
    np.testing.assert_allclose(case.image[0], expected.transpose(2, 1, 0)[:, :, ::-1], atol=1e-5)


@pytest.mark.parametrize("orientation", ORIENTATIONS[::5])
def test_thick_slices_come_back_from_a_finer_grid(tmp_path: Path, orientation: str) -> None:
    thick = tmp_path / "thick.nii.gz", tmp_path / "thick_label.nii.gz"
    # whichever axis of the file lies along the body becomes 4 times as long
    stretch = np.diag([4.0 if code in "SI" else 1.0 for code in orientation] + [1.0])
    for path, target in zip(write_case(tmp_path, orientation), thick, strict=True):
        given = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(given.dataobj), given.affine @ stretch), target)
    settings = ct((4.0, 2.5, 2.0))
    case = settings.apply([thick[0]], thick[1])
    assert case.info.anisotropic_axis == 0
    assert case.label is not None
    assert case.image.shape == (1, 32, 12, 13)
    # the nearest slice: every slice is repeated as it was
    np.testing.assert_array_equal(case.image[:, ::4], case.image[:, 3::4])
    back = settings.invert(one_hot(case.label), case.info)
    np.testing.assert_array_equal(back, np.asarray(nib.load(thick[1]).dataobj))


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_constant_image_stays_finite(tmp_path: Path, value: float) -> None:
    nib.save(nib.Nifti1Image(np.full((4, 4, 4), value), np.eye(4)), tmp_path / "flat.nii.gz")
    settings = Preprocessing(
        spacing=(1, 1, 1), channels=[ChannelNormalisation(modality="MR")], num_classes=2
    )
    case = settings.apply([tmp_path / "flat.nii.gz"])
    assert case.image.shape == (1, 4, 4, 4)
    assert (case.image == 0).all()


def test_channels_come_from_files_or_from_the_fourth_axis(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    voxels = rng.normal(size=(5, 6, 7, 2)).astype(np.float32) + 9
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "both.nii.gz")
    for channel in range(2):
        nib.save(
            nib.Nifti1Image(voxels[..., channel], np.eye(4)), tmp_path / f"c_{channel:04}.nii.gz"
        )
    mr = ChannelNormalisation(modality="MR")
    settings = Preprocessing(spacing=(1, 1, 1), channels=[mr, mr], num_classes=2)
    together = settings.apply([tmp_path / "both.nii.gz"])
    apart = settings.apply([tmp_path / "c_0000.nii.gz", tmp_path / "c_0001.nii.gz"])
    np.testing.assert_array_equal(together.image, apart.image)
    with pytest.raises(DatasetError, match="1 channels, but 2 are needed"):
        settings.apply([tmp_path / "c_0000.nii.gz"])


def test_a_real_ct_goes_there_and_back(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "ct_sample"
    image_path, label_path = folder / "abdomen_ct.nii.gz", folder / "abdomen_organs.nii.gz"
    truth = np.asarray(nib.load(label_path).dataobj).astype(np.uint8)
    classes = int(truth.max()) + 1
    window = ChannelNormalisation(modality="CT", low=-100, high=250, mean=80, std=60)
    settings = Preprocessing(spacing=(3.0, 2.0, 2.0), channels=[window], num_classes=classes)
    case = settings.apply([image_path], label_path)
    assert case.label is not None
    back = settings.invert(one_hot(case.label, classes), case.info)
    for label in (1, 2, 3, 5):
        both = ((back == label) & (truth == label)).sum()
        dice = 2 * both / ((back == label).sum() + (truth == label).sum())
        assert dice > 0.97, f"label {label}"
