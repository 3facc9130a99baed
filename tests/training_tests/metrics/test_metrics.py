from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage
from torch import Tensor, distributed, multiprocessing
from torchmetrics import Metric
from torchmetrics.functional import accuracy as torchmetrics_accuracy
from torchmetrics.functional import f1_score
from torchmetrics.functional import jaccard_index as torchmetrics_iou

from training.metrics import (
    SegmentationMetrics,
    SurfaceMetrics,
    accuracy,
    average_symmetric_surface_distance,
    boundary_f1_score,
    dice_coefficient,
    hausdorff_distance_95,
    jaccard_index,
    normalised_surface_dice,
    predict_labels,
    surface_scores,
)

SCORES: list[Callable[..., Tensor]] = [dice_coefficient, jaccard_index, boundary_f1_score]
SHARES = [*SCORES, normalised_surface_dice]


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


@pytest.mark.parametrize("score", SHARES)
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


# from 4 on, distances are looked up in a tree instead of at every offset
@pytest.mark.parametrize("tolerance", [0.0, 1.0, 1.5, 2.0, 4.0])
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


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.0, 4.0])
def test_boundary_f1_of_a_small_organ_in_a_large_image(tolerance: float) -> None:
    """Few boundary voxels are looked up one by one, where many are compared as whole images."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(40.0)] * 3, indexing="ij"))
    one, other = (
        (grid - torch.tensor(centre).view(3, 1, 1, 1)).norm(dim=0) < 5
        for centre in ((20.0, 19.0, 3.0), (21.0, 20.0, 4.0))
    )
    found = boundary_f1_score(
        logits_of(one.long()[None], 2), other.long()[None], 2, tolerance=tolerance
    )
    expected = reference_boundary_f1(one.numpy(), other.numpy(), tolerance, (1.0, 1.0, 1.0))
    assert float(found) == pytest.approx(expected, abs=1e-12)
    assert 0 < expected < 1 or tolerance >= 2


@pytest.mark.parametrize("tolerance", [1.0, 5.0])
@pytest.mark.parametrize("shape", [(1, 4, 9, 1), (2, 7, 6, 8), (2, 9, 8)])
def test_boundary_f1_of_all_classes_at_once(shape: tuple[int, ...], tolerance: float) -> None:
    spacing = (1.5, 1.0, 0.8)[: len(shape) - 1]
    for seed in range(8):
        prediction, target = random_maps(seed, shape)
        found = boundary_f1_score(
            logits_of(prediction), target, tolerance=tolerance, spacing=spacing, reduction="none"
        )
        for item, label in itertools.product(range(shape[0]), range(3)):
            one, other = (maps[item].squeeze().numpy() == label for maps in (prediction, target))
            # one slice is an image
            sizes = tuple(size for size, axis in zip(spacing, shape[1:], strict=True) if axis > 1)
            expected = reference_boundary_f1(one, other, tolerance, sizes)
            assert float(found[item, label]) == pytest.approx(expected, abs=1e-12, nan_ok=True)


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
    for score in SHARES:
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


@pytest.mark.parametrize("metric", [SegmentationMetrics, SurfaceMetrics])
def test_ranks_and_batches_add_up_exactly(metric: type[Metric]) -> None:
    prediction, target = maps_of_six_cases()
    whole, first, second = (metric(3) for _ in range(3))
    whole.update(prediction, target)
    for item in range(4):
        first.update(prediction[item : item + 1], target[item : item + 1])
    second.update(prediction[4:], target[4:])
    assert {function.__name__ for function in whole._reductions.values()} == {"dim_zero_sum"}
    for state in whole._defaults:
        total = getattr(first, state) + getattr(second, state)
        assert torch.allclose(total, getattr(whole, state))
    whole.reset()
    assert all((getattr(whole, state) == 0).all() for state in whole._defaults)


@pytest.mark.parametrize("metric", [SegmentationMetrics, SurfaceMetrics])
def test_a_validation_before_the_training_changes_nothing(metric: type[Metric]) -> None:
    accumulated, fresh = metric(3), metric(3)
    with torch.inference_mode():
        accumulated.update(*random_maps(1))
        accumulated.reset()
    for each in (accumulated, fresh):
        each.update(*random_maps(2))
    torch.testing.assert_close(accumulated.compute(), fresh.compute(), equal_nan=True)


def maps_of_six_cases() -> tuple[Tensor, Tensor]:
    """Some cases lack class 2 on one side or both, so that means over pairs would differ."""
    prediction, target = random_maps(7, (6, 5, 5, 5))
    prediction[:3][prediction[:3] == 2] = 0
    target[2:4][target[2:4] == 2] = 0
    return prediction, target


def evaluate_on_rank(rank: int, folder: str) -> None:
    """One of two processes: its half of the cases, and the metrics of all."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    prediction, target = maps_of_six_cases()
    found = {}
    for metric in (SegmentationMetrics(3), SurfaceMetrics(3)):
        mine = slice(0, 2) if rank == 0 else slice(2, 6)
        metric.update(prediction[mine], target[mine])
        found |= metric.compute()
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_give_the_metrics_of_one(tmp_path: Path) -> None:
    multiprocessing.spawn(evaluate_on_rank, (str(tmp_path),), nprocs=2)
    expected = {}
    for metric in (SegmentationMetrics(3), SurfaceMetrics(3)):
        metric.update(*maps_of_six_cases())
        expected |= metric.compute()
    assert expected["hd95_2_missing"] == 3
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert float(found[name]) == pytest.approx(float(value), abs=1e-12), name


def test_functions_and_accumulators_agree_on_how_nan_is_averaged() -> None:
    prediction, target = maps_of_six_cases()
    overlap, surface = SegmentationMetrics(3), SurfaceMetrics(3)
    overlap.update(prediction, target)
    surface.update(prediction, target)
    found = overlap.compute() | surface.compute()
    functions = {
        "dice": dice_coefficient,
        "iou": jaccard_index,
        "boundary_f1": boundary_f1_score,
        "accuracy": accuracy,
        "nsd": normalised_surface_dice,
        "hd95": hausdorff_distance_95,
        "assd": average_symmetric_surface_distance,
    }
    for name, function in functions.items():
        value = function(logits_of(prediction), target)
        assert float(value) == pytest.approx(float(found[name])), name
    by_case = dice_coefficient(logits_of(prediction), target, reduction="none")[:, 1:]
    assert float(found["dice"]) != pytest.approx(float(by_case.nanmean()))


def test_the_background_is_measured_on_demand() -> None:
    prediction, target = maps_of_six_cases()
    logits = logits_of(prediction)
    scores, every = (surface_scores(logits, target, background=on) for on in (False, True))
    for one, other in zip(scores, every, strict=True):
        assert one.shape == (6, 3)
        torch.testing.assert_close(one[:, 1:], other[:, 1:], equal_nan=True)
    assert all(score[:, 0].isnan().all() for score in scores[:3])
    assert not every.nsd[:, 0].isnan().any()
    torch.testing.assert_close(
        every.hd95, hausdorff_distance_95(logits, target, reduction="none"), equal_nan=True
    )


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.5, 6.0])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.5, 0.8)])
def test_surface_dice_alone_is_that_of_all_scores(
    tolerance: float, spacing: tuple[float, float, float]
) -> None:
    alone, every = (SurfaceMetrics(3, tolerance, distances=on) for on in (False, True))
    target = torch.zeros(1, 14, 16, 12, dtype=torch.long)
    target[0, 2:9, 2:9, 2:9] = 1
    target[0, 9:12, 4:9, 2:11] = 2
    for shift in ((0, 1, 0), (1, 2, 3), (-2, 5, 0)):
        for metrics in (alone, every):
            metrics.update(target.roll(shift, dims=(1, 2, 3)), target, spacing)
    found, expected = alone.compute(), every.compute()
    assert set(found) == {"nsd", "nsd_1", "nsd_2"}
    assert 0 < float(found["nsd"]) <= 1
    assert float(found["nsd"]) < 1 or tolerance == 6
    for name, value in found.items():
        assert float(value) == pytest.approx(float(expected[name]), abs=1e-12)


def test_cases_of_different_spacing_are_averaged_in_mm() -> None:
    prediction, target = torch.zeros(2, 1, 9, 3, 3, dtype=torch.long)
    prediction[0, 2, 1, 1] = target[0, 6, 1, 1] = 1
    metrics = SurfaceMetrics(2)
    metrics.update(prediction, target, (1.0, 1.0, 1.0))
    metrics.update(prediction, target, (2.0, 1.0, 1.0))
    assert float(metrics.compute()["hd95"]) == pytest.approx((4 + 8) / 2)


def test_classes_are_named_by_their_labels() -> None:
    prediction, target = (maps.clamp(max=1) for maps in random_maps(0))
    for metric in (SegmentationMetrics(2, labels=[5]), SurfaceMetrics(2, labels=[5])):
        metric.update(prediction, target)
        found = metric.compute()
        names = {name for name in found if "_5" in name}
        assert names <= {"dice_5", "nsd_5", "hd95_5", "assd_5", "hd95_5_missing", "assd_5_missing"}
        assert names
        assert not any("_1" in name for name in found)
    with pytest.raises(ValueError, match="must name the 2 foreground classes"):
        SurfaceMetrics(3, labels=[5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_classes", [2, 3, 14])
def test_predicted_labels_are_those_of_argmax(dtype: torch.dtype, num_classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((2, num_classes, 5, 6, 7), generator=generator).to(dtype)
    logits[:, 1] = logits[:, 0].clamp(min=0)  # equal logits
    assert torch.equal(predict_labels(logits), logits.argmax(dim=1))


def test_many_classes_fit() -> None:
    target = torch.arange(300).reshape(1, 10, 30)
    logits = torch.nn.functional.one_hot(target, 300).movedim(-1, 1).float()
    assert float(dice_coefficient(logits, target, 300)) == 1
    assert float(boundary_f1_score(logits, target, 300)) == 1


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
    for score in (*SCORES, accuracy, surface_scores):
        with pytest.raises(ValueError, match=message):
            score(logits, targets)


def test_a_wrong_tolerance_or_spacing_is_named() -> None:
    prediction, target = random_maps(0)
    with pytest.raises(ValueError, match="tolerance must be 0 or more"):
        boundary_f1_score(logits_of(prediction), target, tolerance=-1)
    with pytest.raises(ValueError, match="must have 3 entries"):
        boundary_f1_score(logits_of(prediction), target, spacing=(1.0, 1.0))
    with pytest.raises(ValueError, match=r"spacing=\(1.0, 0.0, 1.0\) must be above 0"):
        hausdorff_distance_95(logits_of(prediction), target, spacing=(1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match="but got nan"):
        normalised_surface_dice(logits_of(prediction), target, tolerance=math.nan)
    with pytest.raises(ValueError, match="predictions hold 0 to 2"):
        SurfaceMetrics(2).update(prediction, target)
