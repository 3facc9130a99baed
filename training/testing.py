"""Checks that every network, loss, optimizer, schedule, augmentation and metric must pass.

They are for those who write their own. Each takes a name (a key of a registry, or an import path)
and raises an `AssertionError` that says what is wrong. They need no pytest and no data.

Example:
    >>> def test_my_network():
    ...     check_network("my_nets:build_tiny", model_params={"width": 8})
    >>> def test_my_loss():
    ...     check_loss("my_losses:smooth_dice")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from training.config import ModelTrainingConfig
from training.data.patches.augmentation import Augmentation
from training.ignored_voxels import IGNORE_INDEX
from training.losses import build_loss
from training.lr_schedules import is_stepped_each_step
from training.metrics.own import measure
from training.models import build_model
from training.optimizers import get_optimizer

__all__ = [
    "check_augmentation",
    "check_loss",
    "check_metric",
    "check_network",
    "check_optimizer",
    "check_schedule",
]


def check_network(
    name: str, sizes: Sequence[tuple[int, int, int]] = ((1, 1, 1), (7, 33, 18)), **fields: Any
) -> None:
    """A network takes volumes of any size, trains all its weights, and depends on the seed alone.

    Args:
        name: The network.
        sizes: Sizes of the volumes.
        fields: Other fields of the config, e.g. `model_params` of a small network.
    """
    given = {"num_classes": 4, "input_channels": 2, "patch_size": (16, 48, 32), **fields}
    config = ModelTrainingConfig(model_name=name, **given)
    network, again = build_model(config), build_model(config)
    for (key, weight), other in zip(network.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(weight, other), f"{name}: the weight {key} is not drawn by the seed"
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        image = torch.randn(1, config.input_channels, *size, generator=generator)
        shape = (1, config.num_classes, *size)
        network.train().zero_grad()
        outputs = network(image)
        scales = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
        _check_logits(name, scales[0], shape)
        torch.autograd.backward(torch.stack([scale.square().mean() for scale in scales]).sum())
        for key, weight in network.named_parameters():
            if weight.requires_grad:
                assert weight.grad is not None, f"{name}: the weight {key} takes no part"
                assert weight.grad.isfinite().all(), f"{name}: the gradient of {key} is not finite"
        with torch.no_grad():
            logits = network.eval()(image)
            _check_logits(name, logits, shape)
            again.load_state_dict(network.state_dict())
            copied = again.eval()(image)
        assert torch.allclose(copied, logits, atol=1e-5), (
            f"{name}: a copy with the same weights predicts otherwise"
        )


def _check_logits(name: str, logits: Any, shape: tuple[int, ...]) -> None:
    assert isinstance(logits, Tensor), f"{name}: the output is {type(logits).__name__}"
    assert tuple(logits.shape) == shape, f"{name}: logits {tuple(logits.shape)}, not {shape}"
    assert logits.isfinite().all(), f"{name}: logits are not finite"


def check_loss(name: str, **fields: Any) -> None:
    """A loss is one number, takes labels of any integer type, and trains towards the target.

    Where it says that it leaves voxels out (`ignore_index`), their logits have no gradient.

    Args:
        name: The loss.
        fields: Other fields of the config.
    """
    loss = build_loss(ModelTrainingConfig(loss=name, **fields))
    for kind in (torch.uint8, torch.int32, torch.int64):
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(1, 3, 4, 4, 4, generator=generator, requires_grad=True)
        targets = torch.randint(0, 3, (1, 4, 4, 4), generator=generator).to(kind)
        optimizer = torch.optim.SGD([logits], lr=20.0)
        first = loss(logits, targets)
        assert first.ndim == 0, f"{name}: the loss has the shape {tuple(first.shape)}, not ()"
        for _ in range(200):
            optimizer.zero_grad()
            torch.autograd.backward(loss(logits, targets))
            optimizer.step()
        before, last = first.item(), loss(logits, targets).item()
        assert last < before, f"{name}: the loss went from {before:.4g} to {last:.4g}"
        assert torch.equal(logits.argmax(dim=1), targets.long()), (
            f"{name}: 200 steps on logits of their own did not lead to the target"
        )
    if getattr(loss, "ignore_index", None) == IGNORE_INDEX:
        logits = torch.randn(2, 3, 4, 4, 4, requires_grad=True)
        targets = torch.arange(128).reshape(2, 4, 4, 4) % 3
        left_out = torch.arange(4) < 2
        torch.autograd.backward(loss(logits, torch.where(left_out, IGNORE_INDEX, targets)))
        assert logits.grad is not None
        assert logits.grad.isfinite().all(), f"{name}: the gradient is not finite"
        assert not logits.grad[..., left_out].any(), (
            f"{name}: voxels of the target {IGNORE_INDEX} have a gradient"
        )


def check_optimizer(name: str, **fields: Any) -> None:
    """An optimizer lowers a loss, and its state can be saved and loaded.

    Args:
        name: The optimizer.
        fields: Other fields of the config.
    """
    inputs, model = _linear_problem()
    config = ModelTrainingConfig(optimizer=name, **{"learning_rate": 0.05, **fields})
    optimizer, _ = get_optimizer(config, model)
    first = last = _loss(model, inputs).item()
    for _ in range(40):
        optimizer.zero_grad()
        loss = _loss(model, inputs)
        torch.autograd.backward(loss)
        optimizer.step()
        last = loss.item()
    assert last < 0.7 * first, f"{name}: the loss went from {first:.4g} to {last:.4g} in 40 steps"
    other, _ = get_optimizer(config, model)
    other.load_state_dict(optimizer.state_dict())
    assert other.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()


def check_schedule(name: str, **fields: Any) -> None:
    """A schedule keeps the rate at 0 or above, and a resumed one goes on as if never cut off.

    Args:
        name: The schedule.
        fields: Other fields of the config.
    """
    epochs = 6
    steps = 3 if is_stepped_each_step(name) else 1
    config = ModelTrainingConfig(scheduler=name, **{"max_epochs": epochs, **fields})

    def rates(first: int, last: int, state: Any = None) -> tuple[list[float], Any]:
        optimizer, schedule = get_optimizer(config, nn.Linear(2, 2), steps_per_epoch=steps)
        if schedule is not None and state is not None:
            schedule.load_state_dict(state)
        found = []
        for _ in range(first * steps, last * steps):
            found.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            if isinstance(schedule, ReduceLROnPlateau):
                schedule.step(0.0)
            elif schedule is not None:
                schedule.step()
        return found, None if schedule is None else schedule.state_dict()

    whole, _ = rates(0, epochs)
    assert min(whole) >= 0, f"{name}: the learning rate falls to {min(whole)}"
    begun, state = rates(0, 2)
    resumed, _ = rates(2, epochs, state)
    assert np.allclose([*begun, *resumed], whole), (
        f"{name}: learning rates {[*begun, *resumed]} of a run that was resumed, but {whole} of "
        "one that was not"
    )


def check_augmentation(name: str, **fields: Any) -> None:
    """An augmentation keeps shape and labels of a patch, and draws by the given numbers alone.

    Args:
        name: The augmentation.
        fields: Arguments of `training.data.patches.augmentation.Augmentation`.
    """
    size = (8, 10, 12)
    augmentation = Augmentation(name, size, **fields)
    source = np.random.default_rng(0)
    image = torch.from_numpy(source.normal(size=(2, *size)).astype(np.float32))
    label = torch.from_numpy(source.integers(0, 3, size=size))
    for seed in range(5):
        # a change may be made in place
        one, other = (
            augmentation.change(image.clone(), label.clone(), np.random.default_rng(seed))
            for _ in range(2)
        )
        assert one[0].shape == image.shape, f"{name}: an image {tuple(one[0].shape)}"
        assert one[1].shape == label.shape, f"{name}: a label map {tuple(one[1].shape)}"
        assert one[0].isfinite().all(), f"{name}: the image is not finite"
        assert set(one[1].flatten().tolist()) <= {0, 1, 2}, f"{name}: labels that were not there"
        same = torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
        assert same, f"{name}: the same numbers led to another patch: draw from `rng` alone"


def check_metric(name: str) -> None:
    """A metric is one number for each case, the same each time, and changes no label map.

    Args:
        name: Its import path.
    """
    source = np.random.default_rng(0)
    for shape in ((4, 5, 6), (1, 3, 3)):
        prediction, target = (torch.from_numpy(source.integers(0, 3, shape)) for _ in range(2))
        empty = torch.zeros(shape, dtype=torch.int64)
        for one, other in ((prediction, target), (target, target), (empty, target), (empty, empty)):
            before = one.clone(), other.clone()
            options: dict[str, Any] = {"spacing": (3.0, 1.0, 1.0), "num_classes": 3}
            first, second = (measure(name, one, other, **options) for _ in range(2))
            same = first == second or (np.isnan(first) and np.isnan(second))
            assert same, f"{name}: {first} and then {second} for the same case"
            kept = torch.equal(before[0], one) and torch.equal(before[1], other)
            assert kept, f"{name}: it changed the label maps that it was given"


def _linear_problem() -> tuple[Tensor, nn.Module]:
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(4, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return torch.randn(32, 4, generator=generator), model


def _loss(model: nn.Module, inputs: Tensor) -> Tensor:
    loss: Tensor = (model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()
    return loss
