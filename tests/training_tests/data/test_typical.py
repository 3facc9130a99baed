"""Which cases are typical, and how their planes are turned."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from raw_data import SHAPE, boxes, make_data, save

from training.data.raw.layouts import RawDataset, read_layout
from training.data.statistics.check import check_dataset
from training.data.statistics.planes import Plane, case_planes
from training.data.statistics.typical import rank_cases


def test_an_outlier_comes_last_and_its_reasons_are_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cases = {}
    for number in range(12):
        label = boxes(1)
        label[1, 1, 1 : 1 + int(rng.integers(0, 3))] = 0
        cases[f"case_{number:02}"] = label
    large = np.zeros((30, 11, 10), np.uint8)
    large[1:25, 1:10, 1:9] = 1
    data = make_data(tmp_path, {**cases, "large": large}, names=("background", "organ"))
    check = check_dataset(data)
    assert check.dataset is not None
    ranks = rank_cases(check.dataset, check.cases)
    assert ranks[-1].case.case_id == "large"
    reasons = " ".join(ranks[-1].reasons)
    assert "volume of organ 1.728 ml (median 0.02" in reasons
    assert "extent along right 30 mm (median 12)" in reasons
    assert [rank.reasons for rank in ranks[:-1]] == [()] * 12


def test_few_cases_have_no_outliers(tmp_path: Path) -> None:
    small = np.zeros(SHAPE, np.uint8)
    small[3, 3, 3] = 1
    data = make_data(tmp_path, {"a": boxes(1), "b": boxes(1), "c": small})
    check = check_dataset(data)
    assert check.dataset is not None
    ranks = rank_cases(check.dataset, check.cases)
    assert [rank.reasons for rank in ranks] == [()] * 3


@pytest.fixture(params=["RAS", "LPS", "SPL", "AIR"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> RawDataset:
    """A case with a bright voxel on the patient's right, front and top, stored in some order."""
    image = np.zeros((12, 11, 10), np.float32)
    image[10, 9, 8] = 100
    label = np.zeros(image.shape, np.uint8)
    label[10, 9, 8] = 1
    data = make_data(tmp_path, {"a": label}, names=("background", "organ"))
    transform = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(request.param)
    )
    for folder, voxels in (("imagesTr", image), ("labelsTr", label)):
        stored = nib.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0])).as_reoriented(transform)
        save(data / folder / "a.nii.gz", np.asanyarray(stored.dataobj), stored.affine)
    return read_layout(data)


def test_planes_are_turned_as_a_radiologist_sees_them(dataset: RawDataset) -> None:
    planes: dict[str, Plane] = {
        plane.direction: plane for plane in case_planes(dataset.cases[0], dataset)
    }
    assert [plane.position for plane in planes.values()] == [8, 9, 10]
    # right is left; front and top are above, and the front is left where the side is seen
    assert np.argwhere(planes["axial"].labels).tolist() == [[1, 1]]
    assert np.argwhere(planes["coronal"].labels).tolist() == [[1, 1]]
    assert np.argwhere(planes["sagittal"].labels).tolist() == [[1, 1]]
    assert planes["axial"].labels.shape == (11, 12)
    assert planes["coronal"].labels.shape == (10, 12)
    assert planes["sagittal"].labels.shape == (10, 11)
    assert planes["axial"].spacing == pytest.approx((2, 1))
    assert planes["coronal"].spacing == pytest.approx((3, 1))
    for plane in planes.values():
        assert plane.images[0][1, 1] == 100
