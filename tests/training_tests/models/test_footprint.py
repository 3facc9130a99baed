from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker

from training.config import ModelTrainingConfig
from training.models import MODELS, build_model
from training.models.footprint import FLOAT_BYTES, training_bytes

PATCH = (16, 32, 32)

SMALL: dict[str, dict[str, Any]] = {
    "dformer3d": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]},
    "unet3d": {"channels": [4, 8], "strides": [2]},
    "vnet": {},
    "swin_unetr": {"feature_size": 12},
}


def config_of(name: str, **fields: Any) -> ModelTrainingConfig:
    return ModelTrainingConfig(
        model_name=name,
        patch_size=PATCH,
        **{"precision": "32-true", "model_params": SMALL.get(name, {}), **fields},
    )


@pytest.mark.parametrize("name", MODELS)
def test_every_network_is_built_without_memory_for_its_weights(name: str) -> None:
    config = ModelTrainingConfig(model_name=name, patch_size=PATCH)
    with torch.device("meta"):
        network = build_model(config)
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}


# D-Former keeps less on a CPU, where it has kernels of its own
@pytest.mark.parametrize("name", ["unet3d", "vnet", "swin_unetr"])
def test_the_bytes_are_those_that_autograd_keeps(name: str) -> None:
    config = config_of(name, train_batch_size=1)
    network = build_model(config)
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = network(torch.zeros(1, 1, *PATCH))
        loss = nn.functional.cross_entropy(logits, torch.zeros(1, *PATCH, dtype=torch.int64))
    activations = sum(storage.nbytes() for storage in kept.values())
    loss.backward()
    numbers = sum(parameter.numel() for parameter in network.parameters())
    measured = activations + 4 * FLOAT_BYTES * numbers
    assert training_bytes(config) == pytest.approx(measured, rel=0.01)


def test_moments_and_averages_of_the_weights_count() -> None:
    adam, sgd = (config_of("unet3d", optimizer=name) for name in ("adam", "sgd"))
    averaged = config_of("unet3d", optimizer="adam", ema_decay=0.99)
    numbers = sum(parameter.numel() for parameter in build_model(adam).parameters())
    assert training_bytes(adam) - training_bytes(sgd) == FLOAT_BYTES * numbers
    assert training_bytes(averaged) - training_bytes(adam) == FLOAT_BYTES * numbers


def test_the_precision_that_is_not_known_yet_counts_as_the_least() -> None:
    full, half, auto, on_cpu = (
        training_bytes(config_of("unet3d", **given))
        for given in (
            {"precision": "32-true"},
            {"precision": "16-mixed"},
            {"precision": "auto"},
            {"precision": "auto", "gpus": 0},
        )
    )
    assert half == auto < full == on_cpu


DEEP: dict[str, dict[str, Any]] = {
    "dformer3d": {"embed_dim": 12, "depths": [2, 1], "num_heads": [2, 4]},
    "unet3d": {"channels": [4, 8], "strides": [2]},
    "basic_unet": {"features": [4, 4, 8, 8, 8, 4]},
    "segresnet": {"init_filters": 8},
}


@pytest.mark.parametrize("name", DEEP)
def test_recomputed_activations_count_as_at_the_peak_of_a_step(name: str) -> None:
    estimates, peaks = [], []
    for given in (False, True):
        config = config_of(
            name, gradient_checkpointing=given, train_batch_size=4, model_params=DEEP[name]
        )
        estimates.append(training_bytes(config))
        peaks.append(peak_of_a_step(build_model(config), (4, 1, *PATCH)))
    assert estimates[1] < 0.9 * estimates[0]
    assert peaks[1] < 0.9 * peaks[0]
    # a step takes more while it computes; D-Former keeps less on a CPU
    for estimate, peak in zip(estimates, peaks, strict=True):
        assert 0.5 * peak < estimate < 2 * peak


def peak_of_a_step(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Bytes of all tensors that there are at a time, by torch's own tracker."""
    tracker = MemTracker()
    tracker.track_external(network)
    with tracker:
        label = torch.zeros(shape[0], *shape[2:], dtype=torch.int64)
        nn.functional.cross_entropy(network(torch.zeros(shape)), label).backward()
    return int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])
