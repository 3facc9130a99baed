"""Greedy selection of ensembles: against all that is possible, its limits, and what it reports."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from training.config import ModelTrainingConfig
from training.ignored_voxels import IGNORE_INDEX
from training.metrics import dice_coefficient, jaccard_index
from tuner.errors import ExportError
from tuner.export.measure import Measure
from tuner.export.scratch import SMALL, Scratch
from tuner.export.selection import Limits, SelectionCases, nested_gains, select
from tuner.study.statistics import paired_interval

DICE = Measure("dice", (1, 2))
ANY = Limits(members=9, seconds=np.inf)

Prediction = NDArray[np.float16]


def make(
    folder: Path, noises: Sequence[float], *, cases: int = 6, seed: int = 0
) -> tuple[SelectionCases, list[list[Prediction]], list[NDArray[np.uint8]]]:
    """Candidates whose logits are the truth and a noise of their own, larger or smaller."""
    rng = np.random.default_rng(seed)
    voxels = SelectionCases(DICE, 3, Scratch(folder))
    predictions, labels = [], []
    for _ in range(cases):
        label = rng.integers(0, 3, size=(4, 5, 6)).astype(np.uint8)
        truth = np.moveaxis(np.eye(3)[label], -1, 0)
        each = []
        for noise in noises:
            logits = 3 * truth + noise * rng.normal(size=truth.shape)
            shares = np.exp(logits) / np.exp(logits).sum(axis=0)
            each.append(shares.astype(np.float16))
        voxels.add(each, label)
        predictions.append(each)
        labels.append(label)
    return voxels, predictions, labels


def plain_score(
    counts: Sequence[int],
    predictions: Sequence[Sequence[Prediction]],
    labels: Sequence[NDArray[np.uint8]],
) -> float:
    """The mean Dice of a weighted mean of whole predictions."""
    tables = []
    for each, label in zip(predictions, labels, strict=True):
        mean = sum(count * p.astype(np.float64) for count, p in zip(counts, each, strict=True))
        labels_of_mean = np.asarray(mean).argmax(axis=0)
        tables.append(
            [
                2 * np.sum((labels_of_mean == c) & (label == c))
                / (np.sum(labels_of_mean == c) + np.sum(label == c))
                for c in (1, 2)
            ]
        )  # fmt: skip
    return float(np.mean(tables))


def test_scores_are_those_of_whole_predictions(tmp_path: Path) -> None:
    voxels, predictions, labels = make(tmp_path, [2.0, 3.0, 4.0])
    for counts in [(1, 0, 0), (0, 0, 1), (1, 1, 1), (3, 1, 2), (0, 2, 5)]:
        expected = plain_score(counts, predictions, labels)
        assert DICE.mean(voxels.scores(counts)) == pytest.approx(expected, abs=1e-3)
    np.testing.assert_array_equal(voxels.scores((1, 2, 3)), voxels.scores((2, 4, 6)))


def test_a_mean_of_equally_good_ones_is_found_and_nearly_the_best_there_is(
    tmp_path: Path,
) -> None:
    voxels, _, _ = make(tmp_path, [3.0, 3.0, 3.0, 9.0])
    counts = select(voxels, [1.0] * 4, ANY)
    assert sum(count > 0 for count in counts) > 1
    found = DICE.mean(voxels.scores(counts))
    singles = [DICE.mean(voxels.scores(tuple(row))) for row in np.eye(4, dtype=int)]
    assert found > max(singles) + 0.05
    every = itertools.product(range(4), repeat=4)
    best = max(DICE.mean(voxels.scores(weights)) for weights in every if any(weights))
    assert found > best - 0.01


def test_ties_go_to_the_smaller_ensemble(tmp_path: Path) -> None:
    voxels = SelectionCases(DICE, 3, Scratch(tmp_path))
    _, predictions, labels = make(tmp_path, [2.0])
    for (prediction,), label in zip(predictions, labels, strict=True):
        voxels.add([prediction] * 3, label)
    assert select(voxels, [1.0, 1.0, 1.0], ANY) == (1, 0, 0)


def test_limits_of_members_and_time_are_kept(tmp_path: Path) -> None:
    voxels, _, _ = make(tmp_path, [3.0] * 6)
    assert sum(count > 0 for count in select(voxels, [1.0] * 6, ANY)) > 3
    two = select(voxels, [1.0] * 6, Limits(members=2, seconds=np.inf))
    assert sum(count > 0 for count in two) == 2
    seconds = [1.0, 4.5, 1.0, 1.0, 9.0, 1.0]
    quick = select(voxels, seconds, Limits(members=6, seconds=5.0))
    assert sum(s for s, count in zip(seconds, quick, strict=True) if count) <= 5.0
    assert quick[4] == 0
    assert sum(count > 0 for count in quick) > 1
    # the winner alone is always within the limits
    assert select(voxels, seconds, Limits(members=1, seconds=0.5)) == (1, 0, 0, 0, 0, 0)


def test_one_network_is_taken_in_one_way_alone(tmp_path: Path) -> None:
    """With and without mirroring, say."""
    voxels, _, _ = make(tmp_path, [3.0] * 4)
    counts = select(voxels, [1.0] * 4, ANY)
    assert counts[1]
    assert counts[2]
    of_one = Limits(members=9, seconds=np.inf, networks=(0, 1, 1, 3))
    assert 0 in select(voxels, [1.0] * 4, of_one)[1:3]


def test_the_gain_is_that_on_cases_that_it_was_not_selected_by(tmp_path: Path) -> None:
    """Of candidates that differ by luck alone, the best by some cases is no better on others."""
    apparent, nested = [], []
    for seed in range(100, 130):
        voxels, _, _ = make(tmp_path, [3.0] * 8, cases=5, seed=seed)
        alone = Limits(members=1, seconds=np.inf)
        counts = select(voxels, [1.0] * 8, alone)
        winner = DICE.mean(voxels.scores((1, *[0] * 7)))
        apparent.append(DICE.mean(voxels.scores(counts)) - winner)
        nested.append(np.mean(nested_gains(voxels, [1.0] * 8, alone)))
    assert np.mean(apparent) > 0.01
    assert abs(np.mean(nested)) < 0.3 * np.mean(apparent)


def test_a_real_gain_is_seen(tmp_path: Path) -> None:
    voxels, _, _ = make(tmp_path, [3.0] * 4, cases=8)
    gain = paired_interval(nested_gains(voxels, [1.0] * 4, ANY))
    assert gain.low > 0.02
    worse, _, _ = make(tmp_path, [1.0, 9.0, 9.0], cases=8)
    assert paired_interval(nested_gains(worse, [1.0] * 3, ANY)).mean <= 0


@pytest.mark.parametrize(
    ("metric", "target", "expected"),
    [
        ("val_dice", None, Measure("dice", (1, 2))),
        ("val_dice_2", None, Measure("dice", (2,))),
        ("val_iou", None, Measure("iou", (1, 2))),
        ("val_dice_2", 2, Measure("dice", (1,))),
        ("val_nsd_1", None, Measure("dice", (1, 2))),
        ("val_loss", None, Measure("dice", (1, 2))),
        ("my_code:score", None, Measure("dice", (1, 2))),
    ],
)
def test_what_is_chosen_by(metric: str, target: int | None, expected: Measure) -> None:
    assert Measure.of(metric, ModelTrainingConfig(target_label=target)) == expected


@pytest.mark.parametrize("kind", ["dice", "iou"])
def test_scores_of_label_maps_are_those_of_the_metrics(kind: str) -> None:
    import torch

    rng = np.random.default_rng(0)
    prediction, label = rng.integers(0, 3, (2, 6, 5, 4))
    label[label == 2] = 0
    logits = torch.nn.functional.one_hot(torch.from_numpy(prediction), 4).movedim(-1, 0)[None]
    reference = {"dice": dice_coefficient, "iou": jaccard_index}[kind](
        logits.float(), torch.from_numpy(label)[None], 4, reduction="none"
    )
    measure = Measure("dice" if kind == "dice" else "iou", (1, 2, 3))
    np.testing.assert_allclose(measure.of_labels(prediction, label), reference[0, 1:].numpy())
    assert np.isnan(measure.of_labels(prediction, label)[2])


def test_nothing_of_the_scratch_is_left(tmp_path: Path) -> None:
    array = Scratch(tmp_path).array((SMALL, 3), np.float16)
    assert not array.any()
    array[5] = 7
    assert isinstance(array, np.memmap)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ExportError, match=r"no room for 0\.01 GB .*--ensemble 1"):
        Scratch(tmp_path).array((SMALL, 3), np.float16)


def test_voxels_that_are_left_out_choose_nothing(tmp_path: Path) -> None:
    """Where half of each case is left out, scores are those of the other half."""
    _, predictions, labels = make(tmp_path, [2.0, 3.0], cases=2)
    hidden, halves = (SelectionCases(DICE, 3, Scratch(tmp_path)) for _ in range(2))
    for each, label in zip(predictions, labels, strict=True):
        known = label.astype(np.int16)
        known[..., 3:] = IGNORE_INDEX
        hidden.add(each, known)
        halves.add([prediction[..., :3] for prediction in each], label[..., :3])
        of_labels = DICE.of_labels(each[0].argmax(axis=0), known)
        expected = DICE.of_labels(each[0][..., :3].argmax(axis=0), label[..., :3])
        np.testing.assert_array_equal(of_labels, expected)
    for counts in ((1, 0), (0, 1), (2, 1)):
        np.testing.assert_array_equal(hidden.scores(counts), halves.scores(counts))
