"""A stratified, seeded split of cases into training, validation and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from training.data.errors import DatasetError

SPLITS = ("train", "val", "test")


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
    ordered = sorted(
        voxel_counts,
        key=lambda case: (
            [count > 0 for count in voxel_counts[case]],
            sum(voxel_counts[case][1:]),
            case,
        ),
    )
    num_test = max(1, round(total * test_fraction)) if test_fraction > 0 else 0
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


def _draw(ordered: Sequence[str], number: int, rng: np.random.Generator) -> set[str]:
    """One case of each of `number` equal runs."""
    runs = np.array_split(np.arange(len(ordered)), number) if number else []
    return {ordered[int(rng.choice(run))] for run in runs}
