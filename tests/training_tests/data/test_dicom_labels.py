"""DICOM-SEG and RTSTRUCT as labels of a dataset."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from dicom_data import AXIAL, make_series, oblique
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.sr.codedict import codes
from raw_data import boxes, save

from training.bundle.label_file import write_label_map
from training.config import ModelTrainingConfig
from training.data import PreprocessedDataset, prepare_dataset, read_layout
from training.data.raw.formats.dicom_labels import filled
from training.data.raw.volume import read_image, read_label
from training.errors import DatasetError

NAMES = ("background", "liver", "tumour", "vessel")
VALUES = (0, 1, 2, 4)
BOTH = pytest.mark.parametrize("kind", ["dicom-seg", "rtstruct"])


def label_map() -> np.ndarray:
    """A label map (i, j, k) with a hole, islands, and voxels at the border."""
    label = np.zeros((7, 5, 6), np.uint8)
    label[1:6, 0:5, 1:4] = 1
    label[3, 2, 1:4] = 0
    label[2, 1, 2] = 2
    label[0, 0, 0] = label[6, 4, 5] = 4
    return label


def written(tmp_path: Path, kind: str, orientation: tuple[float, ...] = AXIAL) -> Path:
    make_series(tmp_path / "ct", orientation=orientation)
    path = tmp_path / "label.dcm"
    names = dict(zip(VALUES[1:], ("liver", "Tumour ", "vessel"), strict=True))
    write_label_map(label_map(), tmp_path / "ct", path, names=names, file_format=kind)
    return path


def read(path: Path, image: Path, names: tuple[str, ...] = NAMES) -> Any:
    return read_label(path, VALUES, image=image, names=names)


@BOTH
@pytest.mark.parametrize("orientation", [AXIAL, (0.0, 1.0, 0.0, 0.0, 0.0, -1.0), oblique()])
def test_what_is_written_is_read_as_classes(
    tmp_path: Path, kind: str, orientation: tuple[float, ...]
) -> None:
    path = written(tmp_path, kind, orientation)
    found = read(path, tmp_path / "ct")
    # 4 is the third class
    np.testing.assert_array_equal(found.data, np.where(label_map() == 4, 3, label_map()))
    np.testing.assert_array_equal(found.affine, read_image([tmp_path / "ct"]).affine)
    # as the only file of a folder, as archives hand it out
    (tmp_path / "seg").mkdir()
    path.rename(tmp_path / "seg" / "1-1")
    np.testing.assert_array_equal(read(tmp_path / "seg", tmp_path / "ct").data, found.data)


@BOTH
def test_the_image_may_be_nifti(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, kind, oblique())
    volume = read_image([tmp_path / "ct"])
    # with its axes in another order and direction
    turned = np.flip(volume.data[0].transpose(2, 0, 1), axis=1)
    affine = volume.affine[:, [2, 0, 1, 3]].copy()
    affine[:, 3] += affine[:, 1] * (turned.shape[1] - 1)
    affine[:, 1] *= -1
    image = save(tmp_path / "a.nii.gz", turned, affine)
    if kind == "rtstruct":
        with pytest.raises(DatasetError, match="lies in no slice of the image"):
            read(path, image)
        image = save(tmp_path / "b.nii.gz", volume.data[0], volume.affine)
        expected = label_map()
    else:
        expected = np.flip(label_map().transpose(2, 0, 1), axis=1)
    np.testing.assert_array_equal(read(path, image).data, np.where(expected == 4, 3, expected))


@BOTH
def test_segments_that_are_no_labels_are_left_out_and_said(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, kind)
    found = read(path, tmp_path / "ct", ("background", "LIVER", "node", "vessel"))
    expected = np.where(label_map() == 4, 3, label_map())
    np.testing.assert_array_equal(found.data, np.where(expected == 2, 0, expected))
    assert found.warnings == (f"{path}: not named as a label and left out: Tumour",)
    with pytest.raises(DatasetError, match=r"\(liver, Tumour, vessel\) is named.*\(a, b\)"):
        read(path, tmp_path / "ct", ("background", "a", "b"))


def two_segments(folder: Path, kind: Any, pixels: np.ndarray) -> Path:
    """A segmentation (slice, row, column, segment) of highdicom."""
    headers = sorted((dcmread(path) for path in folder.iterdir()), key=lambda h: h.InstanceNumber)
    for header in headers:
        for field in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"):
            setattr(header, field, "")
        for field in ("AccessionNumber", "StudyID", "ReferringPhysicianName"):
            setattr(header, field, "")
    described = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, name in ((1, "tumour"), (2, "liver"))
    ]
    segmentation = hd.seg.Segmentation(
        headers,
        pixels,
        kind,
        described,
        series_instance_uid=hd.UID(),
        series_number=2,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="n",
        software_versions="1",
        device_serial_number="1",
    )
    path = folder.parent / "made.dcm"
    segmentation.save_as(path)
    return path


def test_the_higher_value_is_taken_where_segments_overlap(tmp_path: Path) -> None:
    make_series(tmp_path / "ct")
    pixels = np.zeros((6, 5, 7, 2), np.uint8)
    pixels[2:5, 1:4, 1:5, 1] = 1
    pixels[3, 2:4, 3:6, 0] = 1
    path = two_segments(tmp_path / "ct", hd.seg.SegmentationTypeValues.BINARY, pixels)
    expected = pixels[..., 1].T.copy()
    expected[pixels[..., 0].T > 0] = 2
    np.testing.assert_array_equal(read(path, tmp_path / "ct").data, expected)


def test_fractions_of_a_half_and_more_are_in_a_segment(tmp_path: Path) -> None:
    make_series(tmp_path / "ct")
    pixels = np.random.default_rng(0).random((6, 5, 7, 2))
    pixels[..., 0] *= 0.3
    path = two_segments(tmp_path / "ct", hd.seg.SegmentationTypeValues.FRACTIONAL, pixels)
    np.testing.assert_array_equal(
        read(path, tmp_path / "ct").data, np.rint(pixels[..., 1].T * 255) >= 127.5
    )


def test_a_segmentation_of_segment_numbers_is_read(tmp_path: Path) -> None:
    make_series(tmp_path / "ct")
    numbers = np.random.default_rng(0).integers(0, 3, (6, 5, 7)).astype(np.uint8)
    path = two_segments(tmp_path / "ct", hd.seg.SegmentationTypeValues.LABELMAP, numbers)
    np.testing.assert_array_equal(read(path, tmp_path / "ct").data, np.array([0, 2, 1])[numbers.T])


def other_patient(path: Path, folder: Path) -> None:
    for file in folder.iterdir():
        header = dcmread(file)
        header.FrameOfReferenceUID = "1.2.3"
        header.save_as(file)


def shifted(path: Path, folder: Path) -> None:
    for file in folder.iterdir():
        header = dcmread(file)
        x, y, z = header.ImagePositionPatient
        header.ImagePositionPatient = [x + 0.3, y, z + 1.2]
        header.save_as(file)


def shorter(path: Path, folder: Path) -> None:
    for file in list(folder.iterdir()):
        if dcmread(file).InstanceNumber in (1, 6):
            file.unlink()


def damaged(path: Path, folder: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def headless(path: Path, folder: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


WRONG: list[tuple[str, Callable[[Path, Path], None], str]] = [
    ("dicom-seg", other_patient, r"belongs to another image than .*ct \(their frames of reference"),
    ("rtstruct", other_patient, r"belongs to another image than .*ct \(their frames of reference"),
    ("dicom-seg", shifted, "frame 1 lies on another grid than the image: resample"),
    ("rtstruct", shifted, "a contour of structure 1 lies in no slice of the image"),
    ("dicom-seg", shorter, r"frame \d+ reaches beyond the image"),
    ("rtstruct", shorter, "a contour of structure 3 lies in no slice of the image"),
    ("dicom-seg", damaged, "not a readable DICOM file"),
    ("dicom-seg", headless, "its frames have no places"),
]


@pytest.mark.parametrize(("kind", "spoil", "message"), WRONG)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_labels_that_do_not_fit_are_named(
    tmp_path: Path, kind: str, spoil: Callable[[Path, Path], None], message: str
) -> None:
    path = written(tmp_path, kind)
    spoil(path, tmp_path / "ct")
    with pytest.raises(DatasetError, match=message) as error:
        read(path, tmp_path / "ct")
    assert str(path) in str(error.value)


def inside(polygon: np.ndarray, i: int, j: int) -> bool:
    """Even-odd rule, corner by corner."""
    crossed = False
    for (x, y), (x_end, y_end) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if (y <= j) != (y_end <= j) and i > x + (j - y) / (y_end - y) * (x_end - x):
            crossed = not crossed
    return crossed


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-2, 9, width=16), st.floats(-2, 8, width=16)), min_size=3, max_size=9
    )
)
def test_polygons_are_filled_by_the_even_odd_rule(corners: list[tuple[float, float]]) -> None:
    polygon = np.array(corners) + np.array([0.013, 0.0])
    expected = [[inside(polygon, i, j) for j in range(6)] for i in range(7)]
    np.testing.assert_array_equal(filled(polygon, (7, 6)), expected)


@BOTH
def test_a_dataset_with_such_labels_is_that_of_its_label_maps(tmp_path: Path, kind: str) -> None:
    folder, reference = tmp_path / "data", tmp_path / "reference"
    for index in range(5):
        label = boxes(1, 2)
        voxels = np.random.default_rng(index).integers(900, 1200, label.shape[::-1])
        series = folder / "imagesTr" / f"case_{index}_0000"
        make_series(series, voxels.astype(np.int16))
        (folder / "labelsTr").mkdir(exist_ok=True)
        names = {1: "liver", 2: "tumour"}
        write_label_map(
            label, series, folder / "labelsTr" / f"case_{index}.dcm", names=names, file_format=kind
        )
        image = read_image([series])
        save(reference / "imagesTr" / f"case_{index}_0000.nii.gz", image.data[0], image.affine)
        save(reference / "labelsTr" / f"case_{index}.nii.gz", label, image.affine)
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "tumour": 2},
    }
    for data in (folder, reference):
        (data / "dataset.json").write_text(json.dumps(description))
    assert [case.case_id for case in read_layout(folder).cases] == [f"case_{n}" for n in range(5)]
    first, second = (
        PreprocessedDataset.load(
            prepare_dataset(data, ModelTrainingConfig(), cache_dir=tmp_path / "cache")
        )
        for data in (folder, reference)
    )
    assert first.preprocessing.label_names == ("background", "liver", "tumour")
    assert second.preprocessing.label_names is None
    for case in first.cases:
        np.testing.assert_array_equal(first.label(case), second.label(case))
        np.testing.assert_allclose(first.image(case), second.image(case), atol=1e-5)
