from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config import ModelTrainingConfig
from training.data.prepared.split import held_out_cases, kfold_split, split_cases, stratified_split
from training.errors import DatasetError


def test_split_is_stratified_seeded_and_disjoint() -> None:
    counts = {f"case_{i:02d}": [1000, 100 + i, 10 * (i % 4 == 0)] for i in range(40)}
    options = {"val_fraction": 0.2, "test_fraction": 0.2}
    splits = stratified_split(counts, **options, seed=0)
    assert splits == stratified_split(dict(reversed(counts.items())), **options, seed=0)
    assert splits != stratified_split(counts, **options, seed=1)
    assert [len(splits[name]) for name in ("train", "val", "test")] == [24, 8, 8]
    assert sorted(chain(*splits.values())) == sorted(counts)
    for cases in splits.values():
        share = np.mean([counts[case][2] > 0 for case in cases])
        assert share == pytest.approx(0.25, abs=0.05)


def test_tiny_datasets_are_split_or_refused() -> None:
    three = {name: [1, 1] for name in "abc"}
    splits = stratified_split(three, val_fraction=0.2, test_fraction=0.2, seed=0)
    assert [len(cases) for cases in splits.values()] == [1, 1, 1]
    two = {name: [1, 1] for name in "ab"}
    assert stratified_split(two, val_fraction=0.2, test_fraction=0, seed=0)["test"] == []
    with pytest.raises(DatasetError, match="2 cases are too few"):
        stratified_split(two, val_fraction=0.2, test_fraction=0.2, seed=0)


NNUNET_FOLDS = {
    7: [[3, 6], [0, 4], [1], [5], [2]],
    23: [
        [3, 8, 10, 17, 19],
        [0, 7, 12, 15, 16],
        [6, 11, 14, 18, 20],
        [9, 13, 21, 22],
        [1, 2, 4, 5],
    ],
}
"""What scikit-learn 1.9.1 gives: KFold(5, shuffle=True, random_state=12345).split(range(n))."""


@pytest.mark.parametrize("cases", NNUNET_FOLDS)
def test_folds_are_those_of_nnunet(cases: int) -> None:
    names = [f"case_{index:03d}" for index in range(cases)]
    for fold, expected in enumerate(NNUNET_FOLDS[cases]):
        train, val = kfold_split(names[::-1], fold=fold, num_folds=5)
        assert val == [names[index] for index in expected]
        assert train == [name for name in names if name not in val]


@given(cases=st.integers(2, 60), num_folds=st.integers(2, 10), seed=st.integers(0, 100))
def test_each_case_is_held_out_once(cases: int, num_folds: int, seed: int) -> None:
    names = [f"{index}" for index in range(cases)]
    if cases < num_folds:
        with pytest.raises(DatasetError, match=f"{cases} cases are too few for {num_folds} folds"):
            kfold_split(names, fold=0, num_folds=num_folds)
        return
    folds = [
        kfold_split(names, fold=fold, num_folds=num_folds, seed=seed) for fold in range(num_folds)
    ]
    assert sorted(chain.from_iterable(val for _, val in folds)) == sorted(names)
    sizes = [len(val) for _, val in folds]
    assert max(sizes) - min(sizes) <= 1
    assert all(sorted(train + val) == sorted(names) for train, val in folds)


COUNTS = {f"case_{i:02d}": [1000, 100 + i % 7, 10 * (i % 4 == 0)] for i in range(40)}


def test_a_fold_holds_all_cases_unless_test_cases_are_asked_for() -> None:
    fold = split_cases(COUNTS, ModelTrainingConfig(fold=2))
    train, val = kfold_split(list(COUNTS), fold=2, num_folds=5)
    assert fold == {"train": train, "val": val, "test": []}
    plain = split_cases(COUNTS, ModelTrainingConfig())
    apart = split_cases(COUNTS, ModelTrainingConfig(fold=2, test_fraction=0.2))
    # the same test cases, whatever the rest is split into
    assert apart["test"] == plain["test"] == held_out_cases(COUNTS, ModelTrainingConfig())
    rest = [case for case in COUNTS if case not in apart["test"]]
    assert (apart["train"], apart["val"]) == kfold_split(rest, fold=2, num_folds=5)
    other = split_cases(COUNTS, ModelTrainingConfig(val_fraction=0.4))
    assert other["test"] == plain["test"]


def test_a_fold_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="fold=5 must be below num_folds=5"):
        ModelTrainingConfig(fold=5)
    assert ModelTrainingConfig(fold=5, num_folds=10).held_out_share == 0
    assert ModelTrainingConfig().held_out_share == 0.2
