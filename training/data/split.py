"""Splits of cases into training, validation and test: by share, or nnU-Net's folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from training.config import ModelTrainingConfig
from training.data.errors import DatasetError

SPLITS = ("train", "val", "test")

NNUNET_SEED = 12345
"""Seed of nnU-Net's folds."""


def split_name(config: ModelTrainingConfig) -> str:
    """Name of the split that a config asks for: all that it depends on but the cases."""
    parts = [f"test-{config.held_out_share!r}"] if config.held_out_share else []
    if config.fold is None:
        parts.append(f"val-{config.val_fraction!r}")
    else:
        parts.append(f"fold-{config.fold}-of-{config.num_folds}")
    if config.held_out_share or config.fold is None:
        parts.append(f"seed-{config.split_seed}")
    return "-".join(parts)


def split_cases(
    voxel_counts: Mapping[str, Sequence[int]], config: ModelTrainingConfig
) -> dict[str, list[str]]:
    """Split cases as a config says.

    Test cases are drawn first and depend on `test_fraction` and `split_seed` alone. Of the
    others, validation cases are a fold where `config.fold` is set, and a stratified share
    elsewhere.

    Args:
        voxel_counts: Voxels of each class, by case.
        config: Its split settings are used.

    Returns:
        Case names of `train`, `val` and `test`, each sorted.

    Raises:
        DatasetError: if no case would be left for training, or for a fold.
    """
    if config.fold is None:
        return stratified_split(
            voxel_counts,
            val_fraction=config.val_fraction,
            test_fraction=config.held_out_share,
            seed=config.split_seed,
        )
    test = held_out_cases(voxel_counts, config)
    rest = [case for case in voxel_counts if case not in set(test)]
    train, val = kfold_split(rest, fold=config.fold, num_folds=config.num_folds)
    return {"train": train, "val": val, "test": test}


def held_out_cases(
    voxel_counts: Mapping[str, Sequence[int]], config: ModelTrainingConfig
) -> list[str]:
    """The test cases of a config, whatever its validation cases are."""
    number = _number_of_test_cases(len(voxel_counts), config.held_out_share)
    rng = np.random.default_rng(config.split_seed)
    return sorted(_draw(_ordered(voxel_counts), number, rng))


def kfold_split(
    cases: Sequence[str], *, fold: int, num_folds: int, seed: int = NNUNET_SEED
) -> tuple[list[str], list[str]]:
    """nnU-Net's cross-validation split: scikit-learn's shuffled `KFold` over sorted names.

    Args:
        cases: Names of the cases, in any order.
        fold: Which fold is for validation, from 0.
        num_folds: Number of folds; nnU-Net has 5.
        seed: Seed of the shuffling.

    Returns:
        Names for training and for validation, each sorted.

    Raises:
        DatasetError: if there are fewer cases than folds.
    """
    if len(cases) < num_folds:
        raise DatasetError(
            f"{len(cases)} cases are too few for {num_folds} folds: lower num_folds, or add cases"
        )
    ordered = sorted(cases)
    shuffled = np.arange(len(ordered))
    np.random.RandomState(seed).shuffle(shuffled)
    held_out = set(np.array_split(shuffled, num_folds)[fold].tolist())
    train = [case for index, case in enumerate(ordered) if index not in held_out]
    return train, [ordered[index] for index in sorted(held_out)]


def stratified_split(
    voxel_counts: Mapping[str, Sequence[int]],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> dict[str, list[str]]:
    """Split cases so that each part has its share of every kind of case.

    Cases are ordered by the labels they hold and by the volume of their foreground; the
    order is cut into as many runs as a part needs cases, and one case of each run is drawn.

    Args:
        voxel_counts: Voxels of each class, by case.
        val_fraction: Share of validation cases; there is at least one.
        test_fraction: Share of test cases; unless it is 0 there is at least one.
        seed: Seed of the draw.

    Returns:
        Case names of `train`, `val` and `test`, each sorted.

    Raises:
        DatasetError: if no case would be left for training.
    """
    rng = np.random.default_rng(seed)
    total = len(voxel_counts)
    ordered = _ordered(voxel_counts)
    num_test = _number_of_test_cases(total, test_fraction)
    num_val = max(1, round(total * val_fraction))
    if num_val + num_test >= total:
        raise DatasetError(
            f"{total} cases are too few: {num_val} for validation and {num_test} for testing "
            "leave none for training; add cases, or set test_fraction: 0"
        )
    test = _draw(ordered, num_test, rng)
    rest = [case for case in ordered if case not in test]
    val = _draw(rest, num_val, rng)
    train = [case for case in rest if case not in val]
    return {"train": sorted(train), "val": sorted(val), "test": sorted(test)}


def _ordered(voxel_counts: Mapping[str, Sequence[int]]) -> list[str]:
    return sorted(
        voxel_counts,
        key=lambda case: (
            [count > 0 for count in voxel_counts[case]],
            sum(voxel_counts[case][1:]),
            case,
        ),
    )


def _number_of_test_cases(total: int, test_fraction: float) -> int:
    return max(1, round(total * test_fraction)) if test_fraction > 0 else 0


def _draw(ordered: Sequence[str], number: int, rng: np.random.Generator) -> set[str]:
    """One case of each of `number` equal runs."""
    runs = np.array_split(np.arange(len(ordered)), number) if number else []
    return {ordered[int(rng.choice(run))] for run in runs}
