"""Voxels that are left out cost nothing, teach nothing, and count for nothing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from training.config import ModelTrainingConfig
from training.errors import PluginError
from training.ignored_voxels import IGNORE_INDEX, as_targets, ignored_value
from training.losses import LOSSES, DeepSupervisionLoss, build_loss
from training.metrics import (
    SegmentationMetrics,
    SurfaceMetrics,
    accuracy,
    boundary_f1_score,
    dice_coefficient,
    jaccard_index,
    surface_scores,
)
from training.metrics.own import measure

SOFTMAX_LOSSES = sorted(LOSSES)


def batch(shape: tuple[int, ...] = (2, 3, 4, 5, 6), seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator).requires_grad_()
    targets = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator)
    return logits, targets


@pytest.mark.parametrize("weights", ["uniform", [0.5, 1.0, 2.0]])
@pytest.mark.parametrize("name", SOFTMAX_LOSSES)
def test_a_loss_with_a_region_left_out_is_that_of_the_batch_without_it(
    name: str, weights: str | list[float]
) -> None:
    loss = build_loss(ModelTrainingConfig(loss=name, class_weights=weights, num_classes=3))
    logits, targets = batch()
    hidden = targets.clone()
    hidden[..., 4:] = IGNORE_INDEX
    whole = loss(logits, hidden)
    (gradient,) = torch.autograd.grad(whole, logits)
    cut = logits[..., :4].detach().requires_grad_()
    of_cut = loss(cut, targets[..., :4])
    (expected,) = torch.autograd.grad(of_cut, cut)
    torch.testing.assert_close(whole, of_cut)
    torch.testing.assert_close(gradient[..., :4], expected)
    assert not gradient[..., 4:].any()
    # the same batch with these voxels as a class is another loss
    assert not torch.isclose(loss(logits, targets), whole)


def test_the_cross_entropy_is_that_of_torch_with_its_ignore_index() -> None:
    logits, targets = batch((2, 3, 8, 9))
    targets[:, 2:5] = IGNORE_INDEX
    weight = torch.tensor([0.2, 1.0, 3.0])
    loss = build_loss(
        ModelTrainingConfig(loss="cross_entropy", class_weights=weight.tolist(), num_classes=3)
    )
    torch.testing.assert_close(
        loss(logits, targets), nn.CrossEntropyLoss(weight, ignore_index=-100)(logits, targets)
    )


@pytest.mark.parametrize("name", SOFTMAX_LOSSES)
def test_a_batch_without_a_labelled_voxel_costs_nothing(name: str) -> None:
    logits, targets = batch()
    loss = DeepSupervisionLoss(build_loss(ModelTrainingConfig(loss=name, num_classes=3)))
    value = loss([logits, logits[..., ::2, ::2, ::2]], torch.full_like(targets, IGNORE_INDEX))
    value.backward()
    assert value == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_coarser_scales_leave_the_same_place_out() -> None:
    logits, targets = batch((1, 3, 8, 8, 8))
    coarse = torch.randn(1, 3, 4, 4, 4, requires_grad=True)
    targets[..., 4:] = IGNORE_INDEX
    DeepSupervisionLoss(build_loss(ModelTrainingConfig(num_classes=3)))(
        [logits, coarse], targets
    ).backward()
    assert coarse.grad is not None
    assert not coarse.grad[..., 2:].any()
    assert coarse.grad[..., :2].all()


@pytest.mark.parametrize("value", [-1, 3, -101])
def test_other_values_that_are_no_class_are_refused(value: int) -> None:
    logits, targets = batch()
    targets[0, 0, 0, 0] = value
    targets[1, 0, 0, 0] = IGNORE_INDEX
    with pytest.raises(ValueError, match=r"0 to 2 for 3 classes, or -100 for voxels to leave out"):
        build_loss(ModelTrainingConfig(num_classes=3))(logits, targets)


class _Own(nn.Module):
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, targets.clamp(min=0))


def test_a_loss_of_the_users_own_must_say_that_it_leaves_voxels_out() -> None:
    logits, targets = batch()
    own = DeepSupervisionLoss(_Own())
    assert own(logits, targets) > 0
    targets[0] = IGNORE_INDEX
    with pytest.raises(PluginError, match=r"_Own must leave out .* ignore_index = -100"):
        own(logits, targets)
    of_torch = DeepSupervisionLoss(nn.CrossEntropyLoss())
    torch.testing.assert_close(
        of_torch(logits, targets), of_torch(logits[1:], targets[1:]), check_stride=False
    )


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return nn.functional.one_hot(labels, classes).movedim(-1, 1).float()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_overlap_scores_are_those_of_the_labelled_voxels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prediction, target = (torch.from_numpy(rng.integers(0, 3, (2, 4, 5, 6))) for _ in range(2))
    known = torch.from_numpy(rng.random((2, 4, 5, 6)) < 0.5)
    logits = one_hot(prediction, 3)
    hidden = torch.where(known, target, IGNORE_INDEX)
    # the labelled voxels alone, as an image of one row
    for item in range(2):
        of_known = one_hot(prediction[item][known[item]][None, None], 3)
        alone = target[item][known[item]][None, None]
        for score in (dice_coefficient, jaccard_index, accuracy):
            found = score(logits[item : item + 1], hidden[item : item + 1], reduction="none")
            expected = score(of_known, alone, reduction="none")
            torch.testing.assert_close(found, expected, equal_nan=True)


def squares() -> tuple[Tensor, Tensor]:
    """A prediction and a target that differ at the left of a square and agree at its right."""
    target = torch.zeros(1, 12, 12, dtype=torch.long)
    target[0, 3:9, 3:9] = 1
    prediction = target.clone()
    prediction[0, 3:9, 0:3] = 1
    return prediction, target


def test_surfaces_in_what_is_left_out_do_not_count() -> None:
    prediction, target = squares()
    logits = one_hot(prediction, 2)
    before = surface_scores(logits, target, 2, tolerance=0.5)
    assert before.nsd[0, 1] < 1
    target[:, :, :4] = IGNORE_INDEX
    after = surface_scores(logits, target, 2, tolerance=0.5)
    assert after.nsd[0, 1] == 1
    assert after.hd95[0, 1] == after.assd[0, 1] == 0
    assert not after.missing[0, 1]
    scores = boundary_f1_score(logits, target, 2, tolerance=0.0, reduction="none")
    assert scores[0, 1] == 1


def test_the_border_of_what_is_left_out_is_no_surface() -> None:
    """A square that a strip hides in part has the surface that is seen, no more."""
    target = torch.zeros(1, 12, 12, dtype=torch.long)
    target[0, 3:9, 3:9] = 1
    shifted = torch.roll(target, 1, dims=1)
    target[:, :, 6:8] = IGNORE_INDEX
    found = surface_scores(one_hot(shifted, 2), target, 2, tolerance=0.5)
    # by hand, in the corners of voxels: 6 voxels high, columns 3 to 5 seen at the left and column 8
    # at the right; all distances are those of a shift by one voxel
    assert found.hd95[0, 1] == 1
    assert 0 < found.nsd[0, 1] < 1


def test_a_class_whose_surface_is_nowhere_known_has_no_surface_score() -> None:
    target = torch.full((1, 9, 9), IGNORE_INDEX)
    target[0, 3:6, 3:6] = 1
    inside = torch.zeros(1, 9, 9, dtype=torch.long)
    inside[0, 3:6, 3:6] = 1
    found = surface_scores(one_hot(inside, 2), target, 2)
    assert math.isnan(found.nsd[0, 1])
    assert not found.missing[0, 1]
    score = boundary_f1_score(one_hot(inside, 2), target, 2, reduction="none")
    # inner voxels have known neighbours alone, and those at the border are of no known boundary
    assert math.isnan(score[0, 1])
    missed = surface_scores(one_hot(torch.zeros_like(inside), 2), target, 2)
    assert missed.nsd[0, 1] == 0
    assert missed.missing[0, 1]


def test_a_case_without_a_labelled_voxel_is_in_no_mean() -> None:
    prediction, target = squares()
    overlap, surface = SegmentationMetrics(2), SurfaceMetrics(2)
    for metrics in (overlap, surface):
        metrics.update(prediction, target)
    alone = {**overlap.compute(), **surface.compute()}
    for metrics in (overlap, surface):
        metrics.update(prediction, torch.full_like(target, IGNORE_INDEX))
    assert {**overlap.compute(), **surface.compute()} == alone


def test_a_metric_of_the_users_own_sees_background_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_differences.py").write_text(
        "def differences(prediction, target):\n"
        "    assert target.min() >= 0\n"
        "    return (prediction != target).sum()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    prediction, target = squares()
    name, options = "own_differences:differences", {"spacing": None, "num_classes": 2}
    assert measure(name, prediction[0], target[0], **options) == 18
    target[0, :, :2] = IGNORE_INDEX
    assert measure(name, prediction[0], target[0], **options) == 6


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_what_is_predicted_where_voxels_are_left_out_changes_no_score(seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 3, (2, 3, 3, 3)).repeat(3, 1).repeat(3, 2).repeat(3, 3)
    target = torch.from_numpy(blocks)
    prediction = torch.roll(target, 1, dims=int(rng.integers(1, 4)))
    target[torch.from_numpy(rng.random(target.shape) < rng.random())] = IGNORE_INDEX
    other = torch.where(
        target == IGNORE_INDEX, torch.from_numpy(rng.integers(0, 3, target.shape)), prediction
    )
    found = []
    for labels in (prediction, other):
        overlap, surface = SegmentationMetrics(3), SurfaceMetrics(3)
        overlap.update(labels, target)
        surface.update(labels, target)
        found.append({**overlap.compute(), **surface.compute()})
    torch.testing.assert_close(found[0], found[1], equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "classes"), [(np.uint8, 3), (np.uint8, 255), (np.uint16, 256)])
def test_arrays_become_targets(kind: type[np.unsignedinteger], classes: int) -> None:
    labels = np.array([0, classes - 1, ignored_value(kind)], dtype=kind)
    assert as_targets(labels, classes).tolist() == [0, classes - 1, IGNORE_INDEX]
    # all values of the type can be classes of data without such voxels
    assert as_targets(np.array([255], dtype=np.uint8), 256).tolist() == [255]
