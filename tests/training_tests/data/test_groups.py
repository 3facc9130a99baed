from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from raw_data import boxes, make_data

from training.config import ModelTrainingConfig
from training.data import PreprocessedDataset, prepare_dataset
from training.data.prepared.split import (
    held_out_cases,
    kfold_split,
    missing_classes,
    split_cases,
    split_name,
    stratified_split,
)
from training.errors import DatasetError

SCANS = {
    f"patient{patient:02}_scan{scan}": [1000, 100 + patient, 50 * (patient % 2)]
    for patient in range(12)
    for scan in range(1 + patient % 4)
}
BY_PATIENT = r"(patient\d+)_"


def sides(splits: dict[str, list[str]], rule: Any = lambda case: case.split("_")[0]) -> bool:
    """Whether no group is on two sides, and every case on one."""
    groups = [{rule(case) for case in cases} for cases in splits.values()]
    apart = sum(len(group) for group in groups) == len(set(chain(*groups)))
    return apart and sorted(chain(*splits.values())) == sorted(SCANS)


@pytest.mark.parametrize("seed", range(5))
def test_a_group_is_on_one_side_of_every_split(seed: int) -> None:
    for settings_ in ({}, {"fold": 2}, {"fold": 1, "test_fraction": 0.25}, {"val_fraction": 0.4}):
        config = ModelTrainingConfig(groups=BY_PATIENT, split_seed=seed, **settings_)
        splits = split_cases(SCANS, config)
        assert sides(splits)
        assert splits["train"]
        assert splits["val"]
        assert splits["test"] == held_out_cases(SCANS, config)
    # without the rule this very seed separates scans of a patient
    assert not sides(split_cases(SCANS, ModelTrainingConfig(split_seed=seed)))


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=10, max_size=30), seed=st.integers(0, 1000))
def test_groups_keep_to_the_shares(sizes: list[int], seed: int) -> None:
    counts = {f"{g}_{i}": [9, 1] for g, size in enumerate(sizes) for i in range(size)}
    groups = {case: case.split("_")[0] for case in counts}
    splits = stratified_split(counts, val_fraction=0.2, test_fraction=0.2, seed=seed, groups=groups)
    for part in ("val", "test"):
        wanted = max(1, 0.2 * len(counts))
        assert abs(len(splits[part]) - wanted) <= max(2.5, max(sizes))


def test_folds_of_groups_hold_each_group_out_once() -> None:
    folds = [split_cases(SCANS, ModelTrainingConfig(groups=BY_PATIENT, fold=f)) for f in range(5)]
    assert all(sides(fold) for fold in folds)
    assert sorted(chain(*(fold["val"] for fold in folds))) == sorted(SCANS)
    # nnU-Net's folds of the patients
    patients = sorted({case.split("_")[0] for case in SCANS})
    for number, fold in enumerate(folds):
        _, held_out = kfold_split(patients, fold=number, num_folds=5)
        assert sorted({case.split("_")[0] for case in fold["val"]}) == held_out


def test_groups_of_a_csv_file_are_those_of_the_expression(tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    rows = "".join(f"{case}, {case.split('_')[0]}\n" for case in SCANS)
    table.write_text(f"case,group\n{rows}another, x\n", encoding="utf-8-sig")
    by_file = ModelTrainingConfig(groups=str(table))
    assert split_cases(SCANS, by_file) == split_cases(SCANS, ModelTrainingConfig(groups=BY_PATIENT))


@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_tables_of_spreadsheets_are_read(tmp_path: Path, separator: str) -> None:
    table = tmp_path / "groups.csv"
    rows = [
        ["Group", "Age", "Case"],
        *([case.split("_")[0], "5", case] for case in SCANS),
        [""] * 3,
    ]
    table.write_bytes("\r\n".join(separator.join(row) for row in rows).encode("utf-8-sig"))
    by_file = ModelTrainingConfig(groups=str(table))
    assert split_cases(SCANS, by_file) == split_cases(SCANS, ModelTrainingConfig(groups=BY_PATIENT))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("case,group\npatient00_scan0,a\n", "give no group to patient01_scan0, .*every case needs"),
        ("case,group\nx,a\nx,b\n", "line 3: the case x is in the group a and in b"),
        (
            "name,patient\nx,a\n",
            "first line must name the columns `case` and `group`, but is 'name",
        ),
        ("x,a\ny,b\n", "first line must name the columns `case` and `group`, but is 'x,a'"),
        ("", "first line must name the columns"),
        ("case,group\nx,\n", "line 2: a case and its group are needed"),
        ("case,group\n\nx,a\n,,\ny\n", "line 5: a case and its group are needed"),
        (None, r"groups=.*groups\.csv: is missing"),
    ],
)
def test_a_group_file_that_does_not_fit_is_refused(
    tmp_path: Path, rows: str | None, message: str
) -> None:
    table = tmp_path / "groups.csv"
    if rows is not None:
        table.write_text(rows)
    with pytest.raises(DatasetError, match=message):
        split_cases(SCANS, ModelTrainingConfig(groups=str(table)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"groups": r"patient\d+"}, "has 0 groups in parentheses, but needs one"),
        ({"groups": r"(p)(\d+)"}, "has 2 groups in parentheses"),
        ({"groups": "(patient"}, "is not a regular expression"),
        ({"splits_file": "splits_final.json"}, "needs a fold: set e.g. fold: 0"),
        ({"splits_file": "s.json", "fold": 0, "test_fraction": 0.2}, "the file alone says which"),
        ({"mirror_axes": ["depth", 0]}, "names an axis twice"),
        ({"mirror_axes": ["sideways"]}, "'depth', 'height' or 'width'"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelTrainingConfig(**values)
    # more folds than num_folds may stand in a file
    assert ModelTrainingConfig(splits_file="s.json", fold=7).fold == 7


def test_cases_that_the_expression_leaves_out_are_named() -> None:
    with pytest.raises(DatasetError, match="give no group to control_1: every case needs one"):
        split_cases({**SCANS, "control_1": [9, 9, 9]}, ModelTrainingConfig(groups=BY_PATIENT))


def test_too_few_groups_are_refused() -> None:
    two = {f"{patient}_{scan}": [1, 1] for patient in "ab" for scan in range(5)}
    with pytest.raises(DatasetError, match="2 groups of cases are too few"):
        split_cases(two, ModelTrainingConfig(groups="(.)_"))
    with pytest.raises(DatasetError, match="2 groups of cases are too few for 5 folds"):
        split_cases(two, ModelTrainingConfig(groups="(.)_", fold=0))


CASES = [f"c{index}" for index in range(6)]


def write_folds(path: Path, *folds: dict[str, Sequence[str]]) -> Path:
    path.write_text(json.dumps(folds))
    return path


def test_the_folds_of_nnunet_s_file_are_used(tmp_path: Path) -> None:
    path = write_folds(
        tmp_path / "splits_final.json",
        {"train": CASES[2:], "val": CASES[:2]},
        {"train": CASES[:3], "val": CASES[4:], "test": ["c3"]},
    )
    counts = {case: [9, 1] for case in CASES}
    first = ModelTrainingConfig(splits_file=path, fold=0)
    assert split_cases(counts, first) == {"train": CASES[2:], "val": CASES[:2], "test": []}
    second = ModelTrainingConfig(splits_file=path, fold=1)
    assert split_cases(counts, second)["test"] == held_out_cases(counts, second) == ["c3"]
    assert len({split_name(config) for config in (first, second, ModelTrainingConfig(fold=0))}) == 3
    before = split_name(first)
    write_folds(path, {"train": CASES[1:], "val": CASES[:1]})
    assert split_name(first) != before


@pytest.mark.parametrize(
    ("fold", "message"),
    [
        ({"train": CASES, "val": ["c0"]}, "the case c0 comes twice, in train and val"),
        ({"train": [*CASES, "c1"], "val": []}, "the case c1 comes twice, in train and train"),
        ({"train": CASES[1:], "val": ["c0", "c9"]}, "the data have no case c9"),
        ({"train": CASES[2:], "val": ["c0"]}, "c1 of the data are in no part"),
        ({"train": CASES, "val": []}, "no case is in val"),
        ({"training": CASES}, "a split file lists folds"),
        ({"train": CASES, "val": [3]}, "a split file lists folds"),
    ],
)
def test_a_fold_that_contradicts_the_data_is_refused(
    tmp_path: Path, fold: dict[str, Any], message: str
) -> None:
    config = ModelTrainingConfig(splits_file=write_folds(tmp_path / "s.json", fold), fold=0)
    with pytest.raises(DatasetError, match=message):
        split_cases({case: [9, 1] for case in CASES}, config)


def test_a_file_that_separates_a_group_is_refused(tmp_path: Path) -> None:
    path = write_folds(tmp_path / "s.json", {"train": CASES[1:], "val": ["c0"]})
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("case,group\n" + "".join(f"{c},p{i // 2}\n" for i, c in enumerate(CASES)))
    config = ModelTrainingConfig(splits_file=path, fold=0, groups=str(pairs))
    with pytest.raises(DatasetError, match="the group p0 is in train and val"):
        split_cases({case: [9, 1] for case in CASES}, config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "a split file lists folds"),
        ('[{"train": ["a"], "val": ["b"]}]', "fold=3 is not there: its folds are 0 to 0"),
        (None, "is missing"),
    ],
)
def test_a_split_file_that_is_none_is_refused(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "s.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DatasetError, match=rf"s\.json: {message}"):
        split_cases({"a": [1, 1]}, ModelTrainingConfig(splits_file=path, fold=3))


def test_rules_are_part_of_the_cache_and_refused_before_a_volume_is_read(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", {case: boxes(1, 2) for case in CASES})
    cache = tmp_path / "cache"

    def prepare(**values: Any) -> PreprocessedDataset:
        config = ModelTrainingConfig(**values)
        return PreprocessedDataset.load(prepare_dataset(data, config, cache_dir=cache))

    path = write_folds(tmp_path / "s.json", {"train": CASES[1:], "val": CASES[:1]})
    plain, by_file = prepare(fold=0), prepare(splits_file=path, fold=0)
    assert by_file.splits["val"] == ["c0"]
    write_folds(path, {"train": CASES[:5], "val": CASES[5:]})
    again = prepare(splits_file=path, fold=0)
    assert again.splits["val"] == ["c5"]
    assert len({dataset.fingerprint for dataset in (plain, by_file, again)}) == 3
    # folds share the arrays, but test cases are kept out of what the arrays depend on
    assert by_file.array_folder == plain.array_folder == again.array_folder
    write_folds(
        path,
        {"train": CASES[2:], "val": ["c1"], "test": ["c0"]},
        {"train": CASES[:4], "val": ["c4"], "test": ["c5"]},
    )
    tested = [prepare(splits_file=path, fold=fold) for fold in range(2)]
    assert [dataset.splits["test"] for dataset in tested] == [["c0"], ["c5"]]
    assert len({dataset.array_folder for dataset in (plain, *tested)}) == 3
    grouped = prepare(groups="(c[0-3]|c)")
    assert len({dataset.fingerprint for dataset in (grouped, prepare())}) == 2
    read: list[str] = []
    write_folds(path, {"train": CASES[1:], "val": ["zero"]})
    with pytest.raises(DatasetError, match="the data have no case zero"):
        prepare_dataset(
            data,
            ModelTrainingConfig(splits_file=path, fold=0, target_spacing=(2, 2, 2)),
            cache_dir=cache,
            on_case=lambda step, done, total: read.append(step),
        )
    assert not read


@pytest.mark.parametrize("seed", range(20))
def test_a_rare_class_is_in_training_and_in_validation(seed: int) -> None:
    counts = {f"c{i:02}": [1000, 100 + i, 10 * (i in (3, 17))] for i in range(40)}
    splits = split_cases(counts, ModelTrainingConfig(split_seed=seed))
    held = {name: sum(counts[case][2] > 0 for case in cases) for name, cases in splits.items()}
    assert held == {"train": 1, "val": 1, "test": 0}
    assert [len(splits[name]) for name in ("train", "val", "test")] == [24, 8, 8]
    three = {
        case: [*found[:2], 10 * (case in ("c03", "c17", "c30"))] for case, found in counts.items()
    }
    parts = split_cases(three, ModelTrainingConfig(split_seed=seed))
    assert all(any(three[case][2] for case in cases) for cases in parts.values())


def test_many_rare_classes_are_balanced_together() -> None:
    rng = np.random.default_rng(0)
    classes = 12
    counts = {f"c{i:02}": [1000, *[0] * classes] for i in range(40)}
    for label in range(1, classes + 1):
        for case in rng.choice(list(counts), 2 + label % 3, replace=False):
            counts[case][label] = 5
    splits = split_cases(counts, ModelTrainingConfig())
    for label in range(1, classes + 1):
        for part in ("train", "val"):
            assert any(counts[case][label] for case in splits[part]), (label, part)
    assert [len(splits[name]) for name in ("train", "val", "test")] == [24, 8, 8]


def test_classes_that_a_part_lacks_are_said() -> None:
    labels = ["background", "organ", "lesion", "cyst"]
    counts = {case: [99, 9, 0, 0] for case in "abcd"}
    counts["a"] = [99, 9, 9, 0]
    splits = {"train": ["b", "c"], "val": ["d"], "test": ["a"]}
    assert missing_classes(splits, counts, labels) == [
        "no training case has label 2 (lesion), 1 other has: it cannot be learnt",
        "no case has label 3 (cyst): it cannot be learnt, and its scores mean nothing",
    ]
    splits = {"train": ["a", "c"], "val": ["d"], "test": []}
    (line, _) = missing_classes(splits, counts, labels)
    assert line == "no validation case has label 2 (lesion), 1 other has: it is not judged"
    assert missing_classes(splits, counts, labels, target_class=1) == []
    with pytest.raises(DatasetError, match=r"label 3 \(cyst\): nothing can be learnt"):
        missing_classes(splits, counts, labels, target_class=3)


def test_many_classes_that_a_part_lacks_are_said_in_one_line() -> None:
    labels = ["background", *(f"rib {i}" for i in range(1, 31))]
    counts = {case: [99, 9, *[0] * 29] for case in "abcd"}
    counts["a"][2] = 5
    splits = {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    rare, absent = sorted(missing_classes(splits, counts, labels), reverse=True)
    assert rare == "no validation case has label 2 (rib 2), 1 other has: it is not judged"
    assert absent.startswith("no case has any of 28 labels, each of which cannot be learnt")
    assert all(f"label {label} (rib {label})" in absent for label in range(3, 31))


def test_balanced_splits_are_drawn_as_before() -> None:
    """The first draw, from one stream, is kept where it leaves no class out."""
    counts = {f"case_{i:02d}": [1000, 100 + i % 7, 10 * (i % 4 == 0)] for i in range(40)}
    ordered = sorted(
        counts, key=lambda case: ([n > 0 for n in counts[case]], sum(counts[case][1:]), case)
    )
    rng = np.random.default_rng(0)
    expected = {}
    left = ordered
    for name in ("test", "val"):
        runs = np.array_split(np.arange(len(left)), 8)
        expected[name] = sorted(left[int(rng.choice(run))] for run in runs)
        left = [case for case in left if case not in expected[name]]
    found = split_cases(counts, ModelTrainingConfig())
    assert {name: found[name] for name in ("test", "val")} == expected
