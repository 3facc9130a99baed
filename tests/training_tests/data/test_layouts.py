from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from training.config import ModelTrainingConfig
from training.data import prepare_dataset, read_layout
from training.errors import DatasetError


def save(path: Path, voxels: Any, affine: Any = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)


def make_dataset(folder: Path, *, cases: int = 5, layout: str = "msd") -> Path:
    rng = np.random.default_rng(0)
    for index in range(cases):
        image = rng.normal(100, 10, size=(12, 11, 10)).astype(np.float32)
        label = np.zeros((12, 11, 10), dtype=np.uint8)
        label[2:6, 2:6, 2:6] = 1
        label[7:9, 7:9, 7:9] = index % 2 * 2
        ending = "" if layout == "msd" else "_0000"
        save(folder / "imagesTr" / f"case_{index}{ending}.nii.gz", image)
        save(folder / "labelsTr" / f"case_{index}.nii.gz", label)
    listed = [
        {"image": f"./imagesTr/case_{i}.nii.gz", "label": f"./labelsTr/case_{i}.nii.gz"}
        for i in range(cases)
    ]
    by_value = {"0": "background", "1": "liver", "2": "tumour"}
    descriptions: dict[str, dict[str, Any]] = {
        "msd": {"name": "Toy", "modality": {"0": "MRI"}, "labels": by_value, "training": listed},
        "nnunet_v1": {"modality": {"0": "CT"}, "labels": by_value, "training": listed},
        "nnunet_v2": {
            "channel_names": {"0": "CT"},
            "labels": {name: int(value) for value, name in by_value.items()},
            "numTraining": cases,
            "file_ending": ".nii.gz",
        },
    }
    (folder / "dataset.json").write_text(json.dumps(descriptions[layout]))
    return folder


@pytest.mark.parametrize(
    ("layout", "modality"), [("msd", "MR"), ("nnunet_v1", "CT"), ("nnunet_v2", "CT")]
)
def test_layouts(tmp_path: Path, layout: str, modality: str) -> None:
    folder = make_dataset(tmp_path / "data", layout=layout)
    (folder / "imagesTr" / "._case_0.nii.gz").write_bytes(b"left by macOS")
    dataset = read_layout(folder)
    assert dataset.labels == ("background", "liver", "tumour")
    assert dataset.modalities == (modality,)
    assert [case.case_id for case in dataset.cases] == [f"case_{i}" for i in range(5)]
    assert all(len(case.images) == 1 for case in dataset.cases)


def test_channel_files_of_nnunet_belong_to_one_case(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, layout="nnunet_v2")
    description = json.loads((folder / "dataset.json").read_text())
    description["channel_names"] = {"0": "T1", "1": "T2"}
    (folder / "dataset.json").write_text(json.dumps(description))
    for index in range(5):
        first = folder / "imagesTr" / f"case_{index}_0000.nii.gz"
        (folder / "imagesTr" / f"case_{index}_0001.nii.gz").write_bytes(first.read_bytes())
    assert {len(case.images) for case in read_layout(folder).cases} == {2}
    (folder / "imagesTr" / "case_3_0001.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"case_3.*1 channels, but dataset.json declares 2"):
        prepare_dataset(folder, ModelTrainingConfig(), cache_dir=tmp_path / "cache")


def describe(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        description = json.loads((folder / "dataset.json").read_text())
        (folder / "dataset.json").write_text(json.dumps({**description, **changes}))

    return change


def not_finite(folder: Path) -> None:
    voxels = np.ones((12, 11, 10), dtype=np.float32)
    voxels[3, 3, 3] = np.nan
    save(folder / "imagesTr" / "case_1.nii.gz", voxels)


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "label missing": (
        lambda folder: (folder / "labelsTr" / "case_1.nii.gz").unlink(),
        r"case_1\.nii\.gz: no label map",
    ),
    "image missing": (
        lambda folder: (folder / "imagesTr" / "case_1.nii.gz").unlink(),
        r"case_1\.nii\.gz: no image",
    ),
    "shape": (
        lambda folder: save(
            folder / "labelsTr" / "case_1.nii.gz", np.zeros((12, 11, 9), dtype=np.uint8)
        ),
        r"case_1\.nii\.gz: shape \(12, 11, 9\) differs from \(12, 11, 10\)",
    ),
    "affine": (
        lambda folder: save(
            folder / "labelsTr" / "case_1.nii.gz",
            np.zeros((12, 11, 10), dtype=np.uint8),
            np.diag([1, 1, 2, 1]),
        ),
        r"case_1\.nii\.gz: its affine differs from that of imagesTr/case_1\.nii\.gz by up to 10 mm",
    ),
    "label value": (
        lambda folder: save(
            folder / "labelsTr" / "case_1.nii.gz", np.full((12, 11, 10), 7, dtype=np.uint8)
        ),
        r"case_1\.nii\.gz: unknown label 7; dataset\.json declares 0 to 2",
    ),
    "not finite": (not_finite, r"case_1\.nii\.gz: 1 voxels are NaN or infinite"),
    "damaged": (
        lambda folder: (folder / "imagesTr" / "case_1.nii.gz").write_bytes(b"\x1f\x8b nothing"),
        r"case_1\.nii\.gz: not a readable NIfTI file",
    ),
    "cut off": (
        lambda folder: (folder / "imagesTr" / "case_1.nii.gz").write_bytes(
            (folder / "imagesTr" / "case_1.nii.gz").read_bytes()[:-900]
        ),
        r"case_1\.nii\.gz: not a readable NIfTI file",
    ),
    "no dataset.json": (lambda folder: (folder / "dataset.json").unlink(), "no dataset.json"),
    "broken dataset.json": (
        lambda folder: (folder / "dataset.json").write_text("{"),
        "cannot be read as JSON",
    ),
    "label without a name": (
        describe(labels={"0": "background", "2": "liver", "4": "tumour"}),
        r"unknown label 1; dataset\.json declares 0, 2, 4: name it there",
    ),
    "no background": (
        describe(labels={"liver": 1, "tumour": 2}),
        "must name the background, whose value is 0, but has liver = 1",
    ),
    "label value too large": (
        describe(labels={"background": 0, "liver": 1, "tumour": 70000}),
        "gives 'tumour' the value 70000, but values must be 65535 or less",
    ),
    "regions": (
        describe(labels={"background": 0, "whole": [1, 2]}),
        "`regions_class_order` must list",
    ),
    "no modality": (describe(modality={}), "names no channel"),
    "no folder": (lambda folder: (folder / "labelsTr").rename(folder / "x"), "labelsTr: this fol"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_by_file(tmp_path: Path, name: str) -> None:
    folder = make_dataset(tmp_path / "data")
    spoil, message = WRONG[name]
    spoil(folder)
    with pytest.raises(DatasetError, match=message):
        prepare_dataset(folder, ModelTrainingConfig(), cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("data-*/dataset.json"))


def test_problems_of_all_cases_are_reported_at_once(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "data")
    for name in ("shape", "label value"):
        WRONG[name][0](folder)
        other = folder / "labelsTr" / "case_1.nii.gz"
        other.rename(folder / "labelsTr" / f"case_{2 + (name == 'shape')}.nii.gz")
        save(other, np.zeros((12, 11, 10), dtype=np.uint8))
    not_finite(folder)
    with pytest.raises(DatasetError, match="3 problems") as error:
        prepare_dataset(folder, ModelTrainingConfig(), cache_dir=tmp_path / "cache")
    assert all(f"case_{index}" in str(error.value) for index in (1, 2, 3))


@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_a_folder_without_data_says_what_is_expected(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / kind
    if kind == "empty":
        folder.mkdir()
    with pytest.raises(DatasetError, match="Medical Segmentation Decathlon"):
        read_layout(folder)


def test_a_folder_without_cases_is_refused(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, cases=0)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir()
    with pytest.raises(DatasetError, match="holds no image"):
        read_layout(folder)
