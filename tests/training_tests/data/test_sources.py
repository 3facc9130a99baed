"""Data of other layouts, converted to nnU-Net's: small sources of each kind, read back."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image
from raw_data import SHAPE, boxes, save

from training.config import ModelTrainingConfig
from training.data import read_layout
from training.data.prepared.split_rules import split_of_file
from training.data.sources import convert as module
from training.data.sources.convert import ConvertedData, convert_dataset
from training.data.sources.kinds import SOURCES
from training.data.sources.recognise import source_module
from training.data.sources.source import Request
from training.data.statistics.check import check_dataset
from training.errors import DatasetError

AFFINE = np.array([[-1.5, 0, 0, 20], [0, -1.5, 0, 30], [0, 0, 3, -50], [0, 0, 0, 1.0]])


def ct(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 300, SHAPE).astype(np.int16)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def voxels(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


@pytest.fixture
def totalsegmentator(tmp_path: Path) -> Path:
    folder = tmp_path / "Totalsegmentator_small"
    rows = ["image_id;age;split"]
    for number in range(5):
        case = folder / f"s{number:04}"
        save(case / "ct.nii.gz", ct(number), AFFINE)
        label = boxes(1, 2)
        for value, name in ((1, "liver"), (2, "spleen")):
            save(
                case / "segmentations" / f"{name}.nii.gz", (label == value).astype(np.uint8), AFFINE
            )
        save(case / "segmentations" / "aorta.nii.gz", np.zeros(SHAPE, np.uint8), AFFINE)
        rows.append(
            f"s{number:04};60;{'train' if number < 3 else 'val' if number == 3 else 'test'}"
        )
    (folder / "meta.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    folder = tmp_path / "bids"
    for number in range(3):
        subject = f"sub-{number:02}"
        for session in ("1", "2"):
            name = f"{subject}_ses-{session}"
            anat = folder / subject / f"ses-{session}" / "anat"
            for suffix in ("T1w", "FLAIR", "ce-gad_T1w"):
                save(anat / f"{name}_{suffix}.nii.gz", ct(number) + 2000, AFFINE)
            derived = folder / "derivatives" / "manual" / subject / f"ses-{session}" / "anat"
            save(derived / f"{name}_dseg.nii.gz", boxes(1, 4), AFFINE)
    (folder / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.8.0"}')
    (folder / "derivatives" / "manual" / "dseg.tsv").write_text(
        "index\tname\n0\tBackground\n1\tcore\n4\tedge\n"
    )
    return folder


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    rows = ["image;label;case;fold"]
    for number in range(4):
        save(folder / f"scans/p{number}/image.nii.gz", ct(number), AFFINE)
        save(folder / f"scans/p{number}/label.nii.gz", boxes(1, 2), AFFINE)
        rows.append(
            f"scans/p{number}/image.nii.gz;scans/p{number}/label.nii.gz;p{number};{number % 2}"
        )
    (folder / "cases.csv").write_text("\n".join(rows))
    return folder / "cases.csv"


@pytest.fixture
def datalist(tmp_path: Path) -> Path:
    folder = tmp_path / "monai"
    entries = []
    for number in range(4):
        files = [f"images/p{number}_t2.nii.gz", f"images/p{number}_adc.nii.gz"]
        for file in files:
            save(folder / file, ct(number) + 2000, AFFINE)
        save(folder / f"labels/p{number}.nii.gz", boxes(1, 2).astype(np.float32), AFFINE)
        entries.append({"image": files, "label": f"labels/p{number}.nii.gz", "fold": number // 2})
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "name": "Prostate",
                "modality": {"0": "T2", "1": "ADC"},
                "labels": {"0": "background", "1": "zone", "2": "tumour"},
                "training": entries,
                "testing": ["images/p0_t2.nii.gz"],
            }
        )
    )
    return folder / "dataset.json"


def read_back(converted: ConvertedData) -> Any:
    """The data as a study reads them; nothing is wrong with them."""
    check = check_dataset(converted.folder)
    assert check.errors == ()
    return read_layout(converted.folder)


def test_masks_of_totalsegmentator_become_one_label_map(
    totalsegmentator: Path, tmp_path: Path
) -> None:
    before = digests(totalsegmentator)
    converted = convert_dataset(totalsegmentator, tmp_path / "out")
    dataset = read_back(converted)
    assert converted.kind == "totalsegmentator"
    assert dataset.labels == ("background", "aorta", "liver", "spleen")
    assert dataset.channels == ("CT",)
    assert dataset.modalities == ("CT",)
    assert [case.case_id for case in dataset.cases] == [f"s{number:04}" for number in range(5)]
    stored = nib.load(tmp_path / "out" / "labelsTr" / "s0001.nii.gz")
    assert (np.asanyarray(stored.dataobj) == np.array([0, 2, 3])[boxes(1, 2)]).all()
    assert np.allclose(stored.affine, AFFINE)
    image = tmp_path / "out" / "imagesTr" / "s0001_0000.nii.gz"
    assert image.read_bytes() == (totalsegmentator / "s0001" / "ct.nii.gz").read_bytes()
    folds = json.loads((tmp_path / "out" / "splits_final.json").read_text())
    assert folds == [{"train": ["s0000", "s0001", "s0002"], "val": ["s0003"], "test": ["s0004"]}]
    config = ModelTrainingConfig(splits_file=tmp_path / "out" / "splits_final.json", fold=0)
    assert split_of_file([case.case_id for case in dataset.cases], config) == folds[0]
    assert digests(totalsegmentator) == before


def test_classes_are_chosen_and_in_the_order_of_the_choice(
    totalsegmentator: Path, tmp_path: Path
) -> None:
    request = Request(classes=("spleen", "liver"))
    dataset = read_back(convert_dataset(totalsegmentator, tmp_path / "out", request=request))
    assert dataset.labels == ("background", "spleen", "liver")
    with pytest.raises(DatasetError, match="no mask of 'splen'; did you mean 'spleen'"):
        convert_dataset(totalsegmentator, tmp_path / "b", request=Request(classes=("splen",)))


def test_overlapping_masks_are_named_and_follow_the_rule(
    totalsegmentator: Path, tmp_path: Path
) -> None:
    both = boxes(1, 2) > 0
    save(
        totalsegmentator / "s0002" / "segmentations" / "spleen.nii.gz",
        both.astype(np.uint8),
        AFFINE,
    )
    with pytest.raises(DatasetError, match="s0002: spleen and liver share 27 voxels") as error:
        convert_dataset(totalsegmentator, tmp_path / "out")
    assert "--overlap first" in str(error.value)
    assert not (tmp_path / "out" / "dataset.json").exists()
    for rule, value in (("first", 2), ("last", 3)):
        folder = tmp_path / rule
        converted = convert_dataset(totalsegmentator, folder, overlap=rule)  # type: ignore[arg-type]
        assert "spleen and liver share 27 voxels" in converted.notes[-1]
        label = voxels(folder / "labelsTr" / "s0002.nii.gz")
        assert set(np.unique(label[boxes(1) == 1])) == {value}


def test_what_is_left_out_of_totalsegmentator_is_said(
    totalsegmentator: Path, tmp_path: Path
) -> None:
    (totalsegmentator / "s0000" / "ct.nii.gz").unlink()
    (totalsegmentator / "s0001" / "segmentations" / "liver.nii.gz").unlink()
    converted = convert_dataset(totalsegmentator, tmp_path / "out")
    assert converted.cases == ("s0001", "s0002", "s0003", "s0004")
    notes = "\n".join(converted.notes)
    assert "s0000: has no ct.nii.gz and no mri.nii.gz" in notes
    assert "s0001 has no mask of liver: nothing is learnt of that class from it" in notes
    # what was not drawn is not background, also where the conversion is taken up again
    written = converted.folder / "dataset.json"
    for _ in range(2):
        dataset = read_layout(converted.folder)
        by_case = {case.case_id: case.labelled for case in dataset.cases}
        expected = [name for name in dataset.labels[1:] if name != "liver"]
        assert [dataset.labels[label] for label in by_case["s0001"] or () if label] == expected
        assert by_case["s0002"] is None
        first = written.read_bytes()
        written.unlink()
        convert_dataset(totalsegmentator, tmp_path / "out")
        assert written.read_bytes() == first
    assert (converted.folder / "splits_final.json").is_file()


def test_a_probability_is_not_a_mask(totalsegmentator: Path, tmp_path: Path) -> None:
    soft = np.linspace(0, 1, np.prod(SHAPE)).reshape(SHAPE).astype(np.float32)
    save(totalsegmentator / "s0001" / "segmentations" / "liver.nii.gz", soft, AFFINE)
    with pytest.raises(DatasetError, match=r"liver.nii.gz: a mask has one value beside 0"):
        convert_dataset(totalsegmentator, tmp_path / "out")


def test_label_maps_of_bids_are_named_by_their_table(bids: Path, tmp_path: Path) -> None:
    converted = convert_dataset(bids, tmp_path / "out")
    dataset = read_back(converted)
    assert converted.kind == "bids"
    assert dataset.channels == ("FLAIR", "T1w", "ce-gad_T1w")
    assert dataset.labels == ("Background", "core", "edge")
    assert dataset.label_values == (0, 1, 4)
    assert dataset.cases[1].case_id == "sub-00_ses-2"
    assert len(dataset.cases[1].images) == 3


def test_channels_of_bids_are_chosen_and_cases_without_them_are_left_out(
    bids: Path, tmp_path: Path
) -> None:
    (bids / "sub-01" / "ses-1" / "anat" / "sub-01_ses-1_FLAIR.nii.gz").unlink()
    converted = convert_dataset(bids, tmp_path / "common")
    assert converted.channels == ("T1w", "ce-gad_T1w")
    assert any("FLAIR is not there of every labelled case" in note for note in converted.notes)
    request = Request(channels=("T1w", "FLAIR"))
    converted = convert_dataset(bids, tmp_path / "chosen", request=request)
    assert len(converted.cases) == 5
    assert any("sub-01_ses-1 lacks a channel" in note for note in converted.notes)
    with pytest.raises(DatasetError, match="no image 'T2w'"):
        convert_dataset(bids, tmp_path / "none", request=Request(channels=("T2w",)))


def test_masks_of_bids_are_classes(bids: Path, tmp_path: Path) -> None:
    for path in bids.rglob("*_dseg.nii.gz"):
        for value, name in ((1, "core"), (4, "edge")):
            mask = path.with_name(path.name.replace("dseg", f"label-{name}_mask"))
            save(mask, (boxes(1, 4) == value).astype(np.uint8) * np.uint8(255), AFFINE)
        path.unlink()
    (bids / "sub-02" / "ses-1" / "anat" / "sub-02_ses-1_T1w.nii.gz").unlink()
    request = Request(channels=("T1w",))
    dataset = read_back(convert_dataset(bids, tmp_path / "out", request=request))
    assert dataset.labels == ("background", "core", "edge")
    assert len(dataset.cases) == 5
    label = voxels(tmp_path / "out" / "labelsTr" / "sub-00_ses-1.nii.gz")
    assert (label == np.array([0, 1, 0, 0, 2])[boxes(1, 4)]).all()


def test_two_label_maps_of_one_case_are_named(bids: Path, tmp_path: Path) -> None:
    save(
        bids / "derivatives" / "other" / "sub-00" / "ses-1" / "anat" / "sub-00_ses-1_dseg.nii.gz",
        boxes(1),
        AFFINE,
    )
    with pytest.raises(DatasetError, match="both label maps of sub-00_ses-1"):
        convert_dataset(bids, tmp_path / "out")


def test_a_table_is_read_with_its_folds(csv: Path, tmp_path: Path) -> None:
    request = Request(channels=("CT",), labels={"organ": 1, "lesion": 2})
    converted = convert_dataset(csv, tmp_path / "out", request=request)
    dataset = read_back(converted)
    assert (converted.kind, converted.folds) == ("csv", 2)
    assert dataset.labels == ("background", "organ", "lesion")
    assert json.loads((tmp_path / "out" / "splits_final.json").read_text()) == [
        {"train": ["p1", "p3"], "val": ["p0", "p2"]},
        {"train": ["p0", "p2"], "val": ["p1", "p3"]},
    ]
    # the folder of the table stands for it
    again = convert_dataset(csv.parent, tmp_path / "again", request=request)
    assert again.cases == converted.cases


def test_a_table_must_name_channels_and_gets_names_of_classes(csv: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"does not name its channels \(1\).*--channels CT"):
        convert_dataset(csv, tmp_path / "out")
    converted = convert_dataset(csv, tmp_path / "out", request=Request(channels=("CT",)))
    assert converted.labels == {"background": 0, "label_1": 1, "label_2": 2}
    assert "`--labels` names them" in converted.notes[0]
    with pytest.raises(DatasetError, match=r"1 channels, but 2 are named"):
        convert_dataset(csv, tmp_path / "two", request=Request(channels=("CT", "PET")))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2", "must name the columns `image` and `label`"),
        ("image,label\nx.nii.gz,", "line 2: no label"),
        ("image,label,split\nx.nii.gz,y.nii.gz,dev", "'dev' of y is none of train, val, test"),
        ("image,label,fold\nx.nii.gz,y.nii.gz,one", "'one' of y is not a whole number"),
        ("image,label\nx.nii.gz,y.nii.gz", "x.nii.gz: is missing"),
        ("image,label\n", "has no labelled case"),
    ],
)
def test_a_table_that_cannot_be_used_names_the_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "cases.csv"
    path.write_text(text)
    with pytest.raises(DatasetError) as error:
        convert_dataset(path, tmp_path / "out", request=Request(channels=("CT",)))
    assert words in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_datalist_is_read_with_channels_labels_and_folds(datalist: Path, tmp_path: Path) -> None:
    converted = convert_dataset(datalist, tmp_path / "out")
    dataset = read_back(converted)
    assert converted.kind == "datalist"
    assert dataset.name == "Prostate"
    assert dataset.channels == ("T2", "ADC")
    assert dataset.labels == ("background", "zone", "tumour")
    assert json.loads((tmp_path / "out" / "splits_final.json").read_text())[1] == {
        "train": ["p0", "p1"],
        "val": ["p2", "p3"],
    }
    assert any("`testing`" in note or "testing lists 1" in note for note in converted.notes)


def test_a_validation_list_is_one_fold(datalist: Path, tmp_path: Path) -> None:
    content = json.loads(datalist.read_text())
    for entry in content["training"]:
        del entry["fold"]
    content["validation"] = [content["training"].pop()]
    datalist.write_text(json.dumps(content))
    converted = convert_dataset(datalist, tmp_path / "out")
    assert converted.folds == 1
    assert json.loads((tmp_path / "out" / "splits_final.json").read_text()) == [
        {"train": ["p0", "p1", "p2"], "val": ["p3"]}
    ]


def test_files_of_one_name_are_told_apart_by_their_folders(csv: Path, tmp_path: Path) -> None:
    entries = [
        {"image": f"scans/p{number}/image.nii.gz", "label": f"scans/p{number}/label.nii.gz"}
        for number in range(4)
    ]
    path = csv.with_name("list.json")
    path.write_text(json.dumps({"training": entries}))
    converted = convert_dataset(path, tmp_path / "out", request=Request(channels=("CT",)))
    assert converted.cases == ("p0_label", "p1_label", "p2_label", "p3_label")


def test_files_of_other_formats_become_nifti_with_the_same_places(
    csv: Path, tmp_path: Path
) -> None:
    source = csv.parent / "scans" / "p1"
    image = sitk.ReadImage(str(source / "image.nii.gz"))
    sitk.WriteImage(image, str(source / "image.nrrd"))
    sitk.WriteImage(sitk.ReadImage(str(source / "label.nii.gz")), str(source / "label.mha"))
    text = csv.read_text().replace("p1/image.nii.gz", "p1/image.nrrd")
    csv.write_text(text.replace("p1/label.nii.gz", "p1/label.mha"))
    converted = convert_dataset(csv, tmp_path / "out", request=Request(channels=("CT",)))
    read_back(converted)
    for name, original in (("imagesTr/p1_0000", "image"), ("labelsTr/p1", "label")):
        before = nib.load(source / f"{original}.nii.gz")
        after = nib.load(tmp_path / "out" / f"{name}.nii.gz")
        assert np.allclose(after.affine, before.affine, atol=1e-4)
        assert (np.asanyarray(after.dataobj) == np.asanyarray(before.dataobj)).all()


def test_channels_in_one_file_become_files(csv: Path, tmp_path: Path) -> None:
    for number in range(4):
        path = csv.parent / f"scans/p{number}/image.nii.gz"
        save(path, np.stack([ct(number), ct(number + 9)], axis=-1), AFFINE)
    converted = convert_dataset(csv, tmp_path / "out", request=Request(channels=("T1", "T2")))
    dataset = read_back(converted)
    assert [path.name for path in dataset.cases[2].images] == ["p2_0000.nii.gz", "p2_0001.nii.gz"]
    assert (voxels(dataset.cases[2].images[1]) == ct(11)).all()
    assert nib.load(dataset.cases[2].images[1]).get_data_dtype() == np.int16


def test_pictures_stay_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = ["image,label"]
    for number in range(3):
        colours = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(colours).save(tmp_path / f"photo{number}.png")
        mask = np.zeros((20, 30), np.uint8)
        mask[5:10, 5:10] = 255
        Image.fromarray(mask).save(tmp_path / f"mask{number}.png")
        rows.append(f"photo{number}.png,mask{number}.png")
    (tmp_path / "cases.csv").write_text("\n".join(rows))
    request = Request(channels=("red", "green", "blue"), labels={"cell": 255})
    converted = convert_dataset(tmp_path / "cases.csv", tmp_path / "out", request=request)
    dataset = read_layout(converted.folder)
    assert dataset.label_values == (0, 255)
    assert dataset.cases[0].label.suffix == ".png"
    assert check_dataset(converted.folder).errors == ()


def test_links_lead_to_the_source_and_only_where_a_file_stays(
    totalsegmentator: Path, tmp_path: Path
) -> None:
    converted = convert_dataset(totalsegmentator, tmp_path / "out", link=True)
    image = tmp_path / "out" / "imagesTr" / "s0000_0000.nii.gz"
    assert image.is_symlink()
    assert image.resolve() == (totalsegmentator / "s0000" / "ct.nii.gz").resolve()
    assert not (tmp_path / "out" / "labelsTr" / "s0000.nii.gz").is_symlink()
    read_back(converted)


def test_a_conversion_that_was_cut_off_goes_on(
    totalsegmentator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, done = module.write_case, []

    def interrupted(case: Any, target: Any) -> list[str]:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(case.case_id)
        return write(case, target)

    monkeypatch.setattr(module, "write_case", interrupted)
    monkeypatch.setattr(module, "case_threads", lambda cases, size: 1)
    with pytest.raises(KeyboardInterrupt):
        convert_dataset(totalsegmentator, tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()
    first = tmp_path / "out" / "labelsTr" / "s0000.nii.gz"
    stamp = first.stat().st_mtime_ns
    monkeypatch.setattr(module, "write_case", write)
    with pytest.raises(DatasetError, match="was begun with other overlap"):
        convert_dataset(totalsegmentator, tmp_path / "out", overlap="last")
    read_back(convert_dataset(totalsegmentator, tmp_path / "out"))
    assert first.stat().st_mtime_ns == stamp
    whole = convert_dataset(totalsegmentator, tmp_path / "whole")
    assert set(digests(tmp_path / "out")) == set(digests(whole.folder))
    assert (
        digests(tmp_path / "out")["labelsTr/s0004.nii.gz"]
        == (digests(whole.folder)["labelsTr/s0004.nii.gz"])
    )


def test_all_problems_are_listed_and_mended_cases_go_on(
    totalsegmentator: Path, tmp_path: Path
) -> None:
    masks = totalsegmentator / "s0001" / "segmentations" / "liver.nii.gz"
    save(masks, np.zeros((3, 3, 3), np.uint8), AFFINE)
    broken = totalsegmentator / "s0003" / "ct.nii.gz"
    content = broken.read_bytes()
    broken.write_bytes(b"no image")
    with pytest.raises(DatasetError, match="have 2 problems") as error:
        convert_dataset(totalsegmentator, tmp_path / "out")
    assert "s0001/segmentations/liver.nii.gz: shape (3, 3, 3)" in str(error.value)
    assert "s0003/ct.nii.gz: not a readable" in str(error.value)
    broken.write_bytes(content)
    save(masks, (boxes(1, 2) == 1).astype(np.uint8), AFFINE)
    read_back(convert_dataset(totalsegmentator, tmp_path / "out"))


def test_nothing_that_is_there_is_overwritten(csv: Path, tmp_path: Path) -> None:
    request = Request(channels=("CT",))
    convert_dataset(csv, tmp_path / "out", request=request)
    before = digests(tmp_path / "out")
    with pytest.raises(DatasetError, match="is there already, and is not overwritten"):
        convert_dataset(csv, tmp_path / "out", request=request)
    assert digests(tmp_path / "out") == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    with pytest.raises(DatasetError, match="is there already"):
        convert_dataset(csv, other, request=request)
    with pytest.raises(DatasetError, match="of which nothing is changed"):
        convert_dataset(csv.parent, csv.parent / "out", request=request)
    with pytest.raises(DatasetError, match="is a file"):
        convert_dataset(csv, other / "mine.txt", request=request)


def test_an_unknown_source_is_told_what_was_looked_for(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises(DatasetError, match="has no layout that is known") as error:
        convert_dataset(folder, tmp_path / "out")
    for kind in SOURCES:
        assert f"{kind}: {source_module(kind).LOOKED_FOR}" in str(error.value)
    with pytest.raises(DatasetError, match="is missing"):
        convert_dataset(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(DatasetError, match="not of the layout bids"):
        convert_dataset(folder, tmp_path / "out", kind="bids")
    with pytest.raises(DatasetError, match="no layout 'bidz'; did you mean 'bids'"):
        convert_dataset(folder, tmp_path / "out", kind="bidz")


def test_data_that_a_study_reads_need_no_conversion(csv: Path, tmp_path: Path) -> None:
    converted = convert_dataset(csv, tmp_path / "out", request=Request(channels=("CT",)))
    with pytest.raises(DatasetError, match="needs no conversion: check it with `tune data check"):
        convert_dataset(converted.folder, tmp_path / "again")


def test_a_folder_of_two_layouts_asks_which(csv: Path, tmp_path: Path) -> None:
    (csv.parent / "list.json").write_text('{"training": []}')
    with pytest.raises(DatasetError, match=r"several layouts \(csv, datalist\).*--from"):
        convert_dataset(csv.parent, tmp_path / "out")
    request = Request(channels=("CT",))
    assert convert_dataset(csv.parent, tmp_path / "out", kind="csv", request=request).cases


def unnamed_value(csv: Path) -> None:
    save(csv.parent / "scans/p2/label.nii.gz", boxes(1, 7), AFFINE)


def interpolated(csv: Path) -> None:
    save(csv.parent / "scans/p2/label.nii.gz", boxes(1).astype(np.float32) * 0.4, AFFINE)


def elsewhere(csv: Path) -> None:
    save(csv.parent / "scans/p2/label.nii.gz", boxes(1), np.eye(4))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (unnamed_value, ["p2/label.nii.gz: has the values 7", "organ=1", "--labels"]),
        (interpolated, ["p2/label.nii.gz", "whole number", "interpolated"]),
        (elsewhere, ["p2/label.nii.gz", "not on the same grid"]),
    ],
)
def test_a_label_map_that_does_not_fit_is_named(
    csv: Path, tmp_path: Path, spoil: Callable[[Path], None], words: list[str]
) -> None:
    spoil(csv)
    request = Request(channels=("CT",), labels={"organ": 1, "lesion": 2})
    with pytest.raises(DatasetError, match="1 problem") as error:
        convert_dataset(csv, tmp_path / "out", request=request)
    for word in words:
        assert word in str(error.value)


def test_a_full_disk_is_said_and_leaves_no_half_file(
    csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("training.data.sources.write.shutil.copyfileobj", full)
    with pytest.raises(OSError, match="No space"):
        convert_dataset(csv, tmp_path / "out", request=Request(channels=("CT",)))
    assert list((tmp_path / "out" / "imagesTr").iterdir()) == []
