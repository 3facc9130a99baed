"""The registry of networks: every one takes any size, and refuses what does not fit it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from training.config import ModelName, ModelTrainingConfig
from training.models import MODELS, build_model
from training.models.monai_networks import PaddedNetwork
from training.models.parameters import CHECKPOINTING

NAMES: tuple[ModelName, ...] = get_args(ModelName)
SMALL: dict[str, dict[str, Any]] = {
    "dformer3d": {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]},
    "unet3d": {"channels": [4, 8, 8], "num_res_units": 1},
    "swin_unetr": {"feature_size": 12, "depths": [1, 1, 1, 1]},
    "segresnet": {"init_filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]},
}


def build(name: ModelName, **fields: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelTrainingConfig(model_name=name, model_params=SMALL[name], **fields))


def test_registry_has_every_name_of_the_config() -> None:
    assert tuple(MODELS) == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1, 1), (4, 4, 4), (7, 33, 18)])
def test_every_network_trains_on_any_size(name: ModelName, size: tuple[int, int, int]) -> None:
    model = build(name, num_classes=4, input_channels=2)
    image = torch.randn(1, 2, *size)
    logits: Tensor = model(image)
    assert logits.shape == (1, 4, *size)
    logits.square().mean().backward()
    for parameter, weight in model.named_parameters():
        assert weight.grad is not None, parameter
        assert weight.grad.isfinite().all(), parameter
    with torch.no_grad():
        assert model.eval()(image).isfinite().all()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "dformer3d"])
def test_default_networks_take_sizes_that_do_not_divide(name: ModelName) -> None:
    model = build_model(ModelTrainingConfig(model_name=name)).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 1, 20, 17, 33)).shape == (1, 3, 20, 17, 33)


@pytest.mark.parametrize("name", CHECKPOINTING)
def test_checkpointing_changes_no_gradient(name: ModelName) -> None:
    image = torch.randn(1, 1, 9, 35, 20)
    gradients = []
    for checkpointing in (False, True):
        model = build(name, gradient_checkpointing=checkpointing)
        model(image).square().mean().backward()
        gradients.append([weight.grad for weight in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in CHECKPOINTING])
def test_checkpointing_is_refused_where_there_is_none(name: ModelName) -> None:
    with pytest.raises(ValueError, match=f"{name}.*dformer3d or swin_unetr"):
        build(name, gradient_checkpointing=True)


@pytest.mark.parametrize(
    ("name", "wrong", "near"),
    [
        ("dformer3d", "embed_dims", "embed_dim"),
        ("unet3d", "num_res_unit", "num_res_units"),
        ("swin_unetr", "features_size", "feature_size"),
        ("segresnet", "init_filter", "init_filters"),
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
