"""What a label map takes over from its image: where voxels are, and nothing else."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Extension

from training.bundle.label_file import write_label_map

PATIENT = b"DOE^JANE"

OBLIQUE = np.array(
    [[1.9, 0.3, 0.1, 5.5], [-0.3, 2.1, 0.2, -7.25], [0.05, -0.2, 3.0, 11], [0, 0, 0, 1]]
)


def image_with_a_past(path: Path, kind: Any = nib.Nifti1Image) -> Path:
    """An image that names its patient wherever a header has room, and is displayed as a CT."""
    image = kind(np.zeros((5, 6, 7), dtype=np.int16), OBLIQUE)
    header = image.header
    header.set_xyzt_units("mm", "sec")
    header["descrip"] = header["aux_file"] = header["intent_name"] = PATIENT
    if kind is nib.Nifti1Image:
        header["db_name"] = PATIENT
    header["cal_max"], header["cal_min"] = 1500, -500
    header.set_intent("z score", name=PATIENT.decode())
    header["slice_code"], header["slice_duration"], header["toffset"] = 1, 2.5, 3.5
    header.set_slope_inter(2.0, -1024.0)
    header.extensions.append(Nifti1Extension("comment", PATIENT))
    header.extensions.append(Nifti1Extension("dicom", b"\x10\x00\x10\x00PN\x08\x00" + PATIENT))
    nib.save(image, path)
    return path


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nothing_of_the_patient_travels(tmp_path: Path, kind: Any, suffix: str) -> None:
    source = image_with_a_past(tmp_path / f"image{suffix}", kind)
    label = np.arange(5 * 6 * 7).reshape(5, 6, 7).astype(np.uint8) % 3
    output = tmp_path / f"label{suffix}"
    write_label_map(label, source, output)
    content = output.read_bytes()
    written = gzip.decompress(content) if suffix.endswith("gz") else content
    assert b"DOE" not in written + content
    found = nib.load(output)
    assert type(found) is kind
    np.testing.assert_array_equal(np.asarray(found.dataobj), label)
    np.testing.assert_array_equal(found.affine, nib.load(source).affine)
    # all that is not geometry is what a header has that nobody touched
    fresh = kind(label, OBLIQUE).header
    for name in ("descrip", "aux_file", "intent_code", "intent_name", "cal_max", "cal_min"):
        assert found.header[name] == fresh[name], name
    for name in ("slice_code", "slice_duration", "toffset"):
        assert found.header[name] == fresh[name], name
    assert not found.header.extensions
    assert found.dataobj.slope == 1
    assert found.dataobj.inter == 0
    assert found.header.get_xyzt_units() == ("mm", "unknown")


@pytest.mark.parametrize(("qform", "sform"), [(1, 2), (2, 0), (0, 4), (3, 3), (0, 0)])
def test_both_forms_keep_their_codes(tmp_path: Path, qform: int, sform: int) -> None:
    image = nib.Nifti1Image(np.zeros((5, 6, 7), dtype=np.float32), OBLIQUE)
    turned = np.diag([-2.0, -2.0, 3.0, 1.0])
    turned[:3, 3] = (9, 8, 7)
    image.set_qform(turned, code=qform)
    image.set_sform(OBLIQUE, code=sform)
    nib.save(image, tmp_path / "image.nii.gz")
    write_label_map(
        np.ones((5, 6, 7), dtype=np.uint8), tmp_path / "image.nii.gz", tmp_path / "label.nii.gz"
    )
    one, other = (nib.load(tmp_path / f"{name}.nii.gz") for name in ("image", "label"))
    np.testing.assert_array_equal(one.affine, other.affine)
    assert one.header.get_zooms() == other.header.get_zooms()
    for form in ("get_qform", "get_sform"):
        expected, code = getattr(one.header, form)(coded=True)
        found, found_code = getattr(other.header, form)(coded=True)
        assert code == found_code
        if code:
            np.testing.assert_array_equal(expected, found)


def test_an_image_of_channels_has_a_label_map_of_three_axes(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((5, 6, 7, 2), dtype=np.float32), OBLIQUE)
    image.header.set_zooms((2, 2, 3, 0.7))
    nib.save(image, tmp_path / "image.nii.gz")
    write_label_map(
        np.full((5, 6, 7), 300, dtype=np.uint16),
        tmp_path / "image.nii.gz",
        tmp_path / "label.nii.gz",
    )
    found = nib.load(tmp_path / "label.nii.gz")
    assert found.shape == (5, 6, 7)
    assert found.get_data_dtype() == np.uint16
    assert set(np.unique(np.asarray(found.dataobj))) == {300}
    np.testing.assert_array_equal(found.affine, nib.load(tmp_path / "image.nii.gz").affine)


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = image_with_a_past(tmp_path / "image.nii.gz")
    output = tmp_path / "label.nii.gz"
    write_label_map(np.ones((5, 6, 7), dtype=np.uint8), source, output)
    before = output.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_label_map(np.zeros((5, 6, 7), dtype=np.uint8), source, output)
    assert output.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"image.nii.gz", "label.nii.gz"}
