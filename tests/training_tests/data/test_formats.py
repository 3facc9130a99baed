"""Formats of volumes against their own libraries: nibabel, SimpleITK and pynrrd."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from raw_data import boxes, make_data, save

from training.bundle.label_file import write_label_map
from training.config import ModelTrainingConfig
from training.data import PreprocessedDataset, prepare_dataset, read_layout
from training.data.raw.formats.file_format import ENDINGS, FORMATS, OUTPUT_FORMATS, parts_of
from training.data.raw.header import open_volume
from training.data.raw.volume import read_image, read_label
from training.errors import BundleError, DatasetError

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

AXES = ["RAS", "LPS", "SLP", "PIR", "ARI", "IAL", "LSA"]

DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"]


def affine_of(axes: str, spacing: tuple[float, ...], turn: float, shape: Any) -> np.ndarray:
    """An affine of axes in some order and direction, turned about two of the world's axes."""
    base = np.diag([*spacing, 1.0])
    base[:3, 3] = (-31.5, 12.25, 7)
    c, s = np.cos(turn), np.sin(turn)
    rotation = np.eye(4)
    rotation[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, c, -s], [0, s, c]]
    )
    flips = inv_ornt_aff(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes)), shape)
    return np.asarray(rotation @ base @ flips)


def write_itk(path: Path, voxels: np.ndarray, affine: np.ndarray, *, compress: bool) -> None:
    """Write with SimpleITK alone; a 4th axis of the voxels are components."""
    vector = voxels.ndim == 4
    zyx = np.moveaxis(voxels, -1, 0).T if vector else voxels.T
    image = sitk.GetImageFromArray(
        np.ascontiguousarray(zyx if not vector else voxels.transpose(2, 1, 0, 3)), isVector=vector
    )
    lps = RAS_TO_LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    sitk.WriteImage(image, str(path), useCompression=compress)


volumes = given(
    axes=st.sampled_from(AXES),
    spacing=st.tuples(*[st.sampled_from([0.5, 0.7324, 1.0, 3.3])] * 3),
    turn=st.sampled_from([0.0, 0.3, -0.7]),
    dtype=st.sampled_from(DTYPES),
    channels=st.sampled_from([1, 3]),
    compress=st.booleans(),
    seed=st.integers(0, 99),
)
quick = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("ending", [".nrrd", ".nhdr", ".mha", ".mhd", ".nii.gz", ".hdr"])
@quick
@volumes
def test_a_volume_is_the_same_in_every_format(
    tmp_path: Path, ending: str, axes: str, spacing: Any, turn: float, dtype: str, **drawn: Any
) -> None:
    rng = np.random.default_rng(drawn["seed"])
    shape = (5, 4, 3)
    grid = shape if drawn["channels"] == 1 else (*shape, drawn["channels"])
    voxels = rng.integers(0, 100, grid).astype(dtype)
    affine = affine_of(axes, spacing, turn, shape)
    path = tmp_path / f"a{ending}"
    write_itk(path, voxels, affine, compress=drawn["compress"] and ending != ".hdr")
    found = read_image([path])
    expected = voxels[None] if voxels.ndim == 3 else np.moveaxis(voxels, -1, 0)
    np.testing.assert_array_equal(found.data, expected)
    np.testing.assert_allclose(found.affine, affine, atol=2e-5)
    # what nibabel says of the same image in NIfTI, written by ITK
    write_itk(tmp_path / "reference.nii", voxels, affine, compress=False)
    np.testing.assert_allclose(found.affine, nib.load(tmp_path / "reference.nii").affine, atol=2e-5)


@pytest.mark.parametrize("source", [".nrrd", ".mha", ".nii.gz"])
@pytest.mark.parametrize("target", [".nrrd", ".mha", ".nii.gz", ".nii"])
@quick
@volumes
def test_a_label_map_lies_on_its_image_for_other_readers(
    tmp_path: Path, source: str, target: str, axes: str, spacing: Any, turn: float, **drawn: Any
) -> None:
    shape = (5, 4, 3)
    affine = affine_of(axes, spacing, turn, shape)
    image, output = tmp_path / f"image{source}", tmp_path / f"label{target}"
    write_itk(image, np.zeros(shape, np.int16), affine, compress=False)
    label = np.random.default_rng(drawn["seed"]).integers(0, 500, shape).astype(np.uint16)
    write_label_map(label, image, output)
    first, second = sitk.ReadImage(str(image)), sitk.ReadImage(str(output))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(second).T, label)
    for field in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(
            getattr(first, field)(), getattr(second, field)(), atol=2e-5, err_msg=field
        )
    np.testing.assert_array_equal(read_label(output, range(500)).data, label)


@pytest.mark.parametrize("space", ["RAS", "LAS", "LPS"])
def test_nrrd_of_other_spaces_as_pynrrd_has_them(tmp_path: Path, space: str) -> None:
    voxels = np.arange(24, dtype=np.int16).reshape(4, 3, 2)
    directions = np.array([[0, 2.0, 0], [-1.5, 0, 0], [0, 0, 3.0]])
    names = {"R": "right", "L": "left", "A": "anterior", "P": "posterior", "S": "superior"}
    nrrd.write(
        str(tmp_path / "a.nrrd"),
        voxels,
        {
            "space": "-".join(names[axis] for axis in space),
            "space directions": directions,
            "space origin": np.array([5.0, 6.0, 7.0]),
        },
    )
    found = read_image([tmp_path / "a.nrrd"])
    np.testing.assert_array_equal(found.data[0], voxels)
    flip = np.diag([1 if space[0] == "R" else -1, 1 if space[1] == "A" else -1, 1])
    np.testing.assert_allclose(found.affine[:3, :3], flip @ directions.T)
    np.testing.assert_allclose(found.affine[:3, 3], flip @ [5, 6, 7])


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_a_fourth_axis_is_channels_in_every_format(tmp_path: Path, ending: str) -> None:
    voxels = np.arange(120, dtype=np.int16).reshape(5, 4, 3, 2)
    series = [sitk.GetImageFromArray(voxels[..., c].T.copy()) for c in range(2)]
    sitk.WriteImage(sitk.JoinSeries(series), str(tmp_path / f"a{ending}"))
    np.testing.assert_array_equal(
        read_image([tmp_path / f"a{ending}"]).data, np.moveaxis(voxels, -1, 0)
    )


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nii.gz", ".nii"])
def test_two_axes_are_one_slice_and_stay_two_axes(tmp_path: Path, ending: str) -> None:
    pixels = np.arange(20, dtype=np.int16).reshape(5, 4)
    flat = sitk.GetImageFromArray(pixels.T.copy())
    flat.SetSpacing((0.5, 0.7))
    flat.SetOrigin((3.0, 4.0))
    image, output = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
    sitk.WriteImage(flat, str(image))
    volume = read_image([image])
    np.testing.assert_array_equal(volume.data[0, ..., 0], pixels)
    np.testing.assert_allclose(np.diag(volume.affine), [-0.5, -0.7, 1, 1], atol=1e-6)
    np.testing.assert_allclose(volume.affine[:3, 3], [-3, -4, 0], atol=1e-6)
    write_label_map(np.ones((5, 4, 1), np.uint8), image, output)
    written = sitk.ReadImage(str(output))
    assert written.GetSize() == (5, 4)
    np.testing.assert_allclose(written.GetSpacing(), (0.5, 0.7), atol=1e-6)
    np.testing.assert_allclose(written.GetOrigin(), (3, 4), atol=1e-6)


def test_a_sheared_image_has_no_label_map_in_nrrd(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[0, 2] = 0.4
    image = save(tmp_path / "a.nii.gz", np.zeros((4, 4, 4), np.float32), affine)
    label = np.zeros((4, 4, 4), np.uint8)
    with pytest.raises(DatasetError, match=r"not orthogonal.*--format nifti"):
        write_label_map(label, image, tmp_path / "b.nrrd")
    write_label_map(label, image, tmp_path / "b.nii.gz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


def test_a_name_of_no_format_is_refused(tmp_path: Path) -> None:
    image = save(tmp_path / "a.nii.gz", np.zeros((4, 4, 4), np.float32))
    for name in ("b.xyz", "b.jpg", "b.mhd", "b"):
        with pytest.raises(BundleError, match=r"is written as \.nii\.gz, \.nii, \.nrrd"):
            write_label_map(np.zeros((4, 4, 4), np.uint8), image, tmp_path / name)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = save(tmp_path / "a.nii.gz", np.zeros((4, 4, 4), np.float32))
    write_label_map(np.ones((4, 4, 4), np.uint8), image, tmp_path / "b.nrrd")
    before = (tmp_path / "b.nrrd").read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_label_map(np.zeros((4, 4, 4), np.uint8), image, tmp_path / "b.nrrd")
    assert (tmp_path / "b.nrrd").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def nonsense(path: Path) -> None:
    path.write_bytes(b"no image at all, but some text\n" * 9)


def no_voxels(path: Path) -> None:
    parts_of(path)[-1].unlink()


SPOILT: list[tuple[str, Callable[[Path], None], str]] = [
    (".nrrd", half, "not a readable NRRD file .*expected|fread got only"),
    (".mha", half, "not a readable MetaImage file .*its voxels are damaged"),
    (".nrrd", empty, r"not a readable NRRD file \(it is empty\)"),
    (".nrrd", nonsense, "not a readable NRRD file"),
    (".mha", nonsense, "not a readable MetaImage file"),
    (".mhd", no_voxels, r"a\.mhd: its voxels are in a\.z?raw, which is missing"),
    (".nhdr", no_voxels, r"a\.nhdr: its voxels are in a\.raw(\.gz)?, which is missing"),
    (".hdr", no_voxels, r"a\.hdr: its voxels are in a\.img, which is missing"),
]


@pytest.mark.parametrize(("ending", "spoil", "message"), SPOILT)
def test_a_damaged_file_is_named(
    tmp_path: Path, ending: str, spoil: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / f"a{ending}"
    write_itk(path, np.random.default_rng(0).normal(size=(6, 6, 6)), np.eye(4), compress=False)
    spoil(path)
    with pytest.raises(DatasetError, match=message) as error:
        read_image([path])
    assert str(path) in str(error.value)


def test_voxels_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.zeros((3, 3, 3), np.complex64))
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    with pytest.raises(DatasetError, match=r"complex.*neither intensities nor labels"):
        read_image([tmp_path / "a.nrrd"])


def test_an_analyze_file_is_refused(tmp_path: Path) -> None:
    nib.save(nib.Spm99AnalyzeImage(np.zeros((3, 3, 3), np.int16), np.eye(4)), tmp_path / "a.img")
    with pytest.raises(DatasetError, match=r"a\.hdr: it is an Analyze file.*save it as NIfTI"):
        read_image([tmp_path / "a.hdr"])


def test_a_series_of_vectors_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.nii.gz", np.zeros((3, 3, 3, 2, 2), np.int16))
    with pytest.raises(DatasetError, match=r"\(3, 3, 3, 2, 2\), a series in time of vectors"):
        read_image([tmp_path / "a.nii.gz"])


def convert(folder: Path, ending: str) -> None:
    """Give all files of a data folder another format."""
    for path in sorted(folder.rglob("*.nii.gz")):
        image = sitk.ReadImage(str(path))
        target = path.with_name(path.name.replace(".nii.gz", ending))
        path.unlink()
        sitk.WriteImage(image, str(target))


CASES = {f"case_{index}": boxes(1, 2) for index in range(5)}


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd", ".nhdr", ".hdr"])
def test_a_folder_is_prepared_from_any_format(tmp_path: Path, ending: str) -> None:
    affine = affine_of("LPS", (1.0, 1.5, 2.0), 0.0, (12, 11, 10))
    folder = make_data(tmp_path / "data", CASES, affine=affine)
    config = ModelTrainingConfig()
    first = prepare_dataset(folder, config, cache_dir=tmp_path / "cache")
    convert(folder, ending)
    second = prepare_dataset(folder, config, cache_dir=tmp_path / "cache")
    assert first != second
    one, other = PreprocessedDataset.load(first), PreprocessedDataset.load(second)
    for case in CASES:
        np.testing.assert_array_equal(one.label(case), other.label(case))
        np.testing.assert_allclose(one.image(case), other.image(case), atol=1e-5)


@pytest.mark.parametrize("ending", [".mhd", ".nhdr", ".hdr"])
def test_voxels_beside_a_header_are_in_the_fingerprint(tmp_path: Path, ending: str) -> None:
    folder = make_data(tmp_path / "data", CASES)
    convert(folder, ending)
    config = ModelTrainingConfig()
    first = prepare_dataset(folder, config, cache_dir=tmp_path / "cache")
    (voxels,) = parts_of(folder / "imagesTr" / f"case_1{ending}")[1:]
    content = voxels.read_bytes()
    unpacked = gzip.decompress(content) if voxels.suffix == ".gz" else content
    changed = np.frombuffer(unpacked, np.float32) + 1
    voxels.write_bytes(
        gzip.compress(changed.tobytes()) if voxels.suffix == ".gz" else changed.tobytes()
    )
    assert prepare_dataset(folder, config, cache_dir=tmp_path / "cache") != first


def test_previews_and_other_formats_are_said_and_left_alone(tmp_path: Path) -> None:
    folder = make_data(tmp_path, CASES)
    for name in ("case_0.png", "case_1.jpg", "notes.txt"):
        (folder / "imagesTr" / name).write_bytes(b"-")
    shutil.copy(folder / "labelsTr" / "case_0.nii.gz", folder / "labelsTr" / "case_0.nrrd")
    dataset = read_layout(folder)
    assert [case.images[0].name for case in dataset.cases] == [f"{case}.nii.gz" for case in CASES]
    images, labels = dataset.warnings
    assert "2 files are of another format" in images
    assert "case_0.png, case_1.jpg (`file_ending`" in images
    assert "1 file is of another format than the 5 that are used" in labels


def test_file_ending_says_which_files_are_meant(tmp_path: Path) -> None:
    folder = make_data(tmp_path, CASES, file_ending=".NRRD")
    for kind in ("imagesTr", "labelsTr"):
        for path in list((folder / kind).iterdir()):
            sitk.WriteImage(
                sitk.ReadImage(str(path)), str(path.with_name(path.name.replace("nii.gz", "nrrd")))
            )
    (folder / "labelsTr" / "case_4.nii.gz").unlink()
    dataset = read_layout(folder)
    assert {case.images[0].suffix for case in dataset.cases} == {".nrrd"}
    assert "4 files are of another format" in dataset.warnings[1]
    values = json.loads((folder / "dataset.json").read_text())
    for ending, message in ((".xyz", "must be one of .nii.gz, .*but is '.xyz'"), (7, "but is 7")):
        (folder / "dataset.json").write_text(json.dumps({**values, "file_ending": ending}))
        with pytest.raises(DatasetError, match=message):
            read_layout(folder)


def test_a_channel_of_another_format_is_named(tmp_path: Path) -> None:
    folder = make_data(tmp_path, CASES)
    values = json.loads((folder / "dataset.json").read_text())
    values["modality"] = {"0": "T1", "1": "T2"}
    (folder / "dataset.json").write_text(json.dumps(values))
    images = folder / "imagesTr"
    for case in CASES:
        (images / f"{case}.nii.gz").rename(images / f"{case}_0000.nii.gz")
        shutil.copy(images / f"{case}_0000.nii.gz", images / f"{case}_0001.nii.gz")
    (images / "case_2_0001.nii.gz").rename(images / "case_2_0001.nrrd")
    with pytest.raises(DatasetError, match=r"there is case_2_0001\.nrrd.*of one format, convert"):
        read_layout(folder)


def test_registry_of_formats() -> None:
    assert set(OUTPUT_FORMATS) <= set(FORMATS)
    for name, entry in FORMATS.items():
        assert all(ENDINGS[ending] == name for ending in entry.endings), "two formats of one ending"
        assert all(ending in ENDINGS for ending in entry.writes)
        for ending in entry.endings.values():
            assert any(ending in other.writes for other in FORMATS.values())
        for function in ("open_file", "parts", "is_whole", "write_label"):
            assert callable(getattr(entry.module, function))


def test_the_header_of_a_label_map_says_no_more_than_its_place(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.zeros((3, 3, 3), np.int16))
    image.SetMetaData("PatientName", "DOE^JANE")
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    assert b"DOE" in (tmp_path / "a.nrrd").read_bytes()
    for name in ("b.nrrd", "b.mha", "b.nii"):
        write_label_map(np.ones((3, 3, 3), np.uint8), tmp_path / "a.nrrd", tmp_path / name)
        assert b"DOE" not in (tmp_path / name).read_bytes()
        assert open_volume(tmp_path / name)[0].dtype == np.uint8
