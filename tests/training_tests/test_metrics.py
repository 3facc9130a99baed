from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage
from torch import Tensor
from torchmetrics.functional import accuracy as torchmetrics_accuracy
from torchmetrics.functional import f1_score
from torchmetrics.functional import jaccard_index as torchmetrics_iou

from training.metrics import (
    SegmentationMetrics,
    accuracy,
    boundary_f1_score,
    dice_coefficient,
    jaccard_index,
)

SCORES: list[Callable[..., Tensor]] = [dice_coefficient, jaccard_index, boundary_f1_score]


def logits_of(prediction: Tensor, num_classes: int = 3) -> Tensor:
    one_hot = torch.nn.functional.one_hot(prediction, num_classes).movedim(-1, 1)
    return one_hot.float() * 4 - 1


def random_maps(seed: int, shape: tuple[int, ...] = (2, 6, 7, 8)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 3, shape, generator=generator)
    keep = torch.rand(shape, generator=generator) < 0.7
    return torch.where(keep, target, torch.randint(0, 3, shape, generator=generator)), target


@pytest.mark.parametrize("shape", [(2, 6, 7, 8), (3, 9, 10)])
def test_overlap_equals_torchmetrics(shape: tuple[int, ...]) -> None:
    prediction, target = random_maps(0, shape)
    logits = logits_of(prediction)
    options: dict[str, Any] = {"task": "multiclass", "num_classes": 3, "average": "none"}
    dice, iou = (score(logits, target, reduction="none") for score in SCORES[:2])
    share = accuracy(logits, target, reduction="none")
    for item in range(shape[0]):
        one, other = prediction[item].flatten(), target[item].flatten()
        assert torch.allclose(dice[item].float(), f1_score(one, other, **options))
        assert torch.allclose(iou[item].float(), torchmetrics_iou(one, other, **options))
        options_micro = {**options, "average": "micro"}
        assert torch.allclose(
            share[item].float(), torchmetrics_accuracy(one, other, **options_micro)
        )


def test_a_case_drawn_by_hand() -> None:
    target = torch.zeros(1, 4, 4, dtype=torch.long)
    target[0, :2, :2] = 1
    prediction = torch.zeros_like(target)
    prediction[0, :2, 1:3] = 1
    prediction[0, 3, 3] = 2
    logits = logits_of(prediction)
    assert dice_coefficient(logits, target, reduction="none")[0, 1] == pytest.approx(0.5)
    assert jaccard_index(logits, target, reduction="none")[0, 1] == pytest.approx(1 / 3)
    assert accuracy(logits, target) == pytest.approx(11 / 16)
    # class 2 is a false positive: it counts as 0
    assert dice_coefficient(logits, target) == pytest.approx(0.25)


@pytest.mark.parametrize("score", SCORES)
def test_nan_only_where_a_class_is_in_neither(score: Callable[..., Tensor]) -> None:
    nothing = torch.zeros(1, 5, 5, 5, dtype=torch.long)
    something = nothing.clone()
    something[0, 1:4, 1:4, 1:4] = 1
    cases = {
        "neither": (nothing, nothing, math.nan),
        "false positive": (something, nothing, 0.0),
        "miss": (nothing, something, 0.0),
        "right": (something, something, 1.0),
    }
    for name, (prediction, target, expected) in cases.items():
        found = score(logits_of(prediction), target, reduction="none")
        assert float(found[0, 1]) == pytest.approx(expected, nan_ok=True), name
        assert math.isnan(found[0, 2])
    assert float(score(logits_of(something), something)) == 1.0


def reference_boundary_f1(
    prediction: np.ndarray, target: np.ndarray, tolerance: float, spacing: tuple[float, ...]
) -> float:
    """By scipy's erosion and exact Euclidean distance transform."""
    structure = ndimage.generate_binary_structure(prediction.ndim, 1)
    one, other = (mask & ~ndimage.binary_erosion(mask, structure) for mask in (prediction, target))
    if not one.any() and not other.any():
        return math.nan
    if not one.any() or not other.any():
        return 0.0
    to_other = ndimage.distance_transform_edt(~other, sampling=spacing)
    to_one = ndimage.distance_transform_edt(~one, sampling=spacing)
    precision = np.mean(to_other[one] <= tolerance * (1 + 1e-9))
    recall = np.mean(to_one[other] <= tolerance * (1 + 1e-9))
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("spacing", [None, (2.0, 1.0, 0.7)])
def test_boundary_f1_equals_distance_transforms(
    tolerance: float, spacing: tuple[float, float, float] | None
) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        smooth = [ndimage.gaussian_filter(rng.normal(size=(14, 15, 16)), 2) for _ in range(2)]
        one, other = (field > 0.02 for field in (smooth[0], smooth[0] + 0.5 * smooth[1]))
        found = boundary_f1_score(
            logits_of(torch.from_numpy(one).long()[None], 2),
            torch.from_numpy(other).long()[None],
            2,
            tolerance=tolerance,
            spacing=spacing,
        )
        expected = reference_boundary_f1(one, other, tolerance, spacing or (1.0, 1.0, 1.0))
        assert float(found) == pytest.approx(expected, abs=1e-12)


def test_a_shift_within_the_tolerance_is_perfect() -> None:
    target = torch.zeros(1, 12, 12, dtype=torch.long)
    target[0, 3:8, 3:8] = 1
    shifted = torch.roll(target, 2, dims=1)
    scores = [
        float(boundary_f1_score(logits_of(shifted, 2), target, 2, tolerance=tolerance))
        for tolerance in (0.0, 1.0, 2.0)
    ]
    assert scores[0] < scores[1] < scores[2] == 1.0


label_maps = arrays.arrays(np.int64, (1, 5, 6, 4), elements=st.integers(0, 2))


@settings(deadline=None, max_examples=60)
@given(one=label_maps, other=label_maps)
def test_laws(one: np.ndarray, other: np.ndarray) -> None:
    a, b = torch.from_numpy(one), torch.from_numpy(other)
    for score in SCORES:
        forward = score(logits_of(a), b, reduction="none")
        backward = score(logits_of(b), a, reduction="none")
        assert torch.allclose(forward, backward, equal_nan=True)
        defined = forward[~forward.isnan()]
        assert ((defined >= 0) & (defined <= 1)).all()
        own = score(logits_of(a), a, reduction="none")
        assert (own[~own.isnan()] == 1).all()
    dice = dice_coefficient(logits_of(a), b, reduction="none")
    iou = jaccard_index(logits_of(a), b, reduction="none")
    assert torch.allclose(dice, 2 * iou / (1 + iou), equal_nan=True)


def test_the_aggregate_is_the_mean_over_cases() -> None:
    metrics = SegmentationMetrics(3)
    cases = [random_maps(seed, (1, 6, 7, 5 + seed)) for seed in range(5)]
    cases[2][1][cases[2][1] == 2] = 0  # a case without class 2
    cases[2][0][cases[2][0] == 2] = 0
    for prediction, target in cases:
        metrics.update(prediction, target)
    found = metrics.compute()
    for name, score in zip(("dice", "iou", "boundary_f1"), SCORES, strict=True):
        by_case = torch.cat([score(logits_of(p), t, reduction="none") for p, t in cases])
        by_class = by_case.nanmean(dim=0)[1:]
        assert found[name] == pytest.approx(float(by_class.mean()))
        if name == "dice":
            assert found["dice_1"] == pytest.approx(float(by_class[0]))
            assert found["dice_2"] == pytest.approx(float(by_class[1]))
    shares = [float(accuracy(logits_of(p), t)) for p, t in cases]
    assert found["accuracy"] == pytest.approx(np.mean(shares))


def test_ranks_and_batches_add_up_exactly() -> None:
    prediction, target = random_maps(7, (6, 5, 5, 5))
    whole, first, second = (SegmentationMetrics(3) for _ in range(3))
    whole.update(prediction, target)
    for item in range(4):
        first.update(prediction[item : item + 1], target[item : item + 1])
    second.update(prediction[4:], target[4:])
    assert {function.__name__ for function in whole._reductions.values()} == {"dim_zero_sum"}
    for state in whole._defaults:
        total = getattr(first, state) + getattr(second, state)
        assert torch.allclose(total, getattr(whole, state))
    whole.reset()
    assert whole.cases == 0


def test_a_class_that_no_case_has_is_not_defined() -> None:
    metrics = SegmentationMetrics(4)
    prediction, target = random_maps(1)
    metrics.update(prediction, target)
    found = metrics.compute()
    assert math.isnan(found["dice_3"])
    assert found["dice"] == pytest.approx(float((found["dice_1"] + found["dice_2"]) / 2))


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (torch.zeros(1, 3, 4), torch.zeros(1, 4).long(), "in 2D or 3D"),
        (torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4).long(), r"\(b, 3, \*spatial\)"),
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 5).long(), r"targets must be \(1, 4, 4\)"),
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4), "integer labels"),
        (torch.zeros(1, 3, 4, 4), torch.full((1, 4, 4), 3), "labels must be 0 to 2"),
        (torch.zeros(1, 3, 4, 4), torch.full((1, 4, 4), -1), "targets hold -1 to -1"),
        (torch.zeros(0, 3, 4, 4), torch.zeros(0, 4, 4).long(), "empty"),
    ],
)
def test_what_does_not_fit_is_named(logits: Tensor, targets: Tensor, message: str) -> None:
    for score in (*SCORES, accuracy):
        with pytest.raises(ValueError, match=message):
            score(logits, targets)


def test_a_wrong_tolerance_or_spacing_is_named() -> None:
    prediction, target = random_maps(0)
    with pytest.raises(ValueError, match="tolerance must be 0 or more"):
        boundary_f1_score(logits_of(prediction), target, tolerance=-1)
    with pytest.raises(ValueError, match="must have 3 entries"):
        boundary_f1_score(logits_of(prediction), target, spacing=(1.0, 1.0))
