"""DICOM series against ITK's series reader, and each way in which a folder is no volume."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom_data import make_enhanced, make_series, oblique, slice_header, without_mark, write
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLosslessSV1, RLELossless, generate_uid
from raw_data import boxes, save

from training.bundle.prediction import collect_cases
from training.config import ModelTrainingConfig
from training.data import PreprocessedDataset, prepare_dataset, read_layout
from training.data.raw.formats.dicom_files import OTHERS, VOLUMES
from training.data.raw.formats.file_format import ENDINGS, FORMATS, parts_of
from training.data.raw.volume import read_image
from training.errors import BundleError, DatasetError

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])


def by_itk(folder: Path) -> Any:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


@pytest.mark.parametrize("orientation", [(1.0, 0, 0, 0, 1, 0), (0.0, 1, 0, 0, 0, -1), oblique()])
@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (2.5, 0.25)])
def test_a_series_is_the_volume_that_itk_reads(
    tmp_path: Path, orientation: tuple[float, ...], slope: float, intercept: float
) -> None:
    make_series(
        tmp_path / "ct", orientation=orientation, RescaleSlope=slope, RescaleIntercept=intercept
    )
    found, expected = read_image([tmp_path / "ct"]), by_itk(tmp_path / "ct")
    np.testing.assert_allclose(found.data[0], sitk.GetArrayFromImage(expected).T, atol=1e-4)
    direction = np.array(expected.GetDirection()).reshape(3, 3)
    np.testing.assert_allclose(
        RAS_TO_LPS @ found.affine[:3, :3], direction * np.array(expected.GetSpacing()), atol=1e-5
    )
    np.testing.assert_allclose(RAS_TO_LPS @ found.affine[:3, 3], expected.GetOrigin(), atol=1e-5)
    assert found.warnings == ()


def test_unsigned_pixels_and_slopes_of_each_slice(tmp_path: Path) -> None:
    voxels = make_series(
        tmp_path / "pt",
        np.random.default_rng(0).integers(0, 65535, (4, 5, 6)).astype(np.uint16),
        PixelRepresentation=0,
        Modality="PT",
    )
    slopes = {}
    for path in (tmp_path / "pt").iterdir():
        header = dcmread(path)
        slopes[header.InstanceNumber - 1] = header.RescaleSlope = 0.5 * header.InstanceNumber
        header.save_as(path)
    expected = np.stack([voxels[n] * slopes[n] - 1024.0 for n in range(4)]).T
    np.testing.assert_allclose(read_image([tmp_path / "pt"]).data[0], expected, rtol=1e-6)


@pytest.mark.parametrize(("signed", "dtype"), [(0, np.uint16), (1, np.int16)])
def test_inverted_pixels_are_turned_and_said(tmp_path: Path, signed: int, dtype: Any) -> None:
    voxels = make_series(
        tmp_path / "cr",
        np.random.default_rng(0).integers(0, 2000, (3, 4, 5)).astype(dtype),
        PhotometricInterpretation="MONOCHROME1",
        PixelRepresentation=signed,
        BitsStored=12,
        HighBit=11,
        RescaleIntercept=0,
    )
    volume = read_image([tmp_path / "cr"])
    top = -1.0 if signed else 4095.0
    np.testing.assert_array_equal(volume.data[0], top - voxels.T.astype(float))
    assert "(MONOCHROME1); they are inverted" in volume.warnings[0]


@pytest.mark.parametrize("orientation", [(1.0, 0, 0, 0, 1, 0), oblique()])
def test_an_enhanced_file_is_the_volume_of_its_slices(
    tmp_path: Path, orientation: tuple[float, ...]
) -> None:
    voxels = make_series(tmp_path / "ct", orientation=orientation, origin=(0.0, 0.0, 0.0))
    make_enhanced(tmp_path / "enhanced.dcm", voxels, orientation)
    one, other = read_image([tmp_path / "ct"]), read_image([tmp_path / "enhanced.dcm"])
    np.testing.assert_array_equal(one.data, other.data)
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-5)


def test_other_files_of_a_folder_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "ct"
    make_series(folder)
    before = read_image([folder])
    for name in ("DICOMDIR", "notes.txt", "._IM0001", "preview.png", "empty"):
        (folder / name).write_bytes(b"" if name == "empty" else b"\0" * 200)
    (folder / "inner").mkdir()
    report = slice_header("report", 1, (0, 0, 0), Modality="SR", SeriesInstanceUID=generate_uid())
    report.save_as(folder / "report.dcm", enforce_file_format=True)
    after = read_image([folder])
    np.testing.assert_array_equal(before.data, after.data)
    assert after.warnings == (
        f"{folder}: 1 DICOM files are no images and are left out, such as report.dcm",
    )
    assert {path.name for path in parts_of(folder)} == {
        *(f"IM{n:04}" for n in range(6)),
        "report.dcm",
    }


def test_files_without_the_mark_are_read(tmp_path: Path) -> None:
    make_series(tmp_path / "ct")
    before = read_image([tmp_path / "ct"])
    for path in (tmp_path / "ct").iterdir():
        without_mark(path)
        assert path.read_bytes()[128:132] != b"DICM"
    after = read_image([tmp_path / "ct"])
    np.testing.assert_array_equal(before.data, after.data)
    np.testing.assert_array_equal(before.affine, after.affine)


def test_a_label_map_among_slices_and_a_slice_among_volumes(tmp_path: Path) -> None:
    make_series(tmp_path / "patient")
    save(tmp_path / "patient" / "label.nii.gz", boxes(1))
    assert list(collect_cases([tmp_path / "patient"], 1)) == ["patient"]
    for index in range(3):
        save(tmp_path / "volumes" / f"case_{index}.nii.gz", boxes(1))
    next((tmp_path / "patient").iterdir()).rename(tmp_path / "volumes" / "stray")
    assert list(collect_cases([tmp_path / "volumes"], 1)) == ["case_0", "case_1", "case_2"]


def test_raw_voxels_that_begin_as_dicom_may_are_none(tmp_path: Path) -> None:
    voxels = np.full((3, 4, 5), 8, np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "a.mhd"))
    assert (tmp_path / "a.raw").read_bytes()[:4] == b"\x08\x00\x08\x00"
    assert list(collect_cases([tmp_path], 1)) == ["a"]
    assert read_image([tmp_path / "a.mhd"]).data.max() == 8


def test_endings_of_volumes_are_those_of_the_registry() -> None:
    expected = {ending for entry in FORMATS.values() if entry.rank < 2 for ending in entry.endings}
    assert set(VOLUMES) == expected
    assert set(ENDINGS) - {".dcm"} <= set(OTHERS)


def each(folder: Path, change: Callable[[Any, int], None]) -> None:
    """Change the header of every slice, given its number from 0 along the body."""
    for path in sorted(folder.iterdir()):
        header = dcmread(path)
        change(header, header.InstanceNumber - 1)
        header.save_as(path)


def number_of(folder: Path, index: int) -> Path:
    return next(path for path in folder.iterdir() if dcmread(path).InstanceNumber == index + 1)


def tilted(folder: Path) -> None:
    def shift(header: Any, index: int) -> None:
        x, y, z = header.ImagePositionPatient
        header.ImagePositionPatient = [x, y + 0.9 * index, z]

    each(folder, shift)


def gap(folder: Path) -> None:
    number_of(folder, 2).unlink()


def uneven(folder: Path) -> None:
    def move(header: Any, index: int) -> None:
        x, y, z = header.ImagePositionPatient
        header.ImagePositionPatient = [x, y, z + (0.8 if index > 3 else 0)]

    each(folder, move)


def twice(folder: Path) -> None:
    header = dcmread(number_of(folder, 1))
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    header.save_as(folder / "again")


def two_series(folder: Path) -> None:
    make_series(folder.parent / "scout")
    for path in (folder.parent / "scout").iterdir():
        path.rename(folder / f"scout-{path.name}")


def scout(folder: Path) -> None:
    header = slice_header(folder.name, 99, (0, 0, 0), (0.0, 1, 0, 0, 0, -1))
    write(folder / "scout", header, np.zeros((5, 7), np.int16))


def other_size(folder: Path) -> None:
    header = dcmread(number_of(folder, 0))
    write(number_of(folder, 0), header, np.zeros((9, 7), np.int16))


def no_place(folder: Path) -> None:
    each(folder, lambda header, index: header.__delattr__("ImagePositionPatient"))


def colours(folder: Path) -> None:
    each(folder, lambda header, index: setattr(header, "SamplesPerPixel", 3))


def cut(folder: Path) -> None:
    path = number_of(folder, 3)
    path.write_bytes(path.read_bytes()[:-20])


def table(folder: Path) -> None:
    each(folder, lambda header, index: setattr(header, "ModalityLUTSequence", []))


WRONG: list[tuple[Callable[[Path], None], str]] = [
    (tilted, r"ct: .*the gantry was tilted by 19\.8 degrees.*dcm2niix"),
    (gap, r"1 slices are missing, of 2\.5 mm each: between IM000\d and IM000\d \(5 mm\)"),
    (uneven, r"not evenly spaced: 2\.5 mm in the middle, but between IM000\d and .* \(3\.3 mm\)"),
    (twice, r"1 slices are there twice, at one place: .*again"),
    (two_series, r"holds 2 series: 6 images of CT 'ct'.*6 images of CT 'scout'.*folder of its own"),
    (scout, "lie in different directions: the slices of a volume are parallel"),
    (other_size, r"pixels, but \d x 7 in IM000\d: the slices of a volume have one size"),
    (no_place, "it has no ImagePositionPatient"),
    (colours, "its pixels are colours, not numbers"),
    (cut, r"IM000\d: its pixels are damaged"),
    (table, r"Modality LUT\), which is not read: convert the series to NIfTI"),
]


@pytest.mark.parametrize(
    ("spoil", "message"), WRONG, ids=lambda value: getattr(value, "__name__", "")
)
@pytest.mark.filterwarnings("ignore:The length of the pixel data")
def test_a_folder_that_is_no_volume_is_named(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    make_series(tmp_path / "ct")
    spoil(tmp_path / "ct")
    with pytest.raises(DatasetError, match=message) as error:
        read_image([tmp_path / "ct"])
    assert str(tmp_path / "ct") in str(error.value)


def test_a_film_and_a_single_slice_are_no_volumes(tmp_path: Path) -> None:
    film = slice_header("film", 1, (0, 0, 0), NumberOfFrames=3)
    write(tmp_path / "film.dcm", film, np.zeros((3, 4, 5), np.int16))
    with pytest.raises(DatasetError, match=r"film\.dcm: 3 frames without places"):
        read_image([tmp_path / "film.dcm"])
    make_series(tmp_path / "ct")
    slice_file = next((tmp_path / "ct").iterdir()).rename(tmp_path / "slice.dcm")
    with pytest.raises(DatasetError, match="one slice of a DICOM series: give the folder"):
        read_image([slice_file])


def compressed(folder: Path, syntax: Any, payload: Callable[[bytes], bytes]) -> None:
    for path in folder.iterdir():
        header = dcmread(path)
        header.PixelData = encapsulate([payload(header.PixelData)])
        header["PixelData"].is_undefined_length = True
        header.file_meta.TransferSyntaxUID = syntax
        header.save_as(path)


def test_compressed_series_are_decoded(tmp_path: Path) -> None:
    make_series(tmp_path / "ct")
    before = read_image([tmp_path / "ct"])
    for path in (tmp_path / "ct").iterdir():
        header = dcmread(path)
        header.compress(RLELossless, generate_instance_uid=False)
        header.save_as(path)
    np.testing.assert_array_equal(read_image([tmp_path / "ct"]).data, before.data)


def test_lossless_jpeg_is_decoded_by_itk(tmp_path: Path) -> None:
    """pydicom has no decoder for what most archives store."""
    make_series(tmp_path / "ct")
    before = read_image([tmp_path / "ct"])
    for path in list((tmp_path / "ct").iterdir()):
        header = dcmread(path)
        image = sitk.GetImageFromArray(header.pixel_array)
        writer = sitk.ImageFileWriter()
        writer.SetFileName(str(tmp_path / "one.dcm"))
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG")
        writer.Execute(image)
        packed = dcmread(tmp_path / "one.dcm")
        assert packed.file_meta.TransferSyntaxUID == JPEGLosslessSV1
        header.PixelData = packed.PixelData
        header["PixelData"].is_undefined_length = True
        header.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        header.save_as(path)
    np.testing.assert_array_equal(read_image([tmp_path / "ct"]).data, before.data)


def test_what_nothing_can_decode_is_said(tmp_path: Path) -> None:
    make_series(tmp_path / "ct")
    compressed(tmp_path / "ct", JPEGLosslessSV1, lambda pixels: b"\xff\xd8 no picture \xff\xd9")
    with pytest.raises(DatasetError, match=r"is compressed \(JPEG Lossless.*pip install pylibjpeg"):
        read_image([tmp_path / "ct"])


def test_without_pydicom_the_way_out_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_series(tmp_path / "ct")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    monkeypatch.delitem(sys.modules, "training.data.raw.formats.dicom_series", raising=False)
    with pytest.raises(DatasetError, match=r"pip install 'segtune\[dicom\]'"):
        read_image([tmp_path / "ct"])


def test_folders_are_cases_and_channels(tmp_path: Path) -> None:
    for name in ("a_0000", "a_0001", "b_0000", "b_0001"):
        make_series(tmp_path / name)
    expected = {"a": ["a_0000", "a_0001"], "b": ["b_0000", "b_0001"]}
    found = collect_cases([tmp_path], 2)
    assert {case: [path.name for path in paths] for case, paths in found.items()} == expected
    assert list(collect_cases([tmp_path / "b_0001"], 2)) == ["b"]
    for path in (tmp_path / "b_0001").iterdir():
        path.unlink()
    with pytest.raises(BundleError, match=r"lacks .*b_0001"):
        collect_cases([tmp_path], 2)


def test_a_dataset_of_series(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for index in range(5):
        label = boxes(1, 2)
        voxels = np.random.default_rng(index).integers(900, 1200, label.shape[::-1])
        make_series(folder / "imagesTr" / f"case_{index}_0000", voxels.astype(np.int16))
        affine = read_image([folder / "imagesTr" / f"case_{index}_0000"]).affine
        save(folder / "labelsTr" / f"case_{index}.nii.gz", label, affine)
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1, "b": 2}}
    (folder / "dataset.json").write_text(json.dumps(description))
    assert [case.case_id for case in read_layout(folder).cases] == [f"case_{n}" for n in range(5)]
    config = ModelTrainingConfig()
    split = prepare_dataset(folder, config, cache_dir=tmp_path / "cache")
    dataset = PreprocessedDataset.load(split)
    assert sorted(dataset.cases) == [f"case_{n}" for n in range(5)]
    # a slice that changes is another dataset
    path = next((folder / "imagesTr" / "case_2_0000").iterdir())
    header = dcmread(path)
    header.PixelData = bytes(reversed(header.PixelData))
    header.save_as(path)
    assert prepare_dataset(folder, config, cache_dir=tmp_path / "cache") != split
