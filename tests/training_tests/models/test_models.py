"""The registry of networks: every one takes any size, and refuses what does not fit it."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from small_networks import SMALL, SUPERVISED
from torch import Tensor, nn

from training.config import ModelName, ModelTrainingConfig
from training.losses import DeepSupervisionLoss, SegmentationCrossEntropyLoss
from training.models import MODELS, build_model
from training.models.dynunet import UNetPlan
from training.models.padding import FixedSizeNetwork, PaddedNetwork
from training.models.recompute import recompute_blocks, recomputed_blocks
from training.models.resenc_unet import ResidualBlock, _initialise
from training.testing import check_network

NAMES = tuple(MODELS)


def build(name: ModelName, **fields: Any) -> nn.Module:
    torch.manual_seed(0)
    fields = {"patch_size": (16, 48, 32), "model_params": SMALL[name], **fields}
    return build_model(ModelTrainingConfig(model_name=name, **fields))


def test_registry_has_every_name_of_the_config() -> None:
    for name in NAMES:
        assert ModelTrainingConfig(model_name=name).model_name == name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1, 1), (7, 33, 18)])
def test_every_network_trains_on_any_size(name: ModelName, size: tuple[int, int, int]) -> None:
    check_network(name, [size], model_params=SMALL[name])


# the small forms of the others differ in widths and depths alone
@pytest.mark.parametrize(
    "name", ["dynunet", "resenc_unet", "unet3d", "segresnet", "segresnet_ds", "unetr"]
)
def test_default_networks_take_sizes_that_do_not_divide(name: ModelName) -> None:
    config = ModelTrainingConfig(model_name=name, patch_size=(16, 32, 48))
    model = build_model(config).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 1, 12, 17, 33)).shape == (1, 3, 12, 17, 33)


@pytest.mark.parametrize("name", SUPERVISED)
def test_deep_supervision_gives_logits_of_each_resolution(name: ModelName) -> None:
    model = build(name, model_params={**SMALL[name], **SUPERVISED[name]})
    image, label = torch.randn(1, 1, 10, 33, 18), torch.zeros(1, 10, 33, 18, dtype=torch.long)
    outputs = model(image)
    sizes = [tuple(scale.shape[2:]) for scale in outputs]
    halves = [tuple(-(-size // 2**level) for size in (10, 33, 18)) for level in range(len(sizes))]
    if name in {"dynunet", "resenc_unet"}:
        # the plan halves the short axis twice and then leaves it
        halves = [(10, 33, 18), (5, 17, 9), (3, 9, 5)]
    assert len(sizes) > 1
    assert sizes == halves
    loss = DeepSupervisionLoss(SegmentationCrossEntropyLoss())(outputs, label)
    loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())
    # nothing of the step's graph stays behind, so the network can be copied
    again = copy.deepcopy(model).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(image), model.eval()(image))


RANDOM: dict[ModelName, dict[str, Any]] = {
    "dformer3d": {"drop_path_rate": 0.3, "drop_rate": 0.2, "attn_drop_rate": 0.2},
    "dynunet": {"dropout": 0.2},
    "unet3d": {"dropout": 0.2, "norm": "BATCH"},
    "basic_unet": {"dropout": 0.2, "norm": "BATCH"},
    "attention_unet": {"dropout": 0.2},
    "segresnet": {"dropout_prob": 0.2},
    "swin_unetr": {"drop_rate": 0.2, "dropout_path_rate": 0.3},
    "unetr": {"dropout_rate": 0.2},
}
"""Settings with which a network draws numbers, or keeps statistics of its batches."""


@pytest.mark.parametrize("name", NAMES)
def test_recomputing_activations_changes_nothing_else(name: ModelName) -> None:
    image = torch.randn(2, 1, 9, 35, 20)
    params = {**SMALL[name], **RANDOM.get(name, {})}
    plain, recomputing = (
        build(name, model_params=params, gradient_checkpointing=given) for given in (False, True)
    )
    assert recomputed_blocks(recomputing)
    assert not recomputed_blocks(plain)
    for model in (plain, recomputing):
        torch.manual_seed(3)
        outputs = model(image)
        scales = outputs if isinstance(outputs, list) else [outputs]
        sum(scale.square().mean() for scale in scales).backward()
    assert list(plain.state_dict()) == list(recomputing.state_dict())
    # also the statistics of batch norms, which see the batch a second time
    for (key, value), after in zip(
        plain.state_dict().items(), recomputing.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(after, value, msg=key)
    for one, other in zip(plain.parameters(), recomputing.parameters(), strict=True):
        if one.grad is None:
            assert other.grad is None
        else:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6)


def test_a_copy_of_a_recomputing_network_is_one_of_its_own() -> None:
    network = build("unet3d", gradient_checkpointing=True)
    image = torch.randn(1, 1, 8, 8, 8)
    before = network.eval()(image)
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for weight in copied.parameters():
            weight.zero_()
    assert torch.equal(network(image), before)
    assert not copied(image).any()


def test_outside_of_training_nothing_is_recomputed() -> None:
    network = build("unet3d", gradient_checkpointing=True)
    calls = []
    norm = next(module for module in network.modules() if isinstance(module, nn.InstanceNorm3d))
    norm.register_forward_hook(lambda *_: calls.append(1))
    image = torch.randn(1, 1, 8, 8, 8)
    for training, expected in ((True, 2), (False, 1)):
        calls.clear()
        network.train(training)(image).sum().backward()
        assert len(calls) == expected


def test_a_network_without_such_blocks_is_named() -> None:
    with pytest.raises(ValueError, match="no block to recompute in Linear"):
        recompute_blocks(nn.Linear(2, 2), nn.Conv3d)


@pytest.mark.parametrize(
    ("name", "wrong", "near"),
    [
        ("dformer3d", "embed_dims", "embed_dim"),
        ("unet3d", "num_res_unit", "num_res_units"),
        ("swin_unetr", "features_size", "feature_size"),
        ("segresnet", "init_filter", "init_filters"),
        ("dynunet", "filter", "filters"),
        ("resenc_unet", "block", "blocks"),
        ("basic_unet", "feature", "features"),
        ("attention_unet", "channel", "channels"),
        ("vnet", "acts", "act"),
        ("segresnet_ds", "ds_depth", "dsdepth"),
        ("mednext", "kernel_sizes", "kernel_size"),
        ("unetr", "hidden_sizes", "hidden_size"),
    ],
)
def test_unknown_parameters_are_refused(name: ModelName, wrong: str, near: str) -> None:
    config = ModelTrainingConfig(model_name=name, model_params={wrong: 8})
    with pytest.raises(ValueError, match=rf"model_params.{wrong} .*{name}.*did you mean {near}"):
        build_model(config)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("argument", "field"),
    [
        ("num_classes", "num_classes"),
        ("in_chan", "input_channels"),
        ("gradient_checkpointing", "gradient_checkpointing"),
    ],
)
def test_arguments_with_a_field_are_refused(name: ModelName, argument: str, field: str) -> None:
    config = ModelTrainingConfig(model_name=name, model_params={argument: 2})
    with pytest.raises(ValueError, match=f"set the field {field} instead"):
        build_model(config)


def test_dformer_takes_its_own_patch_size() -> None:
    config = ModelTrainingConfig(
        model_params={**SMALL["dformer3d"], "patch_size": [1, 2, 2]}, patch_size=(8, 16, 16)
    )
    assert build_model(config).patch_size == (1, 2, 2)


def test_building_leaves_the_config_as_it_was() -> None:
    config = ModelTrainingConfig(model_name="unet3d", model_params=SMALL["unet3d"])
    build_model(config)
    assert config.model_params == SMALL["unet3d"]


def test_unet_takes_strides_per_axis() -> None:
    params = {"channels": [4, 8, 8], "strides": [[1, 2, 2], [2, 2, 2]]}
    model = build_model(ModelTrainingConfig(model_name="unet3d", model_params=params))
    assert isinstance(model, PaddedNetwork)
    assert model.divisor == (2, 4, 4)
    assert model(torch.randn(1, 1, 3, 5, 6)).shape == (1, 3, 3, 5, 6)


@pytest.mark.parametrize(
    ("size", "padded"),
    [((8, 16, 4), (8, 16, 4)), ((5, 16, 1), (8, 16, 4)), ((1, 1, 1), (4, 4, 8))],
)
def test_padding_repeats_the_border_up_to_the_divisor(
    size: tuple[int, int, int], padded: tuple[int, int, int]
) -> None:
    class Identity(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            self.seen = image
            return image

    network = Identity()
    image = torch.randn(1, 1, *size)
    assert torch.equal(PaddedNetwork(network, (4, 4, 4))(image), image)
    assert network.seen.shape[2:] == padded
    assert torch.equal(network.seen[0, 0, -1, -1, -1], image[0, 0, -1, -1, -1])


@pytest.mark.parametrize(
    ("patch_size", "spacing", "strides", "kernels"),
    [
        # nnU-Net's published plans: hippocampus, prostate, brain tumour
        (
            (40, 56, 40),
            (1.0, 1.0, 1.0),
            [(1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)],
            [(3, 3, 3)] * 4,
        ),
        (
            (20, 320, 256),
            (3.6, 0.62, 0.62),
            [(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)],
            [(1, 3, 3), (1, 3, 3), *[(3, 3, 3)] * 5],
        ),
        ((128, 128, 128), (1.0, 1.0, 1.0), [(1, 1, 1), *[(2, 2, 2)] * 5], [(3, 3, 3)] * 6),
    ],
)
def test_the_plan_is_nnunets(
    patch_size: tuple[int, ...],
    spacing: tuple[float, ...],
    strides: list[tuple[int, ...]],
    kernels: list[tuple[int, ...]],
) -> None:
    plan = UNetPlan.of(patch_size, spacing)
    assert list(plan.strides) == strides
    assert list(plan.kernels) == kernels
    assert plan.filters == (32, 64, 128, 256, 320, 320, 320)[: len(strides)]


def test_dynunet_is_planned_by_patch_and_spacing() -> None:
    cubes = build("dynunet", patch_size=(16, 16, 16), model_params={})
    slices = build(
        "dynunet", patch_size=(16, 64, 64), target_spacing=(4.0, 1.0, 1.0), model_params={}
    )
    assert isinstance(cubes, PaddedNetwork)
    assert isinstance(slices, PaddedNetwork)
    assert (cubes.divisor, slices.divisor) == ((4, 4, 4), (4, 16, 16))
    parameters = [weight.numel() for weight in build("dynunet", model_params={}).parameters()]
    assert sum(parameters) > 1_000_000


def test_dynunet_says_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"patch_size=\[8, 8, 8\] allows 2 .*larger patch_size"):
        build("dynunet", patch_size=(8, 8, 8), model_params={})
    with pytest.raises(ValueError, match=r"filters=\[4, 8\] needs one entry for each of the 4"):
        build("dynunet", patch_size=(32, 32, 32), model_params={"filters": [4, 8]})
    with pytest.raises(ValueError, match="4 strides but 1 kernel sizes"):
        build("dynunet", patch_size=(32, 32, 32), model_params={"kernel_size": [3]})


def test_unetr_is_built_for_its_patch_size() -> None:
    with pytest.raises(ValueError, match=r"unetr.*patch_size=\[20, 32, 32\].*multiple of 16"):
        build("unetr", patch_size=(20, 32, 32))
    model = build("unetr", patch_size=(16, 32, 32))
    assert isinstance(model, FixedSizeNetwork)
    with pytest.raises(ValueError, match=r"\[16, 32, 32\] voxels, but got one of \[17, 32, 32\]"):
        model(torch.randn(1, 1, 17, 32, 32))


def test_vnet_takes_channels_that_divide_16() -> None:
    with pytest.raises(ValueError, match="input_channels=3: it needs 1, 2, 4, 8 or 16"):
        build("vnet", input_channels=3)


def test_importing_the_registry_does_not_import_monai() -> None:
    code = "import sys, training.models; sys.exit('monai' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_weights_depend_on_the_seed_alone() -> None:
    config = ModelTrainingConfig(
        model_params={"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 4]}
    )
    first = build_model(config).state_dict()
    torch.rand(7)
    again = build_model(config).state_dict()
    config.seed = 1
    other = build_model(config).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("patch_size", "spacing", "channels", "classes", "parameters"),
    [
        ((40, 56, 40), (1.0, 1.0, 1.0), 1, 3, 25_895_593),
        ((128, 160, 112), (1.0, 1.0, 1.0), 4, 4, 101_944_372),
        ((20, 320, 256), (3.6, 0.62, 0.62), 2, 3, 140_403_602),
        ((192, 192, 192), (1.0, 0.78, 0.78), 1, 14, 102_359_430),
    ],
)
def test_resenc_unet_has_as_many_parameters_as_nnunets(
    patch_size: tuple[int, int, int],
    spacing: tuple[float, float, float],
    channels: int,
    classes: int,
    parameters: int,
) -> None:
    """Of `ResidualEncoderUNet` in dynamic_network_architectures 0.4.4, by nnU-Net's plans."""
    config = ModelTrainingConfig(
        model_name="resenc_unet",
        patch_size=patch_size,
        target_spacing=spacing,
        input_channels=channels,
        num_classes=classes,
    )
    with torch.device("meta"):
        network = build_model(config)
    assert sum(weight.numel() for weight in network.parameters()) == parameters


def test_resenc_unet_computes_what_nnunets_does() -> None:
    """Logits of `ResidualEncoderUNet` (as above) with the same weights, at three resolutions."""
    config = ModelTrainingConfig(
        model_name="resenc_unet",
        patch_size=(32, 32, 32),
        input_channels=2,
        model_params={"filters": [4, 8, 16, 32], "blocks": [1, 3, 4, 6]},
    )
    network = build_model(config)
    with torch.no_grad():
        for weight in network.parameters():
            wave = torch.sin(torch.arange(weight.numel(), dtype=torch.float64) + 1)
            weight.copy_(0.3 * wave.reshape(weight.shape))
    image = torch.cos(torch.arange(2 * 32**3, dtype=torch.float64) * 0.7)
    outputs = network(image.reshape(1, 2, 32, 32, 32).float())
    expected = [
        ((0.35858, 0.19175, 0.04213), 0.198371, 0.169600),
        ((0.48139, 0.25535, -0.18154), 0.186476, 0.317031),
        ((0.84394, -0.26907, 0.48867), 0.316258, 0.350115),
    ]
    for logits, (voxel, mean, spread) in zip(outputs, expected, strict=True):
        assert logits[0, :, 3, 2, 1].tolist() == pytest.approx(voxel, abs=1e-4)
        assert logits.mean().item() == pytest.approx(mean, abs=1e-4)
        assert logits.std().item() == pytest.approx(spread, abs=1e-4)


def test_a_residual_block_begins_as_its_shortcut() -> None:
    block = ResidualBlock(4, 4, (3, 3, 3), (1, 1, 1)).apply(_initialise)
    features = torch.rand(1, 4, 6, 6, 6)
    torch.testing.assert_close(block(features), features)


def test_resenc_unet_says_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"at least 2 stages, but patch_size=\[4, 4, 4\] allows 1"):
        build("resenc_unet", patch_size=(4, 4, 4), model_params={})
    with pytest.raises(ValueError, match=r"blocks=\[1, 2\] needs one entry of 1 or more for each"):
        build("resenc_unet", patch_size=(32, 32, 32), model_params={"blocks": [1, 2]})
    with pytest.raises(ValueError, match="4 strides but 1 kernel sizes"):
        build("resenc_unet", patch_size=(32, 32, 32), model_params={"kernel_size": [3]})
