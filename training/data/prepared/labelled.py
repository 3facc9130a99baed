"""Which cases a split can use, by what they are labelled for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from training.data.raw.layouts import RawDataset
from training.errors import DatasetError


def labelled_cases(
    splits: Mapping[str, Sequence[str]],
    voxel_counts: Mapping[str, Sequence[int]],
    dataset: RawDataset,
    target_class: int | None = None,
) -> dict[str, list[str]]:
    """The parts of a split without cases that teach nothing of the task.

    Those are cases in which no voxel is labelled, and with a target label those that are not
    labelled for it.

    Args:
        splits: Case names of each part.
        voxel_counts: Voxels of each class, by case.
        dataset: The data.
        target_class: The one class that is trained, if there is one.

    Raises:
        DatasetError: if nothing is left to train or to validate on.
    """
    labelled = {case.case_id: case.labelled for case in dataset.cases}

    def teaches(case: str) -> bool:
        classes = labelled.get(case)
        known = target_class is None or classes is None or target_class in classes
        return known and any(voxel_counts[case])

    kept = {part: [case for case in cases if teaches(case)] for part, cases in splits.items()}
    for part in ("train", "val"):
        if not kept[part]:
            what = "" if target_class is None else f" of {dataset.labels[target_class]}"
            raise DatasetError(
                f"no case in the part {part} of the split has labels{what} "
                f"({_some(splits[part])}): choose another split, or label a case"
            )
    return kept


def labelled_lines(
    splits: Mapping[str, Sequence[str]], dataset: RawDataset, target_class: int | None = None
) -> list[str]:
    """Lines about classes for which not all cases are labelled, and about cases left out.

    Args:
        splits: Case names of each part; empty where there is no split yet.
        dataset: The data.
        target_class: The one class that is trained, if there is one.
    """
    if not dataset.is_partly_labelled:
        return []
    lines = []
    for value, name in enumerate(dataset.labels[1:], start=1):
        having = {
            case.case_id
            for case in dataset.cases
            if case.labelled is None or value in case.labelled
        }
        if len(having) < len(dataset.cases) and target_class in (None, value):
            parts = ", ".join(
                f"{len(having & set(cases))} {part}" for part, cases in splits.items() if cases
            )
            line = f"{name} is labelled in {len(having)} of {len(dataset.cases)} cases"
            lines.append(f"{line} ({parts})" if parts else line)
    used = {case for cases in splits.values() for case in cases}
    left_out = [
        case.case_id
        for case in dataset.cases
        if case.case_id not in used
        and case.labelled is not None
        and target_class is not None
        and target_class not in case.labelled
    ]
    if left_out and target_class is not None:
        lines.append(
            f"left out, as not labelled for {dataset.labels[target_class]}: {_some(left_out)}"
        )
    return lines


def split_suffix(dataset: RawDataset, target_label: int | None) -> str:
    """What the name of a split ends in where its cases depend on the target label."""
    depends = target_label is not None and dataset.is_partly_labelled
    return f"-label-{target_label}" if depends else ""


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown}, ... ({len(names)})" if len(names) > 5 else shown
