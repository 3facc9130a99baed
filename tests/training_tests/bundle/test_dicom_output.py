"""Label maps as DICOM-SEG and RTSTRUCT, read back by highdicom and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom_data import AXIAL, make_enhanced, make_series, oblique
from predict_data import make_bundle
from pydicom import dcmread
from raw_data import save

from training.bundle.label_file import write_label_map
from training.data.raw.volume import read_image
from training.errors import DatasetError
from tuner.cli.main import main

NAMES = {1: "liver", 2: "tumour", 4: "vessel"}


def ring() -> np.ndarray:
    """A label map (i, j, k) with a hole, an island, a voxel at the border and an absent label."""
    label = np.zeros((7, 5, 6), np.uint8)
    label[1:6, 0:5, 1:4] = 1
    label[3, 2, 1:4] = 0
    label[2, 1, 2] = 2
    label[0, 0, 0] = label[6, 4, 5] = 2
    return label


def planes_of_seg(path: Path, label: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A segmentation on the grid of its image, by highdicom's own reading of places."""
    segmentation = hd.seg.segread(path)
    volume = segmentation.get_volume(combine_segments=True, allow_missing_positions=True)
    found = np.zeros_like(label)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    for index in np.argwhere(volume.array > 0):
        place = volume.affine @ [*index, 1]
        i, j, k = np.rint(np.linalg.solve(lps, place)[:3]).astype(int)
        np.testing.assert_allclose(lps @ [i, j, k, 1], place, atol=1e-3)
        found[i, j, k] = volume.array[tuple(index)]
    return found


@pytest.mark.parametrize("orientation", [AXIAL, (0.0, 1.0, 0.0, 0.0, 0.0, -1.0), oblique()])
def test_a_segmentation_lies_on_its_series(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    make_series(tmp_path / "ct", orientation=orientation)
    label, output = ring(), tmp_path / "seg.dcm"
    write_label_map(label, tmp_path / "ct", output, names=NAMES)
    found = planes_of_seg(output, label, read_image([tmp_path / "ct"]).affine)
    np.testing.assert_array_equal(found, label)
    written, sources = dcmread(output), [dcmread(path) for path in (tmp_path / "ct").iterdir()]
    assert written.SOPClassUID.name == "Segmentation Storage"
    assert [item.SegmentLabel for item in written.SegmentSequence] == list(NAMES.values())
    assert [item.SegmentNumber for item in written.SegmentSequence] == [1, 2, 3]
    assert written.StudyInstanceUID == sources[0].StudyInstanceUID
    assert written.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
    assert written.PatientID == "7"
    (series,) = written.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == sources[0].SeriesInstanceUID
    referred = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert referred == {source.SOPInstanceUID for source in sources}
    assert written.SeriesInstanceUID != sources[0].SeriesInstanceUID


def test_a_label_map_without_a_voxel_is_a_segmentation_too(tmp_path: Path) -> None:
    make_series(tmp_path / "ct")
    write_label_map(np.zeros((7, 5, 6), np.uint8), tmp_path / "ct", tmp_path / "s.dcm", names=NAMES)
    assert not hd.seg.segread(tmp_path / "s.dcm").pixel_array.any()
    write_label_map(
        np.zeros((7, 5, 6), np.uint8),
        tmp_path / "ct",
        tmp_path / "r.dcm",
        names=NAMES,
        file_format="rtstruct",
    )
    assert len(dcmread(tmp_path / "r.dcm").StructureSetROISequence) == 3


def test_frames_of_an_enhanced_file_are_referred_to(tmp_path: Path) -> None:
    voxels = make_series(tmp_path / "ct", origin=(0.0, 0.0, 0.0))
    image, label = tmp_path / "ct.dcm", ring()
    make_enhanced(image, voxels)
    write_label_map(label, image, tmp_path / "s.dcm", names=NAMES)
    found = planes_of_seg(tmp_path / "s.dcm", label, read_image([image]).affine)
    np.testing.assert_array_equal(found, label)
    write_label_map(label, image, tmp_path / "r.dcm", names=NAMES, file_format="rtstruct")
    contour = dcmread(tmp_path / "r.dcm").ROIContourSequence[1].ContourSequence[0]
    # frames are stored from the last to the first
    assert contour.ContourImageSequence[0].ReferencedFrameNumber == 6


def inside(polygon: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Even-odd rule for points (n, 2)."""
    ends = np.roll(polygon, -1, axis=0)
    crossed = np.zeros(len(points), dtype=bool)
    for (x, y), (x_end, y_end) in zip(polygon, ends, strict=True):
        between = (y > points[:, 1]) != (y_end > points[:, 1])
        with np.errstate(divide="ignore", invalid="ignore"):
            at = x + (points[:, 1] - y) / (y_end - y) * (x_end - x)
        crossed ^= between & (points[:, 0] < at)
    return crossed


@pytest.mark.parametrize("orientation", [AXIAL, (0.0, 1.0, 0.0, 0.0, 0.0, -1.0), oblique()])
def test_contours_filled_by_voxel_centres_are_the_label_map(
    tmp_path: Path, orientation: tuple[float, ...]
) -> None:
    make_series(tmp_path / "ct", orientation=orientation)
    label, output = ring(), tmp_path / "rt.dcm"
    write_label_map(label, tmp_path / "ct", output, names=NAMES, file_format="rtstruct")
    written = dcmread(output)
    assert written.SOPClassUID.name == "RT Structure Set Storage"
    names = {item.ROINumber: item.ROIName for item in written.StructureSetROISequence}
    assert names == {1: "liver", 2: "tumour", 3: "vessel"}
    by_uid = {}
    for path in (tmp_path / "ct").iterdir():
        header = dcmread(path)
        by_uid[header.SOPInstanceUID] = header.InstanceNumber - 1
    back = np.linalg.inv(np.diag([-1.0, -1.0, 1.0, 1.0]) @ read_image([tmp_path / "ct"]).affine)
    centres = np.stack(np.meshgrid(np.arange(7), np.arange(5), indexing="ij"), -1).reshape(-1, 2)
    found = np.zeros_like(label)
    for item in written.ROIContourSequence:
        value = {"liver": 1, "tumour": 2, "vessel": 4}[names[item.ReferencedROINumber]]
        mask = np.zeros(label.shape, dtype=bool)
        for contour in item.ContourSequence:
            assert contour.NumberOfContourPoints == len(contour.ContourData) / 3
            points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
            index = points @ back[:3, :3].T + back[:3, 3]
            k = by_uid[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            np.testing.assert_allclose(index[:, 2], k, atol=1e-3)
            mask[:, :, k] ^= inside(index[:, :2], centres).reshape(7, 5)
        found[mask] = value
    np.testing.assert_array_equal(found, label)
    (frame,) = written.ReferencedFrameOfReferenceSequence
    (study,) = frame.RTReferencedStudySequence
    images = study.RTReferencedSeriesSequence[0].ContourImageSequence
    assert {item.ReferencedSOPInstanceUID for item in images} == set(by_uid)


@pytest.mark.parametrize("name", ["dicom-seg", "rtstruct"])
def test_an_image_that_is_not_dicom_has_no_dicom_label_map(tmp_path: Path, name: str) -> None:
    image = save(tmp_path / "a.nii.gz", np.zeros((4, 4, 4), np.float32))
    with pytest.raises(DatasetError, match=rf"a\.nii\.gz: the image is not DICOM, and {name}"):
        write_label_map(np.zeros((4, 4, 4), np.uint8), image, tmp_path / "s.dcm", file_format=name)
    make_series(tmp_path / "ct")
    for path in (tmp_path / "ct").iterdir():
        header = dcmread(path)
        del header.FrameOfReferenceUID
        header.save_as(path)
    with pytest.raises(DatasetError, match=f"has no FrameOfReferenceUID, which {name} refers to"):
        write_label_map(
            np.zeros((7, 5, 6), np.uint8), tmp_path / "ct", tmp_path / "s.dcm", file_format=name
        )
    assert not (tmp_path / "s.dcm").exists()


def predict(bundle: Path, *arguments: Any) -> int:
    return main(["predict", str(bundle), *map(str, arguments), "--device", "cpu"])


def test_a_series_is_predicted_in_every_format(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    voxels = np.random.default_rng(0).integers(0, 2000, (9, 10, 11)).astype(np.int16)
    series = tmp_path / "in" / "patient"
    make_series(series, voxels, orientation=oblique())
    assert predict(bundle, series, "-o", tmp_path / "seg", "--probabilities") == 0
    names = {path.name for path in (tmp_path / "seg").iterdir()}
    assert names == {"patient.dcm", "patient_probabilities.nii.gz"}
    for name in ("nifti", "nrrd", "mha", "rtstruct"):
        assert predict(bundle, tmp_path / "in", "-o", tmp_path / name, "--format", name) == 0
    image = read_image([series])
    expected = read_image([tmp_path / "nifti" / "patient.nii.gz"])
    np.testing.assert_allclose(expected.affine, image.affine, atol=1e-4)
    label = expected.data[0].astype(np.uint8)
    assert len(np.unique(label)) == 3
    found = planes_of_seg(tmp_path / "seg" / "patient.dcm", label, image.affine)
    np.testing.assert_array_equal(found, label)
    by_itk = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "nrrd" / "patient.nrrd"))).T
    np.testing.assert_array_equal(by_itk, label)
    structures = dcmread(tmp_path / "rtstruct" / "patient.dcm").StructureSetROISequence
    assert [item.ROIName for item in structures] == ["liver", "tumour"]
    assert predict(bundle, series, "-o", tmp_path / "seg", "--skip-existing") == 0
    content = (tmp_path / "seg" / "patient.dcm").read_bytes()
    (tmp_path / "seg" / "patient.dcm").write_bytes(content[:-50])
    assert predict(bundle, series, "-o", tmp_path / "seg", "--skip-existing") != 0
