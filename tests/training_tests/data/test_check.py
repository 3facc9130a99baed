"""What a check of a dataset finds: each fault is made in a folder of sound cases."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from raw_data import SHAPE, boxes, make_data, save
from scipy import ndimage

from training.data import generate_phantom
from training.data.statistics import examine
from training.data.statistics.check import DataCheck, check_dataset
from training.data.statistics.findings import KINDS
from training.data.statistics.measures import (
    content_digest,
    measure_channel,
    measure_classes,
    measure_grid,
    values_digest,
)
from training.data.statistics.outliers import robust_deviations
from training.errors import DatasetError

CASES = [f"case_{letter}" for letter in "abcdefghijkl"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve sound cases, which differ a little."""
    folder = make_data(tmp_path / "data", {case: boxes(1, 2) for case in CASES})
    rng = np.random.default_rng(1)
    for case in CASES:
        image = rng.normal(100, 10, size=SHAPE).astype(np.float32)
        save(folder / "imagesTr" / f"{case}.nii.gz", image)
    return folder


def image_of(data: Path, case: str = "case_a") -> Path:
    return data / "imagesTr" / f"{case}.nii.gz"


def label_of(data: Path, case: str = "case_a") -> Path:
    return data / "labelsTr" / f"{case}.nii.gz"


def voxels(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def found(check: DataCheck, kind: str) -> list[str]:
    return [finding.message for finding in check.findings if finding.kind == kind]


def test_sound_data_have_no_findings(data: Path) -> None:
    check = check_dataset(data)
    assert check.findings == ()
    assert check.ok
    assert [case.case_id for case in check.cases] == CASES


def test_the_embedded_data_have_no_findings(tmp_path: Path) -> None:
    """They are stored in several orders of axes, and differ as patients do."""
    check = check_dataset(generate_phantom(tmp_path / "phantom", num_cases=8, seed=2))
    assert check.findings == ()


def unnamed_label(data: Path) -> None:
    save(label_of(data), boxes(1, 2) + np.uint8(5) * (boxes(1) > 0).astype(np.uint8))


def parts_of_labels(data: Path) -> None:
    save(label_of(data), ndimage.gaussian_filter(boxes(1, 2).astype(np.float32), 1))


def not_a_number(data: Path) -> None:
    image = voxels(image_of(data)).copy()
    image[3, 3, 3] = np.nan
    save(image_of(data), image)


def damaged(data: Path) -> None:
    image_of(data).write_bytes(image_of(data).read_bytes()[:3000])


def moved_label(data: Path) -> None:
    affine = np.eye(4)
    affine[2, 3] = 3.0
    save(label_of(data), boxes(1, 2), affine)


def no_label(data: Path) -> None:
    label_of(data).unlink()


def no_image(data: Path) -> None:
    image_of(data).unlink()


def series_over_time(data: Path) -> None:
    save(image_of(data), np.random.default_rng(0).normal(size=(*SHAPE, 5)).astype(np.float32))


def exchanged(data: Path) -> None:
    image, label = voxels(image_of(data)), voxels(label_of(data))
    save(image_of(data), label)
    save(label_of(data), image)


def label_as_image(data: Path) -> None:
    save(image_of(data), boxes(1, 2))


def constant(data: Path) -> None:
    save(image_of(data), np.full(SHAPE, 7, np.int16))


def metres(data: Path) -> None:
    for path in (image_of(data), label_of(data)):
        save(path, voxels(path), np.diag([0.05, 0.05, 0.05, 1.0]))


def coarse(data: Path) -> None:
    for path in (image_of(data), label_of(data)):
        save(path, voxels(path), np.diag([4.0, 4.0, 4.0, 1.0]))


def unlabelled(data: Path) -> None:
    save(label_of(data), np.zeros(SHAPE, np.uint8))


def in_the_air(data: Path) -> None:
    image = voxels(image_of(data)).copy()
    image[boxes(1, 2) > 0] = 0
    save(image_of(data), image)


def copied(data: Path) -> None:
    save(image_of(data), voxels(image_of(data, "case_c")).astype(np.float64))


def copied_and_mirrored(data: Path) -> None:
    save(image_of(data), voxels(image_of(data, "case_c"))[::-1])


def turned(data: Path) -> None:
    """Axes in another order, which the header says rightly."""
    for path in (image_of(data), label_of(data)):
        turned = nib.load(path).as_reoriented(
            nib.orientations.ornt_transform(
                nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt("PLS")
            )
        )
        save(path, np.asanyarray(turned.dataobj), turned.affine)


def mirrored(data: Path) -> None:
    """Voxels in another order, of which the header says nothing."""
    for path in (image_of(data), label_of(data)):
        save(path, voxels(path)[::-1])


def oblique(data: Path) -> None:
    angle = np.deg2rad(30)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    for path in (image_of(data), label_of(data)):
        save(path, voxels(path), affine)


def thin(data: Path) -> None:
    for path in (image_of(data), label_of(data)):
        save(path, voxels(path)[..., :5])


def tiny_organ(data: Path) -> None:
    label = boxes(1, 2)
    label[label == 1] = 0
    label[2, 2, 2] = 1
    save(label_of(data), label)


def looks_like_ct(data: Path) -> None:
    image = np.full(SHAPE, -1000, np.int16)
    image[2:9, 2:9, 2:9] = 50
    image[4, 4, 4] = 900
    save(image_of(data), image)


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (unnamed_label, "label", ["labelsTr/case_a.nii.gz", "unknown label 6"]),
        (parts_of_labels, "label", ["case_a", "whole number"]),
        (not_a_number, "image", ["imagesTr/case_a.nii.gz", "1 voxels are NaN"]),
        (damaged, "image", ["imagesTr/case_a.nii.gz", "not a readable"]),
        (moved_label, "grid", ["labelsTr/case_a.nii.gz", "3 mm"]),
        (no_label, "files", ["imagesTr/case_a.nii.gz", "no label map"]),
        (no_image, "files", ["labelsTr/case_a.nii.gz", "no image"]),
        (series_over_time, "channels", ["imagesTr/case_a.nii.gz", "5 channels", "over time"]),
        (exchanged, "swapped", ["imagesTr/case_a.nii.gz", "(0, 1, 2)"]),
        (label_as_image, "like a label map", ["imagesTr/case_a.nii.gz", "(0, 1, 2)"]),
        (constant, "constant image", ["imagesTr/case_a.nii.gz", "7"]),
        (metres, "spacing", ["imagesTr/case_a.nii.gz", "0.05 x 0.05 x 0.05 mm"]),
        (coarse, "unusual spacing", ["imagesTr/case_a.nii.gz", "4.0 times"]),
        (unlabelled, "no foreground", ["labelsTr/case_a.nii.gz", "background"]),
        (in_the_air, "label in the air", ["labelsTr/case_a.nii.gz", "100%"]),
        (copied, "duplicate", ["imagesTr/case_c.nii.gz: the image of case_a"]),
        (copied_and_mirrored, "duplicate", ["imagesTr/case_c.nii.gz", "mirrored", "of case_a"]),
        (turned, "orientation", ["imagesTr/case_a.nii.gz", "PLS", "11 of 12 are RAS"]),
        (mirrored, "mirrored", ["imagesTr/case_a.nii.gz", "organ lies right", "others left"]),
        (oblique, "oblique", ["imagesTr/case_a.nii.gz", "30 degrees"]),
        (thin, "small", ["imagesTr/case_a.nii.gz", "5 x 11 x 12 voxels"]),
        (tiny_organ, "unusual volume", ["labelsTr/case_a.nii.gz", "0.001 ml of organ"]),
        (looks_like_ct, "modality", ["imagesTr/case_a.nii.gz", "named MRI", "looks like a CT"]),
    ],
)
def test_each_fault_is_found_and_named_by_file(
    data: Path, spoil: Callable[[Path], None], kind: str, words: list[str]
) -> None:
    spoil(data)
    check = check_dataset(data)
    messages = found(check, kind)
    assert len(messages) == 1, check.findings
    # `others left` stands for the words around it
    for word in words:
        assert word.removeprefix("others ") in messages[0]
    # what follows from it may be said as well, but of the same case
    assert {finding.case for finding in check.findings} <= {"case_a", "case_c", None}
    assert check.ok == (KINDS[kind].severity == "warning")


def test_all_faults_are_listed_at_once_and_one_hides_none(data: Path) -> None:
    """Also where two are in one case, and where another case has files missing."""
    not_a_number(data)
    unnamed_label(data)
    label_of(data, "case_b").unlink()
    moved = np.eye(4)
    moved[0, 3] = 2
    save(label_of(data, "case_c"), boxes(1, 2) + np.uint8(9), moved)
    check = check_dataset(data)
    kinds = [(finding.kind, finding.case) for finding in check.errors]
    assert kinds == [
        ("files", None),
        ("grid", "case_c"),
        ("image", "case_a"),
        ("label", "case_a"),
        ("label", "case_c"),
    ]


def test_headers_alone_are_checked_without_voxels(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    not_a_number(data)
    moved_label(data)
    for name in ("read_image", "read_case_label"):
        monkeypatch.setattr(examine, name, lambda *given: pytest.fail("a voxel was read"))
    check = check_dataset(data, headers_only=True)
    assert [finding.kind for finding in check.findings] == ["grid"]
    assert check.headers_only
    assert check.cases[0].channels == ()


def test_channels_are_examined_one_by_one(tmp_path: Path) -> None:
    """The second of two channels is constant in one case, on another grid in another."""
    rng = np.random.default_rng(0)
    for case in CASES:
        for channel in range(2):
            image = rng.normal(size=SHAPE).astype(np.float32)
            save(tmp_path / "imagesTr" / f"{case}_{channel:04}.nii.gz", image)
        save(label_of(tmp_path, case), boxes(1, 2))
    save(tmp_path / "imagesTr" / "case_a_0001.nii.gz", np.zeros(SHAPE, np.int16))
    save(tmp_path / "imagesTr" / "case_b_0001.nii.gz", np.zeros((5, 6, 7), np.int16))
    (tmp_path / "imagesTr" / "case_c_0001.nii.gz").unlink()
    description = {
        "channel_names": {"0": "T1", "1": "FLAIR"},
        "labels": {"background": 0, "organ": 1, "lesion": 2},
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    check = check_dataset(tmp_path)
    assert "case_a_0001.nii.gz: every voxel of FLAIR is 0" in found(check, "constant channel")[0]
    assert "case_b_0001.nii.gz: shape (5, 6, 7)" in found(check, "grid")[0]
    assert "case_c_0001.nii.gz is missing" in found(check, "files")[0]
    assert len(check.findings) == 3


def test_a_shifted_ct_is_doubted(tmp_path: Path) -> None:
    data = make_data(tmp_path, {case: boxes(1, 2) for case in CASES}, modality="CT")
    check = check_dataset(data)
    # raw_data draws values around 100
    assert len(found(check, "modality")) == len(CASES)
    assert "no voxel is below 0" in found(check, "modality")[0]


def test_a_picture_of_8_bits_is_no_label_map_of_0_and_255(tmp_path: Path) -> None:
    labels = {case: boxes(255) for case in CASES}
    data = make_data(tmp_path, labels)
    (data / "dataset.json").write_text(
        json.dumps({"modality": {"0": "photo"}, "labels": {"0": "background", "255": "organ"}})
    )
    rng = np.random.default_rng(0)
    for case in CASES:
        save(image_of(data, case), rng.integers(0, 256, SHAPE).astype(np.uint8))
    assert check_dataset(data).findings == ()
    exchanged(data)
    assert found(check_dataset(data), "swapped")


def test_classes_that_are_absent_or_rare_are_named(data: Path) -> None:
    for case in CASES[2:]:
        save(label_of(data, case), boxes(1))
    values = json.loads((data / "dataset.json").read_text())
    values["labels"]["3"] = "vessel"
    (data / "dataset.json").write_text(json.dumps(values))
    check = check_dataset(data)
    assert found(check, "absent class") == ["vessel (3): in none of 12 label maps"]
    assert found(check, "rare class") == ["lesion (2): in case_a, case_b alone"]


def test_no_foreground_at_all_is_an_error(tmp_path: Path) -> None:
    empty = np.zeros(SHAPE, np.uint8)
    check = check_dataset(make_data(tmp_path, dict.fromkeys(CASES, empty)))
    assert [finding.kind for finding in check.errors] == ["nothing to learn"]


def test_scans_of_one_patient_are_recognised_by_their_names(tmp_path: Path) -> None:
    names = [f"patient{patient}_scan{scan}" for patient in range(5) for scan in range(2)]
    check = check_dataset(make_data(tmp_path / "two", {name: boxes(1, 2) for name in names}))
    assert "10 cases are scans of 5 patients" in found(check, "one patient")[0]
    names = [f"Task2_{number:03}" for number in range(6)]
    check = check_dataset(make_data(tmp_path / "one", {name: boxes(1, 2) for name in names}))
    assert found(check, "one patient") == []


def test_a_description_that_cannot_be_used_is_a_finding(data: Path) -> None:
    (data / "dataset.json").write_text('{"labels": ')
    check = check_dataset(data)
    assert [finding.kind for finding in check.findings] == ["description"]
    assert not check.ok
    (data / "dataset.json").unlink()
    assert "dataset.json" in check_dataset(data).errors[0].message


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there is no data folder"):
        check_dataset(tmp_path / "nowhere")


def test_an_unexpected_failure_names_the_file_and_spares_the_others(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(voxels: Any, *given: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(examine, "measure_channel", measure)
    check = check_dataset(data)
    assert len(check.errors) == len(CASES)
    assert "case_a.nii.gz: cannot be examined (out of memory)" in check.errors[0].message


def test_the_document_has_every_finding(data: Path) -> None:
    unnamed_label(data)
    document = json.loads(json.dumps(check_dataset(data).to_dict(), allow_nan=False))
    assert document["ok"] is False
    assert document["findings"][0]["kind"] == "label"
    assert document["findings"][0]["way_out"] == KINDS["label"].way_out
    assert document["cases"][1]["classes"][1]["voxels"] == 27


def test_progress_is_told_for_every_case(data: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    check_dataset(data, on_case=lambda *given: steps.append(given))
    assert steps == [("checking", number, 12) for number in range(13)]


def test_measures_agree_with_numpy_and_scipy() -> None:
    rng = np.random.default_rng(3)
    image = rng.normal(50, 20, size=(9, 10, 11)).astype(np.float32)
    label = np.zeros(image.shape, np.uint8)
    label[1:3, 1:3, 1:3] = 1
    label[3, 3, 3] = 1  # touches by a corner
    label[7, 7, 7] = 1
    label[5:8, 1:4, 8:10] = 3
    channel = measure_channel(image, label, 4)
    assert (channel.low, channel.high) == (image.min(), image.max())
    assert channel.mean == pytest.approx(image.mean())
    assert channel.std == pytest.approx(image.std())
    assert channel.foreground == pytest.approx(
        np.percentile(image[label > 0], (0.5, 5, 25, 50, 75, 95, 99.5))
    )
    assert channel.classes[2] is None
    assert channel.classes[3] == pytest.approx(np.median(image[label == 3]))
    affine = np.array([[0, -2, 0, 5], [-3, 0, 0, 5], [0, 0, 4, 5], [0, 0, 0, 1.0]])
    classes = measure_classes(label, affine, 4)
    assert [each.voxels for each in classes] == np.bincount(label.ravel()).tolist()
    assert classes[1].volume == pytest.approx(10 * 24 / 1000)
    assert (classes[1].components, classes[1].largest) == (2, 0.9)
    assert classes[2].centre is None
    # the file's axes are posterior, left, superior
    i, j, k = (np.array(ndimage.center_of_mass(label == 3)) + 0.5) / label.shape
    assert classes[3].centre == pytest.approx((k, 1 - i, 1 - j))
    grid = measure_grid(nib.Nifti1Image(image, affine))
    assert grid.axes == "PLS"
    assert grid.shape == (11, 9, 10)
    assert grid.spacing == pytest.approx((4, 3, 2))


def test_digests_do_not_depend_on_how_a_volume_is_stored() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(-1000, 1000, size=(5, 6, 7)).astype(np.float32)
    stored = nib.Nifti1Image(image, np.diag([1.0, 2.0, 3.0, 1.0]))
    other = stored.as_reoriented(
        nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt("SPL")
        )
    )
    voxels = np.asanyarray(other.dataobj)
    assert content_digest([image], stored.affine) == content_digest([voxels], other.affine)
    assert content_digest([image], stored.affine) != content_digest([image[::-1]], stored.affine)
    assert values_digest([image]) == values_digest([image[::-1]])
    changed = image.copy()
    changed[0, 0, 0] += 1
    assert values_digest([image]) != values_digest([changed])


def test_robust_deviations_of_a_normal_sample_are_standard_deviations() -> None:
    values = np.random.default_rng(0).normal(5, 2, size=20_000)
    assert robust_deviations(values) == pytest.approx((values - 5) / 2, abs=0.1)
