"""Splits of cases into training, validation and test: by share, nnU-Net's folds, or a file.

Cases of one group, such as the scans of one patient, are on one side of every split.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.config import ModelTrainingConfig
from training.data.prepared.split_rules import SPLIT_PARTS, groups_of, rules_digest, split_of_file
from training.errors import DatasetError

SPLITS = SPLIT_PARTS

NNUNET_SEED = 12345
"""Seed of nnU-Net's folds."""

DRAWS = 200
"""Draws that are compared where the first leaves a class out of a part."""

EXCHANGES = 2000
"""Exchanges of two cases that are tried where no draw has every class in every part."""


def split_name(config: ModelTrainingConfig) -> str:
    """Name of the split that a config asks for: all that it depends on but the cases.

    Raises:
        DatasetError: if a file that says how to split cannot be read.
    """
    parts = [f"test-{config.held_out_share!r}"] if config.held_out_share else []
    if config.fold is None:
        parts.append(f"val-{config.val_fraction!r}")
    elif config.splits_file is not None:
        parts.append(f"fold-{config.fold}")
    else:
        parts.append(f"fold-{config.fold}-of-{config.num_folds}")
    if config.held_out_share or config.fold is None:
        parts.append(f"seed-{config.split_seed}")
    return "-".join(filter(None, [*parts, rules_digest(config)]))


def split_cases(
    voxel_counts: Mapping[str, Sequence[int]], config: ModelTrainingConfig
) -> dict[str, list[str]]:
    """Split cases as a config says.

    Test cases are drawn first and depend on `test_fraction`, `split_seed` and `groups` alone. Of
    the others, validation cases are a fold where `config.fold` is set, and a stratified share
    elsewhere. With `config.splits_file` the parts are those of a fold of the file.

    Args:
        voxel_counts: Voxels of each class, by case.
        config: Its split settings are used.

    Returns:
        Case names of `train`, `val` and `test`, each sorted.

    Raises:
        DatasetError: if no case would be left for training, or for a fold, or a rule does not
            fit the cases.
    """
    given = split_of_file(list(voxel_counts), config)
    if given is not None:
        return given
    groups = groups_of(voxel_counts, config)
    if config.fold is None:
        return stratified_split(
            voxel_counts,
            val_fraction=config.val_fraction,
            test_fraction=config.held_out_share,
            seed=config.split_seed,
            groups=groups,
        )
    test = held_out_cases(voxel_counts, config)
    rest = [case for case in voxel_counts if case not in set(test)]
    of_rest = sorted({groups[case] for case in rest})
    _, val_groups = kfold_split(
        of_rest, fold=config.fold, num_folds=config.num_folds, unit=_unit(config)
    )
    val = {case for case in rest if groups[case] in set(val_groups)}
    return {"train": sorted(set(rest) - val), "val": sorted(val), "test": test}


def held_out_cases(
    voxel_counts: Mapping[str, Sequence[int]], config: ModelTrainingConfig
) -> list[str]:
    """The test cases of a config, whatever its validation cases are.

    Raises:
        DatasetError: if a rule does not fit the cases.
    """
    given = split_of_file(list(voxel_counts), config)
    if given is not None:
        return given["test"]
    groups = groups_of(voxel_counts, config)
    units = _Units.of(voxel_counts, groups)
    rng = np.random.default_rng(config.split_seed)
    test = _draw_test(units, config.held_out_share, config.split_seed, rng)
    return sorted(case for case, group in groups.items() if group in test)


def missing_classes(
    splits: Mapping[str, Sequence[str]],
    voxel_counts: Mapping[str, Sequence[int]],
    labels: Sequence[str],
    target_class: int | None = None,
    in_files: Mapping[str, Sequence[int]] | None = None,
    values: Sequence[int] | None = None,
) -> list[str]:
    """Say which classes no case of a part has.

    Args:
        splits: Case names of each part.
        voxel_counts: Voxels of each class, by case.
        labels: Name of each class.
        target_class: The one class that is trained, if there is one.
        in_files: Voxels of each class before resampling, by case, where that is another count.
        values: Value of each class in the label files; 0, 1, ... by default.

    Returns:
        A line for each class that cannot be learnt, or is not judged; one for all of many.

    Raises:
        DatasetError: if there is nothing to learn.
    """
    wanted = range(1, len(labels)) if target_class is None else [target_class]
    values = values or range(len(labels))
    held = {part: _holders(voxel_counts, cases, len(labels)) for part, cases in splits.items()}
    before = _holders(in_files or {}, in_files or {}, len(labels))
    if not any(held["train"][label] for label in wanted):
        named = ", ".join(f"{values[label]} ({labels[label]})" for label in wanted)
        after = " after resampling" if any(before[label] for label in wanted) else ""
        raise DatasetError(
            f"no training case has a voxel of label {named}{after}: nothing can be learnt"
        )
    found: dict[tuple[str, str], list[str]] = {}
    for label in wanted:
        total = sum(counts[label] for counts in held.values())
        name = f"label {values[label]} ({labels[label]})"
        others = f", {total} other{' has' if total == 1 else 's have'}"
        if not total:
            lost = f", though {before[label]} had before resampling" if before[label] else ""
            kind = ("no case has", "cannot be learnt, and its scores mean nothing")
            found.setdefault(kind, []).append(name + lost)
        elif not held["train"][label]:
            kind = ("no training case has", "cannot be learnt")
            found.setdefault(kind, []).append(name + others)
        elif not held["val"][label]:
            kind = ("no validation case has", "is not judged")
            found.setdefault(kind, []).append(name + others)
        elif splits.get("test") and not held["test"][label]:
            kind = ("no test case has", "is not tested")
            found.setdefault(kind, []).append(name + others)
    return [line for (who, what), names in found.items() for line in _lines(who, names, what)]


CLASSES_SHOWN = 5
"""Missing classes that have a line each; more have one together."""


def _holders(
    voxel_counts: Mapping[str, Sequence[int]], cases: Iterable[str], classes: int
) -> list[int]:
    """How many of the cases have voxels of each class."""
    return [sum(voxel_counts[case][label] > 0 for case in cases) for label in range(classes)]


def _lines(who: str, names: Sequence[str], what: str) -> list[str]:
    if len(names) <= CLASSES_SHOWN:
        return [f"{who} {name}: it {what}" for name in names]
    return [f"{who} any of {len(names)} labels, each of which {what}: {'; '.join(names)}"]


def kfold_split(
    cases: Sequence[str],
    *,
    fold: int,
    num_folds: int,
    seed: int = NNUNET_SEED,
    unit: str = "cases",
) -> tuple[list[str], list[str]]:
    """nnU-Net's cross-validation split: scikit-learn's shuffled `KFold` over sorted names.

    Args:
        cases: Names of the cases, in any order.
        fold: Which fold is for validation, from 0.
        num_folds: Number of folds; nnU-Net has 5.
        seed: Seed of the shuffling.
        unit: What is split, for the message of an error.

    Returns:
        Names for training and for validation, each sorted.

    Raises:
        DatasetError: if there are fewer cases than folds.
    """
    if len(cases) < num_folds:
        raise DatasetError(
            f"{len(cases)} {unit} are too few for {num_folds} folds: lower num_folds, or add {unit}"
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
    groups: Mapping[str, str] | None = None,
) -> dict[str, list[str]]:
    """Split cases so that each part has its share of every kind of case.

    Cases are ordered by the labels they hold and by the volume of their foreground; the
    order is cut into as many runs as a part needs cases, and one case of each run is drawn.
    Where that leaves a class out of a part, it is drawn again, the best of the draws is taken,
    and cases of it are exchanged. Groups of cases are drawn as one.

    Args:
        voxel_counts: Voxels of each class, by case.
        val_fraction: Share of validation cases; there is at least one.
        test_fraction: Share of test cases; unless it is 0 there is at least one.
        seed: Seed of the draw.
        groups: Group of each case; each is its own by default.

    Returns:
        Case names of `train`, `val` and `test`, each sorted.

    Raises:
        DatasetError: if no case would be left for training.
    """
    groups = groups or {case: case for case in voxel_counts}
    units = _Units.of(voxel_counts, groups)
    total = len(units.names)
    num_test = _number_of_test(total, test_fraction)
    num_val = max(1, round(total * val_fraction))
    if num_val + num_test >= total:
        unit = "cases" if total == len(voxel_counts) else "groups of cases"
        raise DatasetError(
            f"{total} {unit} are too few: {num_val} for validation and {num_test} for testing "
            f"leave none for training; add {unit}, or set test_fraction: 0"
        )
    rng = np.random.default_rng(seed)
    test = _draw_test(units, test_fraction, seed, rng)
    rest = [name for name in units.names if name not in test]
    held = units.holders(rest)

    def worth(val: Collection[str]) -> tuple[float, ...]:
        """Classes missing in training, then in validation, then cases too many or too few."""
        in_val = units.holders(val)
        return (
            int(((held >= 1) & (held == in_val)).sum()),
            int(((held >= 2) & (in_val == 0)).sum()),
            units.off_share(val, val_fraction),
        )

    val = _best_draw(rest, num_val, [seed, 1], rng, worth)
    sides = dict.fromkeys(test, "test") | dict.fromkeys(val, "val")
    parts: dict[str, list[str]] = {name: [] for name in SPLITS}
    for case in sorted(voxel_counts):
        parts[sides.get(groups[case], "train")].append(case)
    return parts


@dataclass(frozen=True)
class _Units:
    """The units of a random split: groups of cases, or cases.

    Attributes:
        names: By the labels they hold and the volume of their foreground.
        rows: Row of each in `holds`, by name.
        holds: Whether each has voxels of each foreground class, `(units, classes)`.
        sizes: Cases of each, by name.
    """

    names: list[str]
    rows: dict[str, int]
    holds: NDArray[np.bool_]
    sizes: dict[str, int]

    @classmethod
    def of(cls, voxel_counts: Mapping[str, Sequence[int]], groups: Mapping[str, str]) -> _Units:
        counts: dict[str, NDArray[np.int64]] = {}
        sizes: dict[str, int] = {}
        for case, of_case in voxel_counts.items():
            group = groups[case]
            counts[group] = counts.get(group, np.int64(0)) + np.asarray(of_case)
            sizes[group] = sizes.get(group, 0) + 1
        names = sorted(
            counts,
            key=lambda name: ((counts[name] > 0).tolist(), int(counts[name][1:].sum()), name),
        )
        holds = np.array([counts[name][1:] > 0 for name in names])
        return cls(names, {name: row for row, name in enumerate(names)}, holds, sizes)

    def holders(self, names: Collection[str]) -> NDArray[np.int64]:
        """Of how many of the named each foreground class has voxels."""
        return np.asarray(self.holds[[self.rows[name] for name in names]].sum(axis=0))

    def off_share(self, names: Collection[str], share: float) -> float:
        """Cases that the named have more or less than their share."""
        wanted = max(1.0, share * sum(self.sizes.values()))
        off = abs(sum(self.sizes[name] for name in names) - wanted)
        # what rounding to whole units leaves cannot be helped
        return 0.0 if off <= max(self.sizes.values()) / 2 else off


def _draw_test(
    units: _Units, test_fraction: float, seed: int, rng: np.random.Generator
) -> set[str]:
    """The units of the test cases; they depend on nothing that concerns the others."""
    held = units.holders(units.names)

    def worth(test: Collection[str]) -> tuple[float, ...]:
        """Classes that training or validation would lack, then testing, then wrong numbers."""
        in_test = units.holders(test)
        return (
            int(np.maximum(np.minimum(held, 2) - (held - in_test), 0).sum()),
            int(((held >= 3) & (in_test == 0)).sum()),
            units.off_share(test, test_fraction),
        )

    number = _number_of_test(len(units.names), test_fraction)
    return _best_draw(units.names, number, [seed, 0], rng, worth) if number else set()


def _best_draw(
    ordered: Sequence[str],
    number: int,
    seeds: Sequence[int],
    rng: np.random.Generator,
    worth: Callable[[Collection[str]], tuple[float, ...]],
) -> set[str]:
    """The first draw that leaves nothing to wish, or the best of many, improved by exchanges."""
    best = _draw(ordered, number, rng)
    least = worth(best)
    for attempt in range(1, DRAWS):
        if not any(least):
            return best
        drawn = _draw(ordered, number, np.random.default_rng([*seeds, attempt]))
        if (value := worth(drawn)) < least:
            best, least = drawn, value
    # several rare classes are seldom all met by one draw
    exchanges = np.random.default_rng([*seeds, 0])
    taken, left = sorted(best), [name for name in ordered if name not in best]
    for _ in range(EXCHANGES):
        if not any(least):
            break
        one, other = int(exchanges.integers(len(taken))), int(exchanges.integers(len(left)))
        taken[one], left[other] = left[other], taken[one]
        if (value := worth(taken)) < least:
            least = value
        else:
            taken[one], left[other] = left[other], taken[one]
    return set(taken)


def _number_of_test(total: int, test_fraction: float) -> int:
    return max(1, round(total * test_fraction)) if test_fraction > 0 else 0


def _draw(ordered: Sequence[str], number: int, rng: np.random.Generator) -> set[str]:
    """One unit of each of `number` equal runs."""
    runs = np.array_split(np.arange(len(ordered)), number) if number else []
    return {ordered[int(rng.choice(run))] for run in runs}


def _unit(config: ModelTrainingConfig) -> str:
    return "cases" if config.groups is None else "groups of cases"
