"""What a case is not labelled for costs nothing, teaches nothing, and has no score."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.class_weights import class_weight_tensor
from training.config import ModelTrainingConfig
from training.errors import PluginError
from training.ignored_voxels import IGNORE_INDEX
from training.losses import LOSSES, DeepSupervisionLoss, build_loss
from training.metrics import SegmentationMetrics, SurfaceMetrics
from training.partial_labels import hide_missing, labelled_mask, marginal_logits

ALL = [True, True, True, True]
NO_3 = [True, True, True, False]


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two cases of 4 classes; the second has no voxel of class 3."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 4, 5, 6, generator=generator).requires_grad_()
    targets = torch.randint(0, 4, (2, 4, 5, 6), generator=generator)
    targets[1][targets[1] == 3] = 0
    return logits, targets


def loss_of(name: str, **fields: object) -> nn.Module:
    return build_loss(ModelTrainingConfig(loss=name, num_classes=4, **fields))


def test_missing_classes_are_added_to_the_background() -> None:
    logits, _ = batch()
    labelled = torch.tensor([ALL, [True, False, True, False]])
    found = marginal_logits(logits, labelled).softmax(dim=1)
    plain = logits.softmax(dim=1)
    torch.testing.assert_close(found[0], plain[0])
    torch.testing.assert_close(found[1, 0], plain[1, [0, 1, 3]].sum(dim=0))
    torch.testing.assert_close(found[1, 2], plain[1, 2])
    assert not found[1, [1, 3]].any()


def test_the_cross_entropy_is_the_marginal_one() -> None:
    """By hand: -log of the class's probability, with those of missing classes in background."""
    logits, targets = batch()
    found = loss_of("cross_entropy")(logits, targets, torch.tensor([ALL, NO_3]))
    shares = logits.softmax(dim=1)
    merged = shares[1, :3].clone()
    merged[0] = shares[1, 0] + shares[1, 3]
    first = F.nll_loss(shares[:1].log(), targets[:1], reduction="none")
    second = F.nll_loss(merged[None].log(), targets[1:], reduction="none")
    torch.testing.assert_close(found, torch.cat([first, second]).mean())


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_the_split_of_background_and_missing_class_is_not_taught(name: str, half: bool) -> None:
    """Moving probability between background and a missing class changes neither loss nor slope."""
    logits, targets = batch()
    labelled = torch.tensor([ALL, NO_3])
    loss = loss_of(name)
    value = loss(logits.half() if half else logits, targets, labelled)
    value.backward()
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    # the gradient of the two moves them by their shares alone, as one class
    shares = logits.detach().softmax(dim=1)[1, [0, 3]]
    slopes = logits.grad[1, [0, 3]]
    together = slopes.sum(dim=0) * shares / shares.sum(dim=0)
    torch.testing.assert_close(slopes, together, atol=1e-4 if half else 1e-7, rtol=1e-2)
    with torch.no_grad():
        swapped = logits.clone()
        swapped[1, [0, 3]] = logits[1, [3, 0]]
    torch.testing.assert_close(
        loss(swapped, targets, labelled), value.float(), atol=2e-3 if half else 1e-6, rtol=1e-3
    )


@pytest.mark.parametrize("name", ["dice_ce", "tversky"])
@pytest.mark.parametrize("weights", ["uniform", [1.0, 2.0, 3.0, 4.0]])
def test_a_missing_class_has_no_dice_term(name: str, weights: str | list[float]) -> None:
    """A class that no case of the batch is labelled for is as if it were not there."""
    logits, targets = batch()
    targets[targets == 3] = 0
    found = loss_of(name, class_weights=weights)(logits, targets, torch.tensor([NO_3, NO_3]))
    merged = marginal_logits(logits, torch.tensor([NO_3, NO_3]))[:, :3]
    fewer = weights if weights == "uniform" else weights[:3]
    three = build_loss(ModelTrainingConfig(loss=name, num_classes=3, class_weights=fewer))
    torch.testing.assert_close(found, three(merged, targets))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_cases_that_are_labelled_in_full_cost_as_before(name: str) -> None:
    logits, targets = batch()
    loss = DeepSupervisionLoss(loss_of(name))
    scales = [logits, logits[..., ::2, ::2, ::2]]
    assert loss(scales, targets, torch.tensor([ALL, ALL])) == loss(scales, targets)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_missing_classes_and_ignored_voxels_together(name: str) -> None:
    logits, targets = batch()
    labelled = torch.tensor([ALL, NO_3])
    cut = loss_of(name)(logits[..., :3], targets[..., :3], labelled)
    targets[..., 3:] = IGNORE_INDEX
    torch.testing.assert_close(loss_of(name)(logits, targets, labelled), cut)


def test_a_loss_of_the_users_own_gets_merged_logits() -> None:
    logits, targets = batch()
    labelled = torch.tensor([ALL, NO_3])
    own = DeepSupervisionLoss(nn.CrossEntropyLoss())
    expected = loss_of("cross_entropy")(logits, targets, labelled)
    torch.testing.assert_close(own(logits, targets, labelled), expected)
    with pytest.raises(PluginError, match="CrossEntropyLoss must take an argument `labelled`"):
        own(logits[:, :2], targets.clamp(max=1), labelled)


def regions() -> dict[str, object]:
    return {
        "num_classes": 4,
        "regions": {"whole": [1, 2, 3], "core": [2, 3], "edge": [1]},
        "regions_class_order": [1, 2, 1],
    }


@pytest.mark.parametrize("name", ["dice_bce", "bce", "sigmoid_focal", "sigmoid_tversky"])
def test_a_region_is_labelled_where_all_its_classes_are(name: str) -> None:
    logits, targets = batch()
    logits = logits[:, :3].detach().requires_grad_()
    loss = build_loss(ModelTrainingConfig(loss=name, **regions()))
    value = loss(logits, targets, torch.tensor([ALL, NO_3]))
    value.backward()
    assert logits.grad is not None
    assert not logits.grad[1, :2].any()
    assert logits.grad[1, 2].all()
    # the first two regions cost what they cost in the first case alone
    alone = logits.detach().requires_grad_()
    loss(alone[:1], targets[:1]).backward()
    assert alone.grad is not None
    torch.testing.assert_close(logits.grad[0, :2], alone.grad[0, :2])


def test_scores_of_a_missing_class_are_not_defined() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, targets = (torch.randint(0, 4, (2, 5, 6, 7), generator=generator) for _ in range(2))
    targets[1][targets[1] == 3] = 0
    found: dict[str, dict[str, Tensor]] = {}
    for labelled in (torch.tensor([ALL, NO_3]), None):
        overlap, surface = SegmentationMetrics(4), SurfaceMetrics(4)
        cases = slice(None) if labelled is not None else slice(1)
        overlap.update(prediction[cases], targets[cases], labelled)
        surface.update(prediction[cases], targets[cases], None, labelled)
        found["both" if labelled is not None else "first"] = {
            **overlap.compute(),
            **surface.compute(),
        }
    # class 3 is judged on the case that is labelled for it, and the prediction in the other is no
    # false positive: neither a 0 nor a missing distance
    for score in ("dice_3", "nsd_3", "hd95_3", "hd95_3_missing", "assd_3"):
        assert found["both"][score] == found["first"][score]
    assert found["both"]["dice_2"] != found["first"]["dice_2"]


def test_what_is_predicted_of_a_missing_class_may_be_background() -> None:
    prediction = torch.tensor([[[3, 1, 2, 0]], [[3, 1, 2, 0]]])
    hidden = hide_missing(prediction, torch.tensor([ALL, NO_3]))
    assert hidden.tolist() == [[[3, 1, 2, 0]], [[0, 1, 2, 0]]]
    metrics = SegmentationMetrics(4)
    metrics.update(prediction[1:], torch.tensor([[[0, 1, 2, 0]]]), torch.tensor([NO_3]))
    assert metrics.compute()["accuracy"] == 1
    assert metrics.compute()["dice"] == 1


def test_regions_of_missing_classes_have_no_score() -> None:
    config = ModelTrainingConfig(loss="dice_bce", **regions())
    prediction = torch.randint(0, 3, (1, 5, 6, 7), generator=torch.Generator().manual_seed(0))
    for metrics in (
        SegmentationMetrics(4, regions=config.label_regions, labels=config.score_names),
        SurfaceMetrics(4, regions=config.label_regions, labels=config.score_names),
    ):
        metrics.update(prediction, prediction, labelled=torch.tensor([NO_3]))
        scores = metrics.compute()
        name = "dice" if "dice" in scores else "nsd"
        assert math.isnan(scores[f"{name}_whole"])
        assert math.isnan(scores[f"{name}_core"])
        assert scores[f"{name}_edge"] == 1


def test_a_region_with_ignored_voxels_is_scored_by_the_others() -> None:
    config = ModelTrainingConfig(loss="dice_bce", **regions())
    targets = torch.randint(0, 4, (1, 6, 6, 6), generator=torch.Generator().manual_seed(0))
    prediction = targets.clone()
    prediction[..., 3:] = 0
    targets[..., 3:] = IGNORE_INDEX
    metrics = SegmentationMetrics(4, regions=config.label_regions, labels=config.score_names)
    metrics.update(prediction, targets)
    assert metrics.compute()["dice"] == 1


def test_a_mask_has_the_background() -> None:
    assert labelled_mask([2], 4).tolist() == [True, False, True, False]
    assert labelled_mask(None, 3).all()


@pytest.mark.parametrize("preset", ["inverse_frequency", "median_frequency", "effective_number"])
def test_class_weights_are_those_of_the_labelled_cases(preset: str) -> None:
    config = ModelTrainingConfig(num_classes=3, class_weights=preset)
    known = [[80.0, 15.0, 5.0], [85.0, 15.0, math.nan]]
    found = class_weight_tensor(config, known)
    assert found is not None
    assert found.isfinite().all()
    if preset == "inverse_frequency":
        # shares: background 165 of 200, the first class 30 of 200, the second 5 of 100
        inverse = torch.tensor([200 / 165, 200 / 30, 100 / 5])
        torch.testing.assert_close(found, inverse / inverse.mean())
    # as background it would be taken for half as frequent
    as_background = class_weight_tensor(config, [[80, 15, 5], [85, 15, 0]])
    assert as_background is not None
    if preset == "inverse_frequency":
        assert found[2] < as_background[2]
