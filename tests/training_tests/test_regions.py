"""Regions as in nnU-Net v2: sigmoid channels, and back to label maps in the given order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from training.class_weights import class_weight_tensor
from training.config import ModelTrainingConfig
from training.config.regions import Regions, brats_regions, derived_order
from training.errors import DatasetError, FieldsError
from training.ignored_voxels import IGNORE_INDEX
from training.lightning_module import SegmentationLightningModule
from training.losses import DeepSupervisionLoss, build_loss
from training.metrics import SegmentationMetrics, SurfaceMetrics
from training.models import build_model
from training.region_maps import classes_of_regions, decode, region_targets
from training.registry import LOSSES, REGION_LOSSES

NESTED = {"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}


def config_of(**settings: Any) -> ModelTrainingConfig:
    values: dict[str, Any] = {
        "num_classes": 4,
        "regions": NESTED,
        "regions_class_order": [1, 2, 3],
        "model_name": "unet3d",
        "model_params": {"channels": [4, 8], "strides": [2], "num_res_units": 0},
        "patch_size": (8, 8, 8),
        "gpus": 0,
    }
    return ModelTrainingConfig(**{**values, **settings})


def regions_of(**settings: Any) -> Regions:
    regions = config_of(**settings).label_regions
    assert regions is not None
    return regions


def nnunet_segmentation(probabilities: np.ndarray, order: list[int]) -> np.ndarray:
    """nnU-Net's `convert_probabilities_to_segmentation` (v2.5, label_handling.py)."""
    segmentation = np.zeros(probabilities.shape[1:], dtype=np.uint16)
    for i, c in enumerate(order):
        segmentation[probabilities[i] > 0.5] = c
    return segmentation


def nnunet_dice_bce(logits: Tensor, target: Tensor, smooth: float = 1e-5) -> Tensor:
    """nnU-Net's `DC_and_BCE_loss` with batch Dice, written from its two parts."""
    probabilities = torch.sigmoid(logits)
    axes = [0, *range(2, logits.ndim)]
    intersect = (probabilities * target).sum(axes)
    both = probabilities.sum(axes) + target.sum(axes)
    dice = (2 * intersect + smooth) / torch.clip(both + smooth, 1e-8)
    return F.binary_cross_entropy_with_logits(logits, target) - dice.mean()


@given(st.integers(0, 2**32 - 1))
def test_predictions_become_labels_by_nnunets_rule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = rng.random((3, 4, 5, 6)).astype(np.float32)
    found[rng.random(found.shape) < 0.1] = 0.5
    order = rng.permutation([1, 2, 3]).tolist()
    names = {f"r{value}": [value, *rng.choice([4, 5], 1)] for value in order}
    plain = {name: [int(value) for value in values] for name, values in names.items()}
    regions = regions_of(num_classes=6, regions=plain, regions_class_order=order)
    expected = nnunet_segmentation(found, order)
    np.testing.assert_array_equal(decode(found, regions), expected)
    labels = classes_of_regions(torch.from_numpy(found)[None], regions)[0]
    np.testing.assert_array_equal(labels.numpy(), expected)


def test_label_maps_become_regions_and_come_back() -> None:
    labels = torch.randint(0, 4, (2, 5, 6, 7))
    masks = region_targets(labels, regions_of())
    for channel, values in enumerate(NESTED.values()):
        expected = torch.isin(labels, torch.tensor(values))
        assert torch.equal(masks[:, channel], expected)
    assert torch.equal(classes_of_regions(masks.float(), regions_of()), labels)
    assert regions_of().not_restored() == {}
    # the enhancing part written before the core is lost in it
    twisted = {"enhancing": [3], "whole": [1, 2, 3], "core": [2, 3]}
    regions = regions_of(regions=twisted, regions_class_order=[3, 1, 2])
    assert regions.not_restored() == {3: 2}


def test_dice_and_cross_entropy_are_nnunets() -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(2, 3, 4, 6, 5, requires_grad=True)
    labels = torch.randint(0, 3, (2, 4, 6, 5))
    ours = build_loss(config_of())(logits, labels)
    theirs = nnunet_dice_bce(logits, region_targets(labels, regions_of()).float())
    torch.testing.assert_close(ours, theirs + 1)
    for one, other in zip(*(torch.autograd.grad(x, logits) for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other)


def test_other_losses_are_those_of_torchvision_and_monai() -> None:
    from monai.losses import FocalLoss, TverskyLoss

    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 4, 4), torch.randint(0, 4, (2, 4, 4, 4))
    masks = region_targets(labels, regions_of()).float()
    losses = {name: build_loss(config_of(loss=name))(logits, labels) for name in REGION_LOSSES}
    expected = F.binary_cross_entropy_with_logits(logits, masks)
    torch.testing.assert_close(losses["bce"], expected)
    torch.testing.assert_close(losses["sigmoid_focal"], FocalLoss(gamma=2.0)(logits, masks))
    tversky = TverskyLoss(sigmoid=True, alpha=0.3, beta=0.7, batch=True)(logits, masks)
    torch.testing.assert_close(losses["sigmoid_tversky"], tversky, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", REGION_LOSSES)
def test_every_loss_of_regions_trains_towards_the_label_map(name: str) -> None:
    torch.manual_seed(0)
    loss = DeepSupervisionLoss(build_loss(config_of(loss=name)))
    labels = torch.randint(0, 4, (1, 4, 4, 4))
    logits = torch.randn(1, 3, 4, 4, 4, requires_grad=True)
    half = torch.randn(1, 3, 2, 2, 2, requires_grad=True)
    optimizer = torch.optim.Adam([logits, half], lr=0.2)
    for kind in (torch.uint8, torch.int64):
        assert loss([logits, half], labels.to(kind)).ndim == 0
    for _ in range(150):
        optimizer.zero_grad()
        torch.autograd.backward(loss([logits, half], labels))
        optimizer.step()
    assert torch.equal(classes_of_regions(torch.sigmoid(logits), regions_of()), labels)
    assert half.grad is not None
    assert half.grad.abs().sum() > 0


@pytest.mark.parametrize("name", REGION_LOSSES)
def test_a_region_of_weight_0_teaches_nothing(name: str) -> None:
    logits = torch.randn(1, 3, 4, 4, 4, requires_grad=True)
    labels = torch.randint(0, 4, (1, 4, 4, 4))
    loss = build_loss(config_of(loss=name, class_weights=[1.0, 0.0, 2.0]))(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[:, 1].abs().max() == 0
    assert gradient[:, [0, 2]].abs().min(dim=0).values.max() > 0


@pytest.mark.parametrize("name", REGION_LOSSES)
def test_voxels_that_are_left_out_teach_no_region(name: str) -> None:
    """The loss, its gradient and the scores are those of the other half alone."""
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 6, 5, requires_grad=True)
    labels = torch.randint(0, 4, (2, 4, 6, 5))
    halved = labels.clone()
    halved[:, 2:] = IGNORE_INDEX
    loss = build_loss(config_of(loss=name))
    found, expected = loss(logits, halved), loss(logits[:, :, :2], labels[:, :2])
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, logits)
    assert gradient[:, :, 2:].abs().max() == 0
    assert gradient[:, :, :2].abs().min() > 0


def test_voxels_that_are_left_out_count_in_no_region() -> None:
    torch.manual_seed(0)
    prediction, labels = torch.randint(0, 4, (2, 1, 4, 6, 5))
    halved = labels.clone()
    halved[:, 2:] = IGNORE_INDEX
    found, expected = (
        SegmentationMetrics(4, labels=config_of().score_names, regions=regions_of())
        for _ in range(2)
    )
    found.update(prediction, halved)
    expected.update(prediction[:, :2], labels[:, :2])
    for name in ("dice", "dice_whole", "dice_core", "dice_enhancing", "iou", "accuracy"):
        torch.testing.assert_close(found.compute()[name], expected.compute()[name])


def test_a_loss_of_regions_needs_regions() -> None:
    plain = config_of(regions=None, regions_class_order=None, loss="bce")
    with pytest.raises(ValueError, match="loss=bce is for regions, and there are none"):
        build_loss(plain)


def test_logits_of_another_number_of_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="4 channels, but there are 3 regions"):
        build_loss(config_of())(torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="labels must be 0 to 3 for 4 classes"):
        build_loss(config_of())(torch.zeros(1, 3, 4, 4), torch.full((1, 4, 4), 4))


def test_weights_by_the_voxels_of_each_region() -> None:
    counts = [[60, 20, 10, 10], [80, 20, 0, 0]]
    by_frequency = class_weight_tensor(config_of(class_weights="inverse_frequency"), counts)
    assert by_frequency is not None
    expected = torch.tensor([1 / 60, 1 / 20, 1 / 10])
    torch.testing.assert_close(by_frequency, expected / expected.mean())
    median = class_weight_tensor(config_of(class_weights="median_frequency"), counts)
    assert median is not None
    # shares of the regions in the cases that have them: 60 of 200, 20 of 100, 10 of 100
    torch.testing.assert_close(median, torch.tensor([0.2 / 0.3, 1.0, 2.0]))


def test_scores_are_those_of_the_region_masks() -> None:
    """Beside the metrics of two classes on each region by itself."""
    torch.manual_seed(0)
    prediction, target = torch.randint(0, 4, (2, 2, 8, 8, 8))
    target[1][target[1] == 3] = 1
    prediction[1][prediction[1] == 3] = 1
    config = config_of()
    names = config.score_names
    assert names == ("whole", "core", "enhancing")
    overlap = SegmentationMetrics(4, labels=names, regions=config.label_regions)
    surface = SurfaceMetrics(4, labels=names, regions=config.label_regions)
    overlap.update(prediction, target)
    surface.update(prediction, target, (3.0, 1.0, 1.0))
    found = {**overlap.compute(), **surface.compute()}
    for name, values in NESTED.items():
        masks = [torch.isin(labels, torch.tensor(values)).long() for labels in (prediction, target)]
        one, other = SegmentationMetrics(2), SurfaceMetrics(2)
        one.update(*masks)
        other.update(*masks, (3.0, 1.0, 1.0))
        for score, value in {**one.compute(), **other.compute()}.items():
            kind, _, label = score.partition("_1")
            if score in ("accuracy", "iou_1", "boundary_f1_1") or "_1" not in score:
                continue
            torch.testing.assert_close(found[f"{kind}_{name}{label}"], value, equal_nan=True)
    mean = torch.stack([found[f"dice_{name}"] for name in names]).mean()
    torch.testing.assert_close(found["dice"], mean)
    torch.testing.assert_close(found["accuracy"], (prediction == target).double().mean())


def test_a_network_has_a_channel_a_region() -> None:
    config = config_of()
    module = SegmentationLightningModule(build_model(config), config).eval()
    image = torch.randn(1, 1, 12, 10, 9)
    logits = module.predict_logits(image)
    assert logits.shape == (1, 3, 12, 10, 9)
    expected = nnunet_segmentation(torch.sigmoid(logits)[0].detach().numpy(), [1, 2, 3])
    labels = module.to_labels(logits)[0]
    np.testing.assert_array_equal(labels.numpy(), expected)
    assert config.num_classes == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"loss": "dice_ce"},
            "loss=dice_ce has a softmax, .*regions overlap; choose dice_bce, bce",
        ),
        ({"target_label": 1}, "target_label=1 and regions"),
        ({"regions": {"a": [1, 4]}, "regions_class_order": None}, "'a' has the label 4, but lab"),
        ({"regions": {"a": [0, 1]}, "regions_class_order": None}, "label values above 0"),
        ({"regions": {"a": []}, "regions_class_order": None}, "must have label values"),
        ({"regions": {}, "regions_class_order": None}, "there is none"),
        ({"regions": {"a b": [1], "A-b": [2]}, "regions_class_order": None}, "one name in scores"),
        ({"regions": {"missing": [1]}, "regions_class_order": None}, "means something else"),
        ({"regions_class_order": [1, 2]}, "has 2 entries, but there are 3 regions"),
        ({"regions_class_order": [1, 1, 3]}, "writes 1 for the region 'core'.* are \\[2, 3\\]"),
        ({"regions": None}, "regions_class_order=.* needs regions"),
        ({"regions": "brets", "regions_class_order": None}, "'brets' is no preset"),
        ({"class_weights": [1.0] * 4}, "4 entries .* 3 regions \\(whole, core, enhancing\\)"),
        (
            {"regions": {"core": [2], "whole": [1, 2]}, "regions_class_order": None},
            "'core' .* lies within those after it",
        ),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(**values)


def test_defaults_of_regions() -> None:
    config = ModelTrainingConfig(num_classes=5, regions={"whole": [1, 2, 3, 4], "core": [1, 3, 4]})
    assert (config.loss, config.output_channels) == ("dice_bce", 2)
    assert derived_order(config.regions) == [2, 1]  # type: ignore[arg-type]
    weighted = ModelTrainingConfig.from_flat(
        {"num_classes": 4, "regions": NESTED, "class_weights.core": 3.0}
    )
    assert weighted.class_weights == [1.0, 3.0, 1.0]
    with pytest.raises(FieldsError, match=r"class_weights.2 names no class: regions are whole"):
        ModelTrainingConfig.from_flat({"num_classes": 4, "regions": NESTED, "class_weights.2": 3.0})
    with pytest.raises(FieldsError, match="preset, which the labels of the data"):
        _ = ModelTrainingConfig(regions="brats").label_regions
    assert not LOSSES.keys() & REGION_LOSSES.keys()


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (
            {"background": 0, "necrosis": 1, "oedema": 2, "non-enhancing": 3, "enhancing": 4},
            ([2, 1, 3, 4], [1, 3, 4], [4]),
        ),
        ({"background": 0, "l1": 1, "l2": 2, "l3": 3, "l4": 4}, ([2, 1, 3, 4], [1, 3, 4], [4])),
        ({"background": 0, "l1": 1, "l2": 2, "l4": 4}, ([2, 1, 4], [1, 4], [4])),
        (
            {"background": 0, "NCR/NET": 1, "ED": 2, "ET": 4},
            ([2, 1, 4], [1, 4], [4]),
        ),
        # the Decathlon's Task01 and nnU-Net's conversion have the oedema first
        (
            {"background": 0, "edema": 1, "non-enhancing tumor": 2, "enhancing tumour": 3},
            ([1, 2, 3], [2, 3], [3]),
        ),
        ({"background": 0, "NCR": 1, "SNFH": 2, "ET": 3}, ([2, 1, 3], [1, 3], [3])),
    ],
)
def test_brats_labels_are_told_by_name_then_by_value(
    labels: dict[str, int], expected: tuple[list[int], ...]
) -> None:
    found = brats_regions(list(labels), list(labels.values()), "data")
    assert list(found) == ["whole_tumour", "tumour_core", "enhancing_tumour"]
    assert tuple(found.values()) == expected


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "l1": 1, "l2": 2, "l3": 3},
        {"background": 0, "liver": 1, "tumour": 2},
        {"background": 0, "enhancing": 1, "necrosis": 2, "l4": 4},
    ],
)
def test_other_labels_are_not_taken_for_brats(labels: dict[str, int]) -> None:
    with pytest.raises(DatasetError, match=r"regions=brats does not fit .*regions of your own"):
        brats_regions(list(labels), list(labels.values()), "data")
