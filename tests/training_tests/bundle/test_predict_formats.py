"""`tune predict` gives label maps in the format of the images, or in the one that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image
from predict_data import make_bundle

from training.bundle.prediction import collect_cases, predict_images
from training.errors import BundleError
from tuner.cli.main import main


def volume(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).normal(size=(9, 10, 11)).astype(np.float32)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((1.0, 0.9, 1.2))
    image.SetOrigin((3, -4, 5))
    sitk.WriteImage(image, str(path))
    return path


def predict(bundle: Path, images: Path, output: Path, *options: str) -> int:
    arguments = [str(bundle), str(images), "-o", str(output), "--device", "cpu", *options]
    return main(["predict", *arguments])


@pytest.mark.parametrize(
    ("ending", "written"),
    [
        (".nrrd", ".nrrd"),
        (".nhdr", ".nrrd"),
        (".mha", ".mha"),
        (".mhd", ".mha"),
        (".nii", ".nii.gz"),
        (".hdr", ".nii.gz"),
    ],
)
def test_a_volume_has_a_label_map_of_its_format(tmp_path: Path, ending: str, written: str) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    image = volume(tmp_path / "in" / f"case{ending}")
    reference = volume(tmp_path / "nifti" / "case.nii.gz")
    assert predict(bundle, image, tmp_path / "out", "--probabilities") == 0
    assert predict(bundle, reference, tmp_path / "reference", "--probabilities") == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"case{written}", "case_probabilities.nii.gz"}
    found = sitk.ReadImage(str(tmp_path / "out" / f"case{written}"))
    expected = sitk.ReadImage(str(tmp_path / "reference" / "case.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(expected))
    assert len(np.unique(sitk.GetArrayFromImage(found))) > 1
    np.testing.assert_allclose(found.GetOrigin(), (3, -4, 5), atol=1e-5)
    np.testing.assert_allclose(found.GetSpacing(), (1.0, 0.9, 1.2), atol=1e-5)
    one, other = (
        nib.load(tmp_path / folder / "case_probabilities.nii.gz") for folder in ("out", "reference")
    )
    np.testing.assert_array_equal(one.get_fdata(), other.get_fdata())
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-5)
    # a second run leaves a whole file alone, and takes no damaged one for it
    assert predict(bundle, image, tmp_path / "out", "--skip-existing", "--probabilities") == 0
    label = tmp_path / "out" / f"case{written}"
    label.write_bytes(label.read_bytes()[:-20])
    with pytest.raises(BundleError, match="exists already"):
        predict_images(
            bundle, [image], tmp_path / "out", skip_existing=True, device="cpu", on_case=print
        )


@pytest.mark.parametrize(
    ("ending", "written"),
    [(".png", ".png"), (".jpg", ".png"), (".bmp", ".png"), (".tif", ".tif"), (".tiff", ".tiff")],
)
def test_a_picture_has_a_picture(tmp_path: Path, ending: str, written: str) -> None:
    bundle = make_bundle(tmp_path / "bundle", channels=3, depth=1)
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / f"a{ending}")
    # a folder of pictures, and what else lies in it
    (tmp_path / "in" / "notes.txt").write_text("-")
    assert predict(bundle, tmp_path / "in", tmp_path / "out", "--probabilities") == 0
    found = np.array(Image.open(tmp_path / "out" / f"a{written}"))
    assert found.shape == (20, 30)
    assert len(np.unique(found)) > 1
    shares = nib.load(tmp_path / "out" / "a_probabilities.nii.gz").get_fdata()
    assert shares.shape == (30, 20, 1, 3)
    np.testing.assert_array_equal(shares[:, :, 0].argmax(axis=-1).T, found)


@pytest.mark.parametrize(
    ("name", "file_name"), [("nrrd", "case.nrrd"), ("mha", "case.mha"), ("nifti", "case.nii.gz")]
)
def test_another_format_can_be_asked_for(tmp_path: Path, name: str, file_name: str) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    image = volume(tmp_path / "in" / "case.nii.gz")
    assert predict(bundle, image, tmp_path / "out", "--format", name) == 0
    assert predict(bundle, image, tmp_path / "named" / file_name) == 0
    for path in (tmp_path / "out" / file_name, tmp_path / "named" / file_name):
        found, given = sitk.ReadImage(str(path)), sitk.ReadImage(str(image))
        assert found.GetSize() == given.GetSize()
        np.testing.assert_allclose(found.GetDirection(), given.GetDirection(), atol=1e-6)
        np.testing.assert_allclose(found.GetOrigin(), given.GetOrigin(), atol=1e-6)


def test_formats_that_do_not_fit_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    image = volume(tmp_path / "in" / "case.nrrd")
    assert predict(bundle, image, tmp_path / "out", "--format", "png") == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "case.nrrd: the image has 9 slices, but a picture is one" in shown
    assert not list((tmp_path / "out").iterdir())
    assert predict(bundle, image, tmp_path / "out.nrrd", "--format", "nifti") != 0
    assert "is NRRD, but --format is nifti" in " ".join(capsys.readouterr().err.split())
    assert predict(bundle, image, tmp_path / "out.jpg") != 0
    assert "a label map is written as" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SystemExit):
        predict(bundle, image, tmp_path / "out", "--format", "jpeg")


def test_an_image_is_never_replaced_in_any_format(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    image = volume(tmp_path / "in" / "case.nrrd")
    options: Any = {"device": "cpu", "on_case": print, "overwrite": True}
    with pytest.raises(BundleError, match="would replace its image"):
        predict_images(bundle, [image], tmp_path / "in", **options)
    header = volume(tmp_path / "in" / "pair.mhd")
    # the voxels of a pair are a part of it
    (tmp_path / "in" / "voxels.mha").symlink_to(header.with_suffix(".raw"))
    with pytest.raises(BundleError, match="would replace its image"):
        predict_images(bundle, [header], tmp_path / "in" / "voxels.mha", **options)


def test_a_folder_has_images_of_one_rank(tmp_path: Path) -> None:
    for name in ("a.nrrd", "b.mha", "a.png", "c.jpg"):
        (tmp_path / name).touch()
    assert list(collect_cases([tmp_path], 1)) == ["a", "b"]
    # a file that is named is taken whatever lies beside it
    assert list(collect_cases([tmp_path / "a.png"], 1)) == ["a"]
    assert list(collect_cases([tmp_path / "c.jpg"], 1)) == ["c"]


def test_channels_of_a_case_are_of_one_format(tmp_path: Path) -> None:
    for name in ("a_0000.nrrd", "a_0001.nii.gz", "b_0000.nrrd", "b_0001.nrrd"):
        (tmp_path / name).touch()
    with pytest.raises(BundleError, match=r"lacks .*a_0000\.nii\.gz \(there is a_0000\.nrrd"):
        collect_cases([tmp_path], 2)
