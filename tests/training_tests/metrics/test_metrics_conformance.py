"""Our metrics beside those of MONAI, torchmetrics and surface-distance, on 348 volumes.

Where conventions differ, `test_the_conventions_that_differ` says how; `training.metrics` says why.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_iou, compute_surface_dice
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_f1_score,
    multiclass_jaccard_index,
)

from training.metrics import (
    SegmentationMetrics,
    SurfaceMetrics,
    accuracy,
    dice_coefficient,
    jaccard_index,
    surface_scores,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from surface_distance import metrics as surface_distance

Spacing = tuple[float, float, float]
Volume = tuple[Tensor, Tensor]

SPACINGS: list[Spacing] = [(1.0, 1.0, 1.0), (3.0, 0.75, 0.75), (0.7, 1.3, 2.1)]
TOLERANCE = 1.0
CLASSES = 3


@pytest.fixture(autouse=True)
def _surface_distance_on_numpy_2(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """surface-distance 0.1 was written for older names of numpy and scipy."""
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*namespace is deprecated.*")
        warnings.filterwarnings("ignore", message=".*is all 0, this may result.*")
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy.*")
        yield


def smooth(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> NDArray[np.float64]:
    field = ndimage.gaussian_filter(rng.normal(size=shape), sigma)
    return np.asarray(field / (field.std() or 1.0))


def random_volume(seed: int) -> Volume:
    """Smooth, noisy or unrelated maps of three classes; often, one side lacks a class."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(size) for size in rng.integers(1, 13, size=3))
    base = smooth(rng, shape, rng.uniform(0.5, 2))
    maps = []
    for weight in (0.0, rng.choice([0.0, 0.3, 1.0, 5.0])):
        field = base + weight * smooth(rng, shape, rng.uniform(0.3, 2))
        label = np.digitize(field, np.sort(rng.uniform(-0.5, 1.5, size=2)) if weight else [0, 1])
        for lost in (1, 2):
            if rng.random() < 0.15:
                label[label == lost] = 0
        maps.append(torch.from_numpy(label.astype(np.int64))[None])
    return maps[0], maps[1]


def boxes(*corners: tuple[int, int, int, int]) -> Tensor:
    """A 10×10×10 map of cubes (label, low, high, shift along the last axis)."""
    label = torch.zeros(1, 10, 10, 10, dtype=torch.long)
    for value, low, high, shift in corners:
        label[0, low:high, low:high, low + shift : high + shift] = value
    return label


@cache
def hand_made() -> list[Volume]:
    """Every pair of the drawings: empty, touching, nested, at the edge, one voxel, full."""
    drawings = [
        boxes(),
        boxes((1, 3, 6, 0)),
        boxes((2, 3, 6, 1)),
        boxes((1, 0, 10, 0)),
    ]
    pairs = list(itertools.product(drawings, drawings))
    extra = [boxes((1, 2, 8, 0), (2, 4, 6, 0)), boxes((1, 4, 5, 0), (2, 0, 1, 9))]
    return [*pairs, *itertools.product(extra, extra)]


@cache
def volumes(spacing: Spacing) -> list[Volume]:
    first = 1000 * SPACINGS.index(spacing)
    return [random_volume(first + index) for index in range(96)] + hand_made()


def logits_of(labels: Tensor) -> Tensor:
    return one_hot(labels).float()


def one_hot(labels: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(labels, CLASSES).movedim(-1, 1)


def presence(labels: Tensor) -> NDArray[np.bool_]:
    return np.array([bool((labels == label).any()) for label in range(CLASSES)])


def test_there_are_over_300_volumes_and_every_kind_of_empty_case() -> None:
    every = [volume for spacing in SPACINGS for volume in volumes(spacing)]
    assert len(every) == 348
    for spacing in SPACINGS:
        kinds = {
            (label, bool(presence(p)[label]), bool(presence(t)[label]))
            for p, t in volumes(spacing)
            for label in (1, 2)
        }
        assert kinds == set(itertools.product((1, 2), (True, False), (True, False)))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_overlap_equals_monai_and_torchmetrics(spacing: Spacing) -> None:
    pairs: list[tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., Tensor]]] = [
        (dice_coefficient, compute_dice, multiclass_f1_score),
        (jaccard_index, compute_iou, multiclass_jaccard_index),
    ]
    for prediction, target in volumes(spacing):
        either = presence(prediction) | presence(target)
        for ours, monai, torchmetrics in pairs:
            found = ours(logits_of(prediction), target, reduction="none")[0].numpy()
            # where the target has the class, all three agree
            in_target = presence(target)
            peer = monai(one_hot(prediction), one_hot(target), include_background=True)[0].numpy()
            np.testing.assert_allclose(found[in_target], peer[in_target], atol=1e-6)
            peer = torchmetrics(prediction, target, CLASSES, average="none").numpy()
            np.testing.assert_allclose(found[either], peer[either], atol=1e-6)
            assert np.isnan(found[~either]).all()
        share = accuracy(logits_of(prediction), target)
        peer = multiclass_accuracy(prediction, target, CLASSES, average="micro")
        assert float(share) == pytest.approx(float(peer), abs=1e-6)


def reference_scores(
    prediction: NDArray[np.bool_], target: NDArray[np.bool_], spacing: tuple[float, ...]
) -> dict[str, float]:
    """NSD, HD95 and ASSD by surface-distance; ASSD is over the area of both surfaces."""
    found = surface_distance.compute_surface_distances(target, prediction, spacing)
    with np.errstate(invalid="ignore"):
        areas = [found["surfel_areas_gt"].sum(), found["surfel_areas_pred"].sum()]
        averages = surface_distance.compute_average_surface_distance(found)
        nsd = surface_distance.compute_surface_dice_at_tolerance(found, TOLERANCE)
    return {
        "nsd": nsd,
        "hd95": surface_distance.compute_robust_hausdorff(found, 95),
        "assd": float(np.dot(areas, averages) / np.sum(areas)) if min(areas) else math.nan,
    }


def as_image(
    prediction: Tensor, target: Tensor, spacing: Spacing
) -> tuple[Tensor, Tensor, tuple[float, ...]]:
    """A volume of one slice as the image that it is: peers would see a surface above it."""
    flat = [axis for axis in range(3) if prediction.shape[axis + 1] == 1]
    if not flat:
        return prediction, target, spacing
    axis = flat[0]
    left = tuple(size for each, size in enumerate(spacing) if each != axis)
    return prediction.squeeze(axis + 1), target.squeeze(axis + 1), left


@pytest.mark.parametrize("spacing", SPACINGS)
def test_surface_scores_equal_surface_distance(spacing: Spacing) -> None:
    accumulated = SurfaceMetrics(CLASSES, TOLERANCE)
    expected: dict[str, list[float]] = {}
    for prediction, target in volumes(spacing):
        accumulated.update(prediction, target, spacing)
        scores = surface_scores(
            logits_of(prediction), target, spacing=spacing, tolerance=TOLERANCE, background=True
        )
        *maps_of, sizes = as_image(prediction, target, spacing)
        for label in range(CLASSES):
            one, other = (maps[0].numpy() == label for maps in maps_of)
            reference = reference_scores(one, other, sizes)
            nsd, hd95, assd = (float(score[0, label]) for score in scores[:3])
            missing = one.any() != other.any()
            assert bool(scores.missing[0, label]) == missing
            assert nsd == pytest.approx(reference["nsd"], abs=1e-12, nan_ok=True)
            if one.any() and other.any():
                assert hd95 == pytest.approx(reference["hd95"], abs=1e-12)
                assert assd == pytest.approx(reference["assd"], abs=1e-12)
            else:
                assert reference["hd95"] == math.inf
                assert math.isnan(hd95)
                assert math.isnan(assd)
            for name, value in (("nsd", nsd), ("hd95", hd95), ("assd", assd), ("missing", missing)):
                expected.setdefault(f"{name}_{label}", []).append(value)
    found = accumulated.compute()
    for name in ("nsd", "hd95", "assd"):
        by_class = [float(np.nanmean(expected[f"{name}_{label}"])) for label in (1, 2)]
        assert [float(found[f"{name}_{label}"]) for label in (1, 2)] == pytest.approx(by_class)
        assert float(found[name]) == pytest.approx(np.mean(by_class))
    for label in (1, 2):
        missing = sum(expected[f"missing_{label}"])
        assert found[f"hd95_{label}_missing"] == found[f"assd_{label}_missing"] == missing > 0


@pytest.mark.parametrize("spacing", SPACINGS)
def test_surface_dice_equals_monai_with_subvoxels(spacing: Spacing) -> None:
    for prediction, target in volumes(spacing)[::4]:
        scores = surface_scores(
            logits_of(prediction), target, spacing=spacing, tolerance=TOLERANCE, background=True
        )
        one, other, sizes = as_image(prediction, target, spacing)
        peer = compute_surface_dice(
            one_hot(one),
            one_hot(other),
            [TOLERANCE] * CLASSES,
            include_background=True,
            spacing=sizes,
            use_subvoxels=True,
        )
        np.testing.assert_allclose(scores.nsd.numpy(), peer.numpy(), atol=1e-5)


@pytest.mark.parametrize("shape", [(9, 11), (5, 16)])
def test_contours_in_2d_equal_surface_distance(shape: tuple[int, int]) -> None:
    spacing = (0.7, 1.2)
    rng = np.random.default_rng(0)
    for _ in range(30):
        one, other = (smooth(rng, shape, 1.5) > 0.3 for _ in range(2))
        found = surface_distance.compute_surface_distances(other, one, spacing)
        maps = (torch.from_numpy(mask.astype(np.int64))[None] for mask in (one, other))
        prediction, target = maps
        scores = surface_scores(logits_of(prediction), target, spacing=spacing)
        nsd = surface_distance.compute_surface_dice_at_tolerance(found, 1.0)
        hd95 = surface_distance.compute_robust_hausdorff(found, 95)
        assert float(scores.nsd[0, 1]) == pytest.approx(nsd, abs=1e-6)
        assert float(scores.hd95[0, 1]) == pytest.approx(hd95, abs=1e-6)


def test_the_conventions_that_differ() -> None:
    empty, cube = boxes(), boxes((1, 3, 6, 0))
    monai = {"include_background": True}
    for ours, peer, torchmetrics in (
        (dice_coefficient, compute_dice, multiclass_f1_score),
        (jaccard_index, compute_iou, multiclass_jaccard_index),
    ):
        # a false positive: 0, and for MONAI nan unless empty targets count
        false_positive = (one_hot(cube), one_hot(empty))
        assert float(ours(logits_of(cube), empty, reduction="none")[0, 1]) == 0
        assert math.isnan(peer(*false_positive, **monai)[0, 1])
        assert float(peer(*false_positive, **monai, ignore_empty=False)[0, 1]) == 0
        # in neither: nan, for MONAI 1 if empty targets count, for torchmetrics 0
        neither = (one_hot(empty), one_hot(empty))
        assert math.isnan(ours(logits_of(empty), empty, reduction="none")[0, 1])
        assert float(peer(*neither, **monai, ignore_empty=False)[0, 1]) == 1
        assert float(torchmetrics(empty, empty, CLASSES, average="none")[1]) == 0
    # in neither: surface-distance calls the distance infinite, we call it not defined
    nothing = np.zeros((4, 4, 4), dtype=bool)
    distances = surface_distance.compute_surface_distances(nothing, nothing, (1, 1, 1))
    assert surface_distance.compute_robust_hausdorff(distances, 95) == math.inf
    scores = surface_scores(logits_of(empty), empty)
    assert math.isnan(scores.hd95[0, 1])
    assert not scores.missing[0, 1]
    # a distance equal to the tolerance but for rounding: 3 × 0.1 > 0.3
    spacing = (0.1, 0.1, 0.1)
    shifted = logits_of(boxes((1, 3, 6, 3)))
    near = surface_scores(shifted, cube, spacing=spacing, tolerance=0.3)
    one, other = (maps[0].numpy() == 1 for maps in (boxes((1, 3, 6, 3)), cube))
    distances = surface_distance.compute_surface_distances(other, one, spacing)
    peer_nsd = surface_distance.compute_surface_dice_at_tolerance(distances, 0.3)
    assert float(near.nsd[0, 1]) > peer_nsd


@pytest.mark.parametrize("spacing", SPACINGS)
def test_single_voxels_have_a_closed_form(spacing: Spacing) -> None:
    """Two voxels 4 steps apart: four corners of each are 4 steps from the other, four are 3."""
    labels = torch.zeros(2, 9, 3, 3, dtype=torch.long)
    labels[0, 2, 1, 1] = 1
    labels[1, 6, 1, 1] = 1
    step = spacing[0]
    scores = surface_scores(
        logits_of(labels[:1]), labels[1:], spacing=spacing, tolerance=3.5 * step
    )
    assert float(scores.nsd[0, 1]) == pytest.approx(0.5)
    assert float(scores.hd95[0, 1]) == pytest.approx(4 * step)
    assert float(scores.assd[0, 1]) == pytest.approx(3.5 * step)
    same = surface_scores(logits_of(labels[:1]), labels[:1])
    assert float(same.nsd[0, 1]) == 1
    assert float(same.hd95[0, 1]) == float(same.assd[0, 1]) == 0


def test_accumulated_overlap_is_that_of_the_functions() -> None:
    cases = volumes(SPACINGS[0])
    metrics = SegmentationMetrics(CLASSES)
    for prediction, target in cases:
        metrics.update(prediction, target)
    found = metrics.compute()
    for name, score in (("dice", dice_coefficient), ("iou", jaccard_index)):
        by_case = torch.cat([score(logits_of(p), t, reduction="none") for p, t in cases])
        assert float(found[name]) == pytest.approx(float(by_case[:, 1:].nanmean(0).mean()))
