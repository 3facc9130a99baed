from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn

from training.config import LossName, ModelTrainingConfig
from training.losses import (
    LOSSES,
    DeepSupervisionLoss,
    SegmentationCrossEntropyLoss,
    build_loss,
    class_weight_tensor,
)

SHAPES = [(2, 3, 5, 6), (2, 3, 4, 5, 6)]


def batch(shape: tuple[int, ...], dtype: torch.dtype = torch.long) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator).requires_grad_()
    targets = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator)
    return logits, targets.to(dtype)


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
        LOSSES["dice_ce"](weight)(logits, targets), expected(logits, targets[:, None])
    )


def test_the_losses_are_those_of_the_config() -> None:
    assert set(LOSSES) == set(get_args(LossName))


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_every_loss_trains_towards_the_target(name: LossName, dtype: torch.dtype) -> None:
    logits, targets = batch((1, 3, 4, 4, 4), dtype)
    loss = LOSSES[name](None)
    optimizer = torch.optim.SGD([logits], lr=20.0)
    first = loss(logits, targets).item()
    for _ in range(50):
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
        LOSSES[name](torch.ones(3))(logits, targets)


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


def test_class_weights_of_a_config() -> None:
    config = ModelTrainingConfig(num_classes=3)
    assert class_weight_tensor(config, None) is None
    config.class_weights = [1, 2, 5]
    assert class_weight_tensor(config, None).tolist() == [1, 2, 5]  # type: ignore[union-attr]
    config.target_label = 2
    assert class_weight_tensor(config, None).tolist() == [1, 5]  # type: ignore[union-attr]


def test_inverse_frequency_has_the_closed_form() -> None:
    config = ModelTrainingConfig(num_classes=3, class_weights="inverse_frequency")
    found = class_weight_tensor(config, [800, 150, 50])
    inverse = torch.tensor([1 / 0.8, 1 / 0.15, 1 / 0.05])
    assert torch.allclose(found, inverse / inverse.mean())  # type: ignore[arg-type]
    absent = class_weight_tensor(config, [900, 100, 0])
    assert absent is not None
    assert absent[2] == 0
    assert absent[:2].mean() == pytest.approx(1)
    config.target_label = 1
    binary = class_weight_tensor(config, [800, 150, 50])
    inverse = torch.tensor([1 / 0.85, 1 / 0.15])
    assert torch.allclose(binary, inverse / inverse.mean())  # type: ignore[arg-type]


def test_inverse_frequency_without_counts_says_what_to_do() -> None:
    config = ModelTrainingConfig(class_weights="inverse_frequency")
    with pytest.raises(ValueError, match="there are no voxel counts: give them"):
        build_loss(config)
    with pytest.raises(ValueError, match="2 classes, but num_classes=3"):
        build_loss(config, [10, 20])


def test_mixed_precision_stays_finite() -> None:
    logits, targets = batch((1, 3, 8, 8, 8))
    for name in LOSSES:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = LOSSES[name](torch.ones(3))((logits * 50).bfloat16(), targets)
        assert torch.isfinite(loss)
