from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceCELoss, DiceLoss, FocalLoss, TverskyLoss
from torch import Tensor, nn

from training.config import LossName, ModelTrainingConfig
from training.losses import (
    LOSSES,
    DeepSupervisionLoss,
    SegmentationCrossEntropyLoss,
    SegmentationDiceCrossEntropyLoss,
    SegmentationFocalLoss,
    SegmentationTverskyLoss,
    build_loss,
)

SHAPES = [(2, 3, 5, 6), (2, 3, 4, 5, 6)]


def batch(shape: tuple[int, ...], dtype: torch.dtype = torch.long) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator).requires_grad_()
    targets = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator)
    return logits, targets.to(dtype)


def build(name: LossName, weight: Tensor | None = None) -> nn.Module:
    loss: nn.Module = LOSSES.resolve(name)(ModelTrainingConfig(), weight)
    return loss


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weight", [None, [0.5, 1.0, 2.0], [0.0, 1.0, 1.0]])
def test_cross_entropy_equals_torch(shape: tuple[int, ...], weight: list[float] | None) -> None:
    logits, targets = batch(shape)
    expected = nn.CrossEntropyLoss(None if weight is None else torch.tensor(weight))
    loss = SegmentationCrossEntropyLoss(weight)(logits, targets)
    assert torch.allclose(loss, expected(logits, targets))
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_dice_ce_equals_monai(shape: tuple[int, ...]) -> None:
    logits, targets = batch(shape)
    weight = torch.tensor([0.5, 1.0, 2.0])
    expected = DiceCELoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=True, weight=weight
    )
    assert torch.allclose(
        build("dice_ce", weight)(logits, targets), expected(logits, targets[:, None])
    )


def test_the_losses_are_those_of_the_config() -> None:
    for name in LOSSES:
        assert ModelTrainingConfig(loss=name).loss == name


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_every_loss_trains_towards_the_target(name: LossName, dtype: torch.dtype) -> None:
    logits, targets = batch((1, 3, 4, 4, 4), dtype)
    loss = build(name)
    optimizer = torch.optim.SGD([logits], lr=20.0)
    first = loss(logits, targets).item()
    for _ in range(200):
        optimizer.zero_grad()
        loss(logits, targets).backward()
        optimizer.step()
    assert loss(logits, targets).item() < 0.2 * first
    assert torch.equal(logits.argmax(dim=1), targets.long())


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (torch.zeros(1, 3, 4), torch.zeros(1, 4).long(), "but got 3 axes"),
        (torch.zeros(1, 3, 4, 4).long(), torch.zeros(1, 4, 4).long(), "must be floating point"),
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4).long(), r"squeeze the channel axis"),
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 5).long(), r"must be \(1, 4, 4\)"),
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4), "integer labels, but got torch.float32"),
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4).bool(), "but got torch.bool"),
        (torch.zeros(1, 3, 4, 4), torch.full((1, 4, 4), 3), "must be 0 to 2 for 3 classes"),
        (torch.zeros(1, 3, 4, 4), torch.full((1, 4, 4), -1), "targets hold -1 to -1"),
        (torch.zeros(0, 3, 4, 4), torch.zeros(0, 4, 4).long(), "empty"),
        (torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4).long(), "weight has 3 entries"),
    ],
)
def test_what_does_not_fit_is_named(
    name: LossName, logits: Tensor, targets: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, torch.ones(3))(logits, targets)


@pytest.mark.parametrize("weight", [[-1.0, 1.0], [float("nan"), 1.0], [[1.0, 2.0]]])
def test_wrong_weights_are_named(weight: Any) -> None:
    with pytest.raises(ValueError, match="one finite, non-negative number a class"):
        SegmentationCrossEntropyLoss(weight)


def test_deep_supervision_weighs_resolutions_to_1() -> None:
    targets = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    targets[:, 2:] = 1
    scales = [torch.randn(1, 2, size, size, size) for size in (4, 2, 1)]
    loss = nn.CrossEntropyLoss()
    half = targets[:, 1::2, ::2, ::2]
    quarter = targets[:, 2:3, :1, :1]
    expected = (
        loss(scales[0], targets) + 0.5 * loss(scales[1], half) + 0.25 * loss(scales[2], quarter)
    ) / 1.75
    found = DeepSupervisionLoss(SegmentationCrossEntropyLoss())(scales, targets)
    assert torch.allclose(found, expected)
    single = DeepSupervisionLoss(SegmentationCrossEntropyLoss())(scales[0], targets)
    assert torch.allclose(single, loss(scales[0], targets))


def test_focal_equals_monai() -> None:
    logits, targets = batch((2, 3, 4, 5, 6))
    monai = FocalLoss(to_onehot_y=True, use_softmax=True, gamma=1.5)
    # MONAI takes the mean over classes too, of which each voxel has one
    expected = 3 * monai(logits, targets[:, None])
    assert torch.allclose(SegmentationFocalLoss(gamma=1.5)(logits, targets), expected)


def test_focal_has_the_closed_form_with_weights() -> None:
    logits = torch.tensor([[[[0.0, 2.0]], [[0.0, 0.0]]]])
    targets = torch.tensor([[[0, 1]]])
    sure = 1 / (1 + math.exp(2.0))
    first, second = 0.5**2 * math.log(2), (1 - sure) ** 2 * -math.log(sure)
    loss = SegmentationFocalLoss([1.0, 3.0], gamma=2.0)(logits, targets)
    assert loss.item() == pytest.approx((first + 3 * second) / 4, rel=1e-5)


@given(gamma=st.floats(0, 5), weight=st.lists(st.floats(0.1, 10), min_size=3, max_size=3))
@settings(deadline=None, max_examples=30)
def test_focal_is_at_most_cross_entropy(gamma: float, weight: list[float]) -> None:
    logits, targets = batch((2, 3, 4, 5))
    cross_entropy = SegmentationCrossEntropyLoss(weight)(logits, targets)
    assert SegmentationFocalLoss(weight, gamma=gamma)(logits, targets) <= cross_entropy + 1e-5
    plain = SegmentationFocalLoss(weight, gamma=0.0)(logits, targets)
    assert torch.allclose(plain, cross_entropy, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 3.0])
def test_focal_has_a_gradient_where_a_voxel_is_certain(gamma: float) -> None:
    logits = torch.tensor([[[[200.0, 0.0]], [[0.0, 0.0]]]], requires_grad=True)
    SegmentationFocalLoss(gamma=gamma)(logits, torch.tensor([[[0, 1]]])).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_tversky_equals_monai() -> None:
    logits, targets = batch((2, 3, 4, 5, 6))
    expected = TverskyLoss(
        include_background=False, to_onehot_y=True, softmax=True, alpha=0.2, beta=0.9, batch=True
    )(logits, targets[:, None])
    assert torch.allclose(SegmentationTverskyLoss(alpha=0.2, beta=0.9)(logits, targets), expected)


def test_tversky_has_the_closed_form_with_weights() -> None:
    logits, targets = batch((2, 4, 4, 5, 6))
    probability = logits.softmax(dim=1)
    truth = nn.functional.one_hot(targets, 4).movedim(-1, 1)
    scores = []
    for label in (1, 2, 3):
        p, t = probability[:, label], truth[:, label]
        hit, false, missed = (p * t).sum(), (p * (1 - t)).sum(), ((1 - p) * t).sum()
        scores.append(1 - hit / (hit + 0.3 * false + 0.7 * missed))
    expected = (2 * scores[0] + 5 * scores[2]) / 7
    found = SegmentationTverskyLoss([1.0, 2.0, 0.0, 5.0])(logits, targets)
    assert torch.allclose(found, expected, atol=1e-5)


def test_tversky_with_halves_is_dice() -> None:
    logits, targets = batch((2, 3, 4, 5, 6))
    dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    found = SegmentationTverskyLoss(alpha=0.5, beta=0.5)(logits, targets)
    assert torch.allclose(found, dice(logits, targets[:, None]), atol=1e-5)


def test_a_patch_of_weightless_classes_costs_nothing() -> None:
    logits = torch.randn(1, 3, 4, 4, 4, requires_grad=True)
    background = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    for loss in (SegmentationCrossEntropyLoss, SegmentationFocalLoss):
        found = loss([0.0, 1.0, 1.0])(logits, background)
        found.backward()
        assert found == 0
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SegmentationFocalLoss(gamma=-1.0), "gamma must be 0 or more, but got -1.0"),
        (lambda: SegmentationTverskyLoss(alpha=-1.0), "not both 0, but got -1.0 and 0.7"),
        (lambda: SegmentationTverskyLoss(alpha=0.0, beta=0.0), "not both 0, but got 0.0 and 0.0"),
    ],
)
def test_wrong_settings_are_named(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_the_config_decides_settings_and_weights(name: LossName) -> None:
    logits, targets = batch((2, 2, 4, 5, 6))
    config = ModelTrainingConfig(
        num_classes=4,
        target_label=2,
        loss=name,
        class_weights=[1, 9, 3, 9],
        focal_gamma=0.7,
        tversky_alpha=0.1,
        tversky_beta=0.6,
    )
    expected = {
        "cross_entropy": SegmentationCrossEntropyLoss([1, 3]),
        "dice_ce": SegmentationDiceCrossEntropyLoss([1, 3]),
        "focal": SegmentationFocalLoss([1, 3], gamma=0.7),
        "tversky": SegmentationTverskyLoss([1, 3], alpha=0.1, beta=0.6),
    }[name]
    assert torch.equal(build_loss(config)(logits, targets), expected(logits, targets))


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_full(name: LossName, dtype: torch.dtype) -> None:
    # half precision cannot count 40³ voxels: float16 ends at 65504, bfloat16 skips beyond 256
    logits, targets = batch((1, 3, 44, 44, 44))
    loss = build(name, torch.ones(3))
    half = logits.detach().to(dtype)
    torch.testing.assert_close(loss(half, targets), loss(half.float(), targets))


def test_mixed_precision_stays_finite() -> None:
    logits, targets = batch((1, 3, 8, 8, 8))
    for name in LOSSES:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = build(name, torch.ones(3))((logits * 50).bfloat16(), targets)
        assert torch.isfinite(loss)
