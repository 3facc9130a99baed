"""DICOM series with DICOM-SEG or RTSTRUCT, converted: the label maps that were stored come back."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_data import AXIAL, make_series, oblique

from training.data import read_layout
from training.data.raw.formats.file_format import FORMATS
from training.data.raw.header import open_volume
from training.data.sources.convert import convert_dataset
from training.data.sources.source import Request
from training.data.statistics.check import check_dataset
from training.errors import DatasetError

NAMES = {1: "liver", 2: "tumour"}


def label_like(folder: Path, seed: int) -> np.ndarray:
    """A label map with a hole, a part of one voxel, and two classes, on the grid of a series."""
    _, header = open_volume(folder)
    label = np.zeros(header.shape, np.uint8)
    label[1:6, :, 1:4] = 1
    label[3, 2, 2] = 0
    label[3 + seed % 2, 1, 1] = 2
    label[0, 0, 0] = 2
    return label


@pytest.fixture(params=["dicom-seg", "rtstruct"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def archive(tmp_path: Path, kind: str) -> Path:
    """Three patients as an archive hands them out, the second one oblique."""
    folder = tmp_path / "archive"
    for number in range(3):
        patient = folder / f"download{number}"
        orientation = oblique() if number == 1 else AXIAL
        series = patient / "study" / f"ct{number}"
        make_series(series, orientation=orientation, PatientID=f"P/{number}")
        write_segmentation(series, patient / "study" / "labels" / "one.dcm", kind, number)
    (folder / "readme.txt").write_text("from the archive")
    return folder


def write_segmentation(series: Path, output: Path, kind: str, seed: int) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    opened, _ = open_volume(series)
    FORMATS[kind].module.write_label(label_like(series, seed), opened, output, names=NAMES)


def test_series_and_segmentations_become_images_and_label_maps(
    archive: Path, tmp_path: Path
) -> None:
    converted = convert_dataset(archive, tmp_path / "out")
    assert converted.kind == "dicom"
    assert converted.channels == ("CT",)
    assert converted.labels == {"background": 0, "liver": 1, "tumour": 2}
    assert converted.cases == ("P-0", "P-1", "P-2")
    assert check_dataset(converted.folder).errors == ()
    for number, case in enumerate(read_layout(converted.folder).cases):
        series = archive / f"download{number}" / "study" / f"ct{number}"
        opened, header = open_volume(series)
        image, label = nib.load(case.images[0]), nib.load(case.label)
        assert np.allclose(image.affine, header.affine, atol=1e-4)
        assert np.allclose(label.affine, header.affine, atol=1e-4)
        assert (np.asanyarray(image.dataobj) == opened.read()).all()
        assert (np.asanyarray(label.dataobj) == label_like(series, number)).all()


def test_files_in_one_heap_are_sorted_by_their_headers(archive: Path, tmp_path: Path) -> None:
    heap = tmp_path / "heap"
    heap.mkdir()
    for number, file in enumerate(sorted(archive.rglob("*"))):
        if file.is_file():
            shutil.copyfile(file, heap / f"IM{number:04}")
    (heap / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    whole = convert_dataset(archive, tmp_path / "whole")
    sorted_ = convert_dataset(heap, tmp_path / "out")
    assert sorted_.cases == whole.cases
    for name in ("imagesTr/P-1_0000.nii.gz", "labelsTr/P-1.nii.gz"):
        assert (sorted_.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_classes_are_chosen_by_the_names_of_segments(archive: Path, tmp_path: Path) -> None:
    request = Request(classes=("tumour",))
    converted = convert_dataset(archive, tmp_path / "out", request=request)
    assert converted.labels == {"background": 0, "tumour": 1}
    label = np.asanyarray(nib.load(tmp_path / "out" / "labelsTr" / "P-0.nii.gz").dataobj)
    assert (label == (label_like(archive / "download0" / "study" / "ct0", 0) == 2)).all()
    with pytest.raises(DatasetError, match="no segment 'tumor'; did you mean 'tumour'"):
        convert_dataset(archive, tmp_path / "b", request=Request(classes=("tumor",)))


def test_overlapping_segments_follow_the_rule(tmp_path: Path) -> None:
    """Contours of one structure lie in those of another one."""
    series = tmp_path / "archive" / "ct"
    make_series(series)
    path = tmp_path / "archive" / "rt.dcm"
    write_segmentation(series, path, "rtstruct", 0)
    structures = pydicom.dcmread(path)
    contours = structures.ROIContourSequence
    contours[1].ContourSequence.extend(contours[0].ContourSequence)
    structures.save_as(path)
    whole = label_like(series, 0)
    shared = int((whole == 1).sum())
    with pytest.raises(DatasetError, match=f"tumour and liver share {shared} voxels"):
        convert_dataset(tmp_path / "archive", tmp_path / "out")
    for rule, value in (("first", 1), ("last", 2)):
        folder = tmp_path / rule
        convert_dataset(tmp_path / "archive", folder, overlap=rule)  # type: ignore[arg-type]
        label = np.asanyarray(nib.load(folder / "labelsTr" / "7.nii.gz").dataobj)
        assert set(np.unique(label[whole == 1])) == {value}


def test_a_table_may_list_series_and_their_segmentations(archive: Path, tmp_path: Path) -> None:
    rows = [
        f"download{number}/study/ct{number},download{number}/study/labels/one.dcm,p{number}"
        for number in range(3)
    ]
    (archive / "cases.csv").write_text("\n".join(["image,label,case", *rows]))
    request = Request(channels=("CT",), labels={"liver": 1, "tumour": 2})
    converted = convert_dataset(archive / "cases.csv", tmp_path / "out", request=request)
    label = np.asanyarray(nib.load(converted.folder / "labelsTr" / "p1.nii.gz").dataobj)
    assert (label == label_like(archive / "download1" / "study" / "ct1", 1)).all()
    unnamed = Request(channels=("CT",))
    with pytest.raises(DatasetError, match="name its classes with `--labels`"):
        convert_dataset(archive / "cases.csv", tmp_path / "b", request=unnamed)


def test_two_segmentations_of_a_patient_are_two_cases(
    archive: Path, tmp_path: Path, kind: str
) -> None:
    study = archive / "download0" / "study"
    write_segmentation(study / "ct0", study / "labels" / "two.dcm", kind, 1)
    converted = convert_dataset(archive, tmp_path / "out")
    assert converted.cases == ("P-0_1", "P-0_2", "P-1", "P-2")
    # which the check sees
    kinds = {finding.kind for finding in check_dataset(converted.folder).warnings}
    assert "duplicate" in kinds


def test_a_segmentation_without_its_series_is_named(archive: Path, tmp_path: Path) -> None:
    shutil.rmtree(archive / "download1" / "study" / "ct1")
    with pytest.raises(DatasetError, match=r"one.dcm: refers to no image series that is there"):
        convert_dataset(archive, tmp_path / "out")


def test_series_of_two_modalities_are_refused(archive: Path, tmp_path: Path) -> None:
    for file in (archive / "download2" / "study" / "ct2").iterdir():
        header = pydicom.dcmread(file)
        header.Modality = "MR"
        header.save_as(file)
    with pytest.raises(DatasetError, match="2 of CT, 1 of MR: convert a folder of one modality"):
        convert_dataset(archive, tmp_path / "out")


def test_a_damaged_series_is_named_and_a_mended_one_goes_on(archive: Path, tmp_path: Path) -> None:
    series = archive / "download1" / "study" / "ct1"
    lost = sorted(series.iterdir(), key=lambda file: pydicom.dcmread(file).InstanceNumber)[2]
    content = lost.read_bytes()
    lost.unlink()
    with pytest.raises(DatasetError, match="missing"):
        convert_dataset(archive, tmp_path / "out")
    lost.write_bytes(content)
    assert len(convert_dataset(archive, tmp_path / "out").cases) == 3


def test_data_without_a_segmentation_say_so(archive: Path, tmp_path: Path) -> None:
    for file in archive.rglob("one.dcm"):
        file.unlink()
    with pytest.raises(DatasetError, match="has no labelled case"):
        convert_dataset(archive, tmp_path / "out")


def test_a_contour_beside_its_slices_is_refused(tmp_path: Path) -> None:
    series = tmp_path / "archive" / "ct"
    make_series(series)
    path = tmp_path / "archive" / "rt.dcm"
    write_segmentation(series, path, "rtstruct", 0)
    structures = pydicom.dcmread(path)
    contour = structures.ROIContourSequence[0].ContourSequence[0]
    points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
    points[:, 2] += 1
    contour.ContourData = [f"{value:.6g}" for value in points.ravel()]
    structures.save_as(path)
    with pytest.raises(DatasetError, match="lies in no slice"):
        convert_dataset(tmp_path / "archive", tmp_path / "out")
