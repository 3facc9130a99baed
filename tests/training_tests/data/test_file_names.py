from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from raw_data import boxes, make_data, save

from training.bundle.prediction import collect_cases
from training.config import ModelTrainingConfig
from training.data import PreprocessedDataset, prepare_dataset, read_layout
from training.data.raw.file_names import image_stem
from training.errors import BundleError, DatasetError


def touch(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return [folder / name for name in names]


def names(cases: dict[str, list[Path]]) -> dict[str, list[str]]:
    return {case: [path.name for path in files] for case, files in cases.items()}


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.nii.gz", "a"),
        ("a.NII.GZ", "a"),
        ("a.b.Nii", "a.b"),
        ("._a.nii.gz", None),
        (".nii.gz", None),
        ("a.nii.gz.part", None),
        ("a.xyz", None),
    ],
)
def test_what_is_an_image_file(name: str, stem: str | None) -> None:
    assert image_stem(Path(name)) == stem


FOLDERS: list[tuple[int, list[str], dict[str, list[str]]]] = [
    # case numbers of four digits, as AMOS22 and WORD have them
    (
        1,
        ["amos_0000.nii.gz", "amos_0002.nii.gz", "amos_0007.nii.gz"],
        {
            "amos_0000": ["amos_0000.nii.gz"],
            "amos_0002": ["amos_0002.nii.gz"],
            "amos_0007": ["amos_0007.nii.gz"],
        },
    ),
    # nnU-Net's names of one channel: every file of the folder ends in _0000
    (
        1,
        ["liver_1_0000.nii.gz", "liver_2_0000.NII.GZ", "._liver_1_0000.nii.gz", "notes.txt"],
        {"liver_1": ["liver_1_0000.nii.gz"], "liver_2": ["liver_2_0000.NII.GZ"]},
    ),
    (
        1,
        ["a_0000.nii.gz", "b.nii"],
        {"a_0000": ["a_0000.nii.gz"], "b": ["b.nii"]},
    ),
    (
        2,
        ["a_0000.nii.gz", "a_0001.nii.gz", "b.nii.gz"],
        {"a": ["a_0000.nii.gz", "a_0001.nii.gz"], "b": ["b.nii.gz"]},
    ),
    # more numbers than channels: they are numbers of cases
    (
        2,
        ["word_0000.nii.gz", "word_0001.nii.gz", "word_0002.nii.gz"],
        {f"word_000{i}": [f"word_000{i}.nii.gz"] for i in range(3)},
    ),
]


@pytest.mark.parametrize(("channels", "files", "expected"), FOLDERS)
def test_a_folder_and_its_single_files_give_the_same_cases(
    tmp_path: Path, channels: int, files: list[str], expected: dict[str, list[str]]
) -> None:
    touch(tmp_path, *files)
    assert names(collect_cases([tmp_path], channels)) == expected
    for case, members in expected.items():
        for member in members:
            assert names(collect_cases([tmp_path / member], channels)) == {case: members}
    listed = [tmp_path / member for members in expected.values() for member in members]
    assert names(collect_cases(listed, channels)) == expected


@pytest.mark.parametrize(("channels", "files", "expected"), FOLDERS)
def test_training_names_cases_as_prediction_does(
    tmp_path: Path, channels: int, files: list[str], expected: dict[str, list[str]]
) -> None:
    touch(tmp_path / "imagesTr", *files)
    touch(tmp_path / "labelsTr", *(f"{case}.nii.gz" for case in expected))
    description = {
        "modality": {str(channel): "MRI" for channel in range(channels)},
        "labels": {"0": "background", "1": "organ"},
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    found = {case.case_id: list(case.images) for case in read_layout(tmp_path).cases}
    assert names(found) == expected
    assert list(found) == sorted(expected)


def test_numbered_files_with_the_channels_inside_are_cases(tmp_path: Path) -> None:
    for number in range(2):
        save(tmp_path / f"word_000{number}.nii.gz", np.zeros((3, 3, 3, 2), dtype=np.int16))
    assert list(collect_cases([tmp_path], 2)) == ["word_0000", "word_0001"]


@pytest.mark.parametrize(
    ("files", "channels", "message"),
    [
        (["a.nii", "a.nii.gz"], 1, r"a\.nii and a\.nii\.gz are two files of the name a"),
        (["a.nii.gz", "a.NII.GZ"], 1, "two files of the name a"),
        (["a.nii.gz", "a_0000.nii.gz", "a_0001.nii.gz"], 2, "are both images of the case a"),
        (["a_0001.nii.gz"], 2, r"the case a lacks .*a_0000\.nii\.gz"),
        (["._a.nii.gz"], 1, "has no image"),
    ],
)
def test_names_that_cannot_be_told_apart_are_refused(
    tmp_path: Path, files: list[str], channels: int, message: str
) -> None:
    touch(tmp_path, *files)
    with pytest.raises(BundleError, match=message):
        collect_cases([tmp_path], channels)


@pytest.mark.parametrize("folder", ["imagesTr", "labelsTr"])
def test_training_refuses_two_files_of_one_name_as_well(tmp_path: Path, folder: str) -> None:
    make_data(tmp_path, LABELS)
    save(tmp_path / folder / "case_2.nii", boxes(1))
    with pytest.raises(DatasetError, match=rf"{folder}/case_2\.nii and case_2\.nii\.gz are two"):
        read_layout(tmp_path)


def test_a_single_file_may_be_named_beside_its_twin(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "a.nii.gz")
    assert names(collect_cases([tmp_path / "a.nii"], 1)) == {"a": ["a.nii"]}


def test_what_stands_in_place_of_an_image_is_said(tmp_path: Path) -> None:
    (tmp_path / "gone.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    (hidden,) = touch(tmp_path, "._a.nii.gz")
    for path, message in (
        (tmp_path / "gone.nii.gz", r"is a broken link to .*nowhere\.nii\.gz"),
        (hidden, "it is a hidden file"),
        (tmp_path / "none.nii.gz", "there is no image"),
    ):
        with pytest.raises(BundleError, match=message):
            collect_cases([path], 1)


LABELS = {f"case_{index}": boxes(1, 2) for index in range(6)}


def listed(*cases: str) -> list[dict[str, str]]:
    return [
        {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}
        for case in cases
    ]


def test_only_listed_cases_are_used_and_the_others_are_said(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data", LABELS, training=listed(*list(LABELS)[:4]))
    dataset = read_layout(folder)
    assert [case.case_id for case in dataset.cases] == list(LABELS)[:4]
    told: list[str] = []
    for _ in range(2):
        split = prepare_dataset(
            folder,
            ModelTrainingConfig(),
            cache_dir=tmp_path / "cache",
            on_warning=told.append,
        )
    assert len(PreprocessedDataset.load(split).cases) == 4
    unused = [line for line in told if "2 files are not used" in line]
    # images and label maps, in the first run and in the second
    assert len(unused) == 4
    assert all("case_4.nii.gz, case_5.nii.gz" in line for line in unused)


def test_a_list_of_nnunet_v1_names_cases_whose_channels_are_files(tmp_path: Path) -> None:
    folder = make_data(tmp_path, LABELS, training=listed(*LABELS))
    for case in LABELS:
        image = folder / "imagesTr" / f"{case}.nii.gz"
        image.rename(image.with_name(f"{case}_0000.nii.gz"))
    assert [case.images[0].name for case in read_layout(folder).cases] == [
        f"{case}_0000.nii.gz" for case in LABELS
    ]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        (r".\imagesTr\{}_0000.nii.gz", r".\labelsTr\{}.nii.gz"),
        ("imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz"),
        ("imagesTr/{}_0001.nii.gz", "labelsTr/{}.nii.gz"),
        ("/elsewhere/imagesTr/{}.nii.gz", "/elsewhere/labelsTr/{}.nii.gz"),
        (["./imagesTr/{}_0000.nii.gz", "./imagesTr/{}_0001.nii.gz"], "./labelsTr/{}.nii.gz"),
    ],
)
def test_a_list_names_all_channels_of_a_case_in_any_way(
    tmp_path: Path, image: str | list[str], label: str
) -> None:
    training = [
        {
            "image": image.format(case)
            if isinstance(image, str)
            else [name.format(case) for name in image],
            "label": label.format(case),
        }
        for case in LABELS
    ]
    folder = make_data(tmp_path, LABELS, training=training)
    path = folder / "dataset.json"
    values = {**json.loads(path.read_text()), "modality": {"0": "T1", "1": "T2"}}
    path.write_text(json.dumps(values))
    for case in LABELS:
        first = folder / "imagesTr" / f"{case}.nii.gz"
        first.rename(first.with_name(f"{case}_0000.nii.gz"))
        touch(folder / "imagesTr", f"{case}_0001.nii.gz")
    dataset = read_layout(folder)
    assert dataset.warnings == ()
    assert {case.case_id: [path.name for path in case.images] for case in dataset.cases} == {
        case: [f"{case}_0000.nii.gz", f"{case}_0001.nii.gz"] for case in LABELS
    }


def test_one_image_is_not_that_of_two_cases(tmp_path: Path) -> None:
    twice = [*listed("case_0"), {**listed("case_1")[0], "image": "imagesTr/case_0.nii.gz"}]
    folder = make_data(tmp_path, LABELS, training=twice)
    with pytest.raises(
        DatasetError, match=r"case_0\.nii\.gz: is the image of case_0 and of case_1"
    ):
        read_layout(folder)


def test_images_in_another_format_are_said_to_be_there(tmp_path: Path) -> None:
    folder = make_data(tmp_path, LABELS)
    for kind in ("imagesTr", "labelsTr"):
        for path in (folder / kind).iterdir():
            path.rename(path.with_name(path.name.replace(".nii.gz", ".xyz")))
    with pytest.raises(DatasetError, match=r"but 6 others such as case_0\.xyz: convert them"):
        read_layout(folder)


def test_names_of_labels_may_be_numbers(tmp_path: Path) -> None:
    folder = make_data(tmp_path, LABELS, labels={"background": 0, "10": 1, "20": 2})
    assert read_layout(folder).labels == ("background", "10", "20")


def drop(folder: Path, *parts: str) -> None:
    folder.joinpath(*parts).unlink()


LISTS: list[tuple[Callable[[Path], object], object, str]] = [
    (lambda folder: None, listed("case_0", "case_0"), "`training` lists case_0 twice"),
    (lambda folder: None, listed("case_9"), r"case_9\.nii\.gz, which dataset\.json lists"),
    (lambda folder: None, ["case_0"], "must list mappings of image and label, but has 'case_0'"),
    (
        lambda folder: drop(folder, "labelsTr", "case_1.nii.gz"),
        listed(*LABELS),
        r"imagesTr/case_1\.nii\.gz: no label map",
    ),
    (
        lambda folder: drop(folder, "imagesTr", "case_1.nii.gz"),
        listed(*LABELS),
        r"labelsTr/case_1\.nii\.gz: no image",
    ),
]


@pytest.mark.parametrize(("spoil", "training", "message"), LISTS)
def test_a_list_that_does_not_fit_is_refused(
    tmp_path: Path, spoil: Callable[[Path], object], training: object, message: str
) -> None:
    folder = make_data(tmp_path, LABELS, training=training)
    spoil(folder)
    with pytest.raises(DatasetError, match=message):
        read_layout(folder)


def test_files_that_nnunet_v2_gives_one_by_one_are_taken(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data", LABELS)
    elsewhere = (folder / "imagesTr").rename(tmp_path / "elsewhere")
    files = {
        f"patient {case}": {
            "images": [str(elsewhere / f"{case}.nii.gz")],
            "label": f"labelsTr/{case}.nii.gz",
        }
        for case in list(LABELS)[:5]
    }
    path = folder / "dataset.json"
    values = {**json.loads(path.read_text()), "dataset": files}
    path.write_text(json.dumps(values))
    split = prepare_dataset(folder, ModelTrainingConfig(), cache_dir=tmp_path / "cache")
    assert sorted(PreprocessedDataset.load(split).cases) == sorted(files)
    values["dataset"]["../x"] = {"images": [], "label": "y"}
    path.write_text(json.dumps(values))
    with pytest.raises(DatasetError, match="`dataset` must map names of cases"):
        read_layout(folder)


def test_a_wrong_count_of_cases_is_said(tmp_path: Path) -> None:
    folder = make_data(tmp_path, LABELS, numTraining=9)
    assert "numTraining: 9, but there are 6 cases" in read_layout(folder).warnings[0]


def test_channel_files_beyond_the_declared_channels_are_named(tmp_path: Path) -> None:
    folder = make_data(tmp_path, LABELS, modality="T1")
    for case in LABELS:
        image = folder / "imagesTr" / f"{case}.nii.gz"
        image.rename(image.with_name(f"{case}_0000.nii.gz"))
    touch(folder / "imagesTr", "case_3_0001.nii.gz")
    with pytest.raises(DatasetError, match=r"case_3.*2 channels, but dataset\.json declares 1"):
        read_layout(folder)
