"""Postprocessing: what is removed, and that it is chosen as nnU-Net chooses it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import ndimage

from training.bundle.postprocessing import (
    MIN_GAIN,
    VOLUME_QUANTILES,
    Case,
    KeepLargest,
    KeepLargestForeground,
    Postprocessing,
    RemoveSmall,
    Step,
    choose_postprocessing,
)

LABELS = ["background", "liver", "tumour"]
SPACING = (1.0, 2.0, 0.5)


def drawn(*boxes: tuple[int, tuple[slice, ...]]) -> NDArray[np.uint8]:
    labels = np.zeros((12, 12, 12), dtype=np.uint8)
    for label, box in boxes:
        labels[box] = label
    return labels


LIVER = (1, np.s_[1:6, 1:6, 1:6])
TUMOUR_INSIDE = (2, np.s_[2:4, 2:4, 2:4])
TUMOUR_ISLAND = (2, np.s_[9:10, 9:10, 9:10])
LIVER_ISLAND = (1, np.s_[8:10, 1:3, 1:3])


def test_the_largest_component_of_the_foreground_counts_all_classes_together() -> None:
    labels = drawn(LIVER, TUMOUR_INSIDE, TUMOUR_ISLAND, LIVER_ISLAND)
    kept = Postprocessing(steps=(KeepLargestForeground(),)).apply(labels, SPACING)
    np.testing.assert_array_equal(kept, drawn(LIVER, TUMOUR_INSIDE))
    assert kept.dtype == labels.dtype
    assert labels[9, 9, 9] == 2, "the given label map is left as it is"


def test_the_largest_component_of_a_class_leaves_the_others() -> None:
    labels = drawn(LIVER, TUMOUR_INSIDE, TUMOUR_ISLAND, LIVER_ISLAND)
    kept = Postprocessing(steps=(KeepLargest(label=1),)).apply(labels, SPACING)
    np.testing.assert_array_equal(kept, drawn(LIVER, TUMOUR_INSIDE, TUMOUR_ISLAND))


def test_voxels_that_touch_at_a_corner_are_of_one_component_and_ties_stay() -> None:
    corner = drawn((1, np.s_[1:2, 1:2, 1:2]), (1, np.s_[2:3, 2:3, 2:3]))
    largest = Postprocessing(steps=(KeepLargest(label=1),))
    np.testing.assert_array_equal(largest.apply(corner, SPACING), corner)
    tie = drawn((1, np.s_[1:2, 1:2, 1:2]), (1, np.s_[5:6, 5:6, 5:6]))
    np.testing.assert_array_equal(largest.apply(tie, SPACING), tie)


@pytest.mark.parametrize(("least", "stays"), [(1.0, True), (1.1, False)])
def test_volumes_are_in_cubic_millimetres(least: float, stays: bool) -> None:
    labels = drawn(LIVER, TUMOUR_ISLAND)
    step = RemoveSmall(label=2, min_volume=least)
    assert (Postprocessing(steps=(step,)).apply(labels, SPACING) == 2).any() == stays


@pytest.mark.parametrize(
    "step", [KeepLargestForeground(), KeepLargest(label=1), RemoveSmall(label=1, min_volume=3)]
)
def test_an_empty_label_map_stays_empty(step: Step) -> None:
    assert not Postprocessing(steps=(step,)).apply(drawn(), SPACING).any()


def test_steps_are_told_in_words_and_survive_json() -> None:
    steps = (KeepLargestForeground(), KeepLargest(label=1), RemoveSmall(label=2, min_volume=40.5))
    postprocessing = Postprocessing(steps=steps)
    assert postprocessing.describe(LABELS) == [
        "keeps the largest component of the whole foreground",
        "keeps the largest component of liver",
        "removes components of tumour below 40.5 mm³",
    ]
    assert Postprocessing().describe(LABELS) == []
    assert Postprocessing.model_validate_json(postprocessing.model_dump_json()) == postprocessing
    with pytest.raises(ValidationError, match="fill_holes"):
        Postprocessing.model_validate({"steps": [{"kind": "fill_holes"}]})


def dice(prediction: NDArray[np.uint8], reference: NDArray[np.uint8], label: int) -> float:
    one, other = prediction == label, reference == label
    both = one.sum() + other.sum()
    return 2 * (one & other).sum() / both if both else math.nan


def mean_dice(cases: list[Case], steps: list[Step]) -> NDArray[np.float64]:
    postprocessing = Postprocessing(steps=tuple(steps))
    scores = [
        [dice(postprocessing.apply(predicted, spacing), true, label) for label in (1, 2)]
        for predicted, true, spacing in cases
    ]
    return np.array(
        [
            np.nanmean(of_class) if np.isfinite(of_class).any() else np.nan
            for of_class in zip(*scores, strict=True)
        ]
    )


def chosen_one_by_one(cases: list[Case]) -> tuple[list[Step], NDArray[np.float64]]:
    """The choice by applying every candidate to every case, as nnU-Net does it."""
    steps: list[Step] = []
    scores = mean_dice(cases, [])
    after = mean_dice(cases, [KeepLargestForeground()])
    if np.nanmean(after - scores) > MIN_GAIN and not (after < scores).any():
        steps, scores = [KeepLargestForeground()], after
    for label in (1, 2):
        after = mean_dice(cases, [*steps, KeepLargest(label=label)])
        if after[label - 1] > scores[label - 1] + MIN_GAIN:
            steps, scores = [*steps, KeepLargest(label=label)], after
        volumes = []
        for _, true, spacing in cases:
            components, count = ndimage.label(true == label, np.ones((3, 3, 3)))
            volumes += [(components == i + 1).sum() * np.prod(spacing) for i in range(count)]
        found = [
            (mean_dice(cases, [*steps, RemoveSmall(label=label, min_volume=least)]), least)
            for least in sorted({float(v) for v in np.quantile(volumes, VOLUME_QUANTILES)})
        ]
        after, least = max(found, key=lambda one: one[0][label - 1])
        if after[label - 1] > scores[label - 1] + MIN_GAIN:
            steps, scores = (
                [*steps, RemoveSmall(label=label, min_volume=float(f"{least:.6g}"))],
                after,
            )
    return steps, scores


def islands(seed: int) -> list[Case]:
    """Three cases, with the more islands of noise the larger the seed."""
    rng = np.random.default_rng(seed)
    return [blobs(rng, several=0.5 + seed % 2, share=0.002 * seed) for _ in range(3)]


def blobs(rng: np.random.Generator, several: float, share: float) -> Case:
    """Blobs as reference; as prediction those that were found, and islands of noise."""
    true = np.zeros((14, 14, 14), dtype=np.uint8)
    true[2:8, 2:8, 2:8] = 1
    true[3:6, 3:6, 3:5] = 2
    if rng.random() < several:
        true[10:13, 10:13, 10:13] = 2
    predicted = np.where(rng.random(true.shape) < 0.9, true, 0).astype(np.uint8)
    noise = rng.random(true.shape) < share
    predicted[noise] = rng.integers(0, 3, size=true.shape)[noise]
    return predicted, true, (1.0, 1.5, 2.0)


@pytest.mark.parametrize("seed", range(12))
def test_it_is_chosen_as_if_every_candidate_were_applied_to_every_case(seed: int) -> None:
    cases = islands(seed)
    steps, scores = chosen_one_by_one(cases)
    chosen = choose_postprocessing(lambda: cases, num_classes=3)
    assert list(chosen.postprocessing.steps) == steps
    np.testing.assert_allclose(chosen.before, mean_dice(cases, []), rtol=1e-12)
    np.testing.assert_allclose(chosen.after, scores, rtol=1e-12)
    assert (np.array(chosen.after) >= np.array(chosen.before)).all()
    assert chosen.gain == pytest.approx(np.mean(scores - mean_dice(cases, [])))


def test_the_cases_of_the_test_above_meet_every_kind_of_step_and_none() -> None:
    kinds, none = set(), False
    for seed in range(12):
        steps, _ = chosen_one_by_one(islands(seed))
        kinds |= {step.kind for step in steps}
        none |= not steps
    assert kinds == {"keep_largest_foreground", "keep_largest", "remove_small"}
    assert none


def test_cases_are_read_again_and_never_all_at_once() -> None:
    true, predicted = drawn(LIVER), drawn(LIVER, LIVER_ISLAND)
    reads = []

    def cases() -> Iterator[Case]:
        reads.append("again")
        yield predicted, true, SPACING
        yield true, true, SPACING

    chosen = choose_postprocessing(cases, num_classes=3)
    assert chosen.postprocessing.steps == (KeepLargestForeground(),)
    assert reads == ["again", "again"]
    assert math.isnan(chosen.before[1]), "no case has a tumour"


def test_a_class_that_would_get_worse_forbids_the_largest_foreground() -> None:
    true = drawn(LIVER, TUMOUR_ISLAND)
    predicted = drawn(LIVER, LIVER_ISLAND, TUMOUR_ISLAND)
    chosen = choose_postprocessing(lambda: [(predicted, true, SPACING)], num_classes=3)
    assert chosen.postprocessing.steps == (KeepLargest(label=1),)
    assert chosen.after == (1.0, 1.0)


def test_a_prediction_on_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(12, 12, 12\) has a reference of \(2, 2, 2\)"):
        choose_postprocessing(
            lambda: [(drawn(), np.zeros((2, 2, 2), dtype=np.uint8), SPACING)], num_classes=3
        )
