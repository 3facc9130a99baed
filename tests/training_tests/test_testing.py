"""The checks for plug-in authors, over every entry of ours and over a foreign package."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from foreign_package import importable

from training import testing
from training.registry import AUGMENTATIONS, LOSSES, LR_SCHEDULES, OPTIMIZERS
from training.testing import (
    check_augmentation,
    check_loss,
    check_metric,
    check_network,
    check_optimizer,
    check_schedule,
)

FAULTY = """
import math
import torch
from torch import nn
from training.lr_schedules import EpochSchedule

class Unused(nn.Module):
    def __init__(self, num_classes, input_channels):
        super().__init__()
        self.layer = nn.Conv3d(input_channels, num_classes, 1)
        self.other = nn.Conv3d(1, 1, 1)

    def forward(self, image):
        return self.layer(image)

class Halving(Unused):
    # every weight takes part, and half of the last axis is lost

    def forward(self, image):
        return self.layer(image)[..., ::2] + 0 * self.other(image[:, :1]).mean()

class NoScalar(nn.Module):
    def forward(self, logits, targets):
        return nn.functional.cross_entropy(logits, targets.long(), reduction="none")

class Away(nn.Module):
    def forward(self, logits, targets):
        return -nn.functional.cross_entropy(logits, targets.long())

def uphill(groups, config):
    return torch.optim.SGD(groups, lr=config.learning_rate, maximize=True)

def forgetful(optimizer):
    return Forgetful(optimizer, 0.5)

class Forgetful(torch.optim.lr_scheduler.ExponentialLR):
    def load_state_dict(self, state):
        pass

def exponential(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

def cosine(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)

def one_cycle(optimizer, config, steps_per_epoch):
    steps = config.max_epochs * steps_per_epoch
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, steps + 1)

one_cycle.each_step = True

def sequence(optimizer):
    kinds = torch.optim.lr_scheduler
    warm = kinds.LinearLR(optimizer, 0.25, total_iters=2)
    return kinds.SequentialLR(optimizer, [warm, kinds.StepLR(optimizer, 2)], [3])

def negative(optimizer):
    return EpochSchedule(optimizer, lambda epoch: 1 - epoch)

def unseeded(image, label):
    return image + torch.rand(1), label

def cropped(image, label):
    return image[:, 1:], label[1:]

def overwrites(prediction, target):
    prediction[:] = target
    return 1.0
"""


@pytest.fixture(autouse=True)
def lab(tmp_path: Path) -> Iterator[Path]:
    with importable(tmp_path / "lab") as folder:
        (folder / "faulty_parts.py").write_text(FAULTY)
        yield folder
        sys.modules.pop("faulty_parts", None)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_passes(name: str) -> None:
    check_loss(name)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_passes(name: str) -> None:
    check_optimizer(name)


@pytest.mark.parametrize("name", LR_SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 2])
def test_every_schedule_passes(name: str, warmup: int) -> None:
    check_schedule(name, warmup_epochs=warmup, step_size=2, plateau_patience=0)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_passes(name: str) -> None:
    check_augmentation(name)


def test_a_foreign_package_passes() -> None:
    check_network("liver_lab.nets:build_tiny", model_params={"width": 3})
    check_network("liver_lab.nets:TinyNet")
    check_loss("liver_lab.training:SmoothCrossEntropy")
    check_optimizer("liver_lab.training:rmsprop", learning_rate=0.01)
    check_schedule("liver_lab.training:halved")
    check_schedule("liver_lab.training:halved_each_step")
    # torch's own, some of which multiply the rate that they find
    for name in ("exponential", "cosine", "one_cycle", "sequence"):
        check_schedule(f"faulty_parts:{name}")
    check_augmentation("liver_lab.training:brighter")
    check_metric("liver_lab.metrics:volume_error")


@pytest.mark.parametrize(
    ("check", "name", "message"),
    [
        (check_network, "Unused", "the weight other.weight takes no part"),
        (check_network, "Halving", "not \\(1, 4, 7, 33, 18\\)"),
        (check_loss, "NoScalar", "the loss has the shape"),
        (check_loss, "Away", "did not lead to the target"),
        (check_optimizer, "uphill", "the loss went from"),
        (check_schedule, "forgetful", "of a run that was resumed"),
        (check_schedule, "negative", "the learning rate falls to"),
        (check_augmentation, "unseeded", "draw from `rng` alone"),
        (check_augmentation, "cropped", "an image \\(2, 7, 10, 12\\)"),
        (check_metric, "overwrites", "it changed the label maps"),
    ],
)
def test_each_fault_is_found(check: Callable[..., Any], name: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(f"faulty_parts:{name}")


def test_the_public_checks_are_exactly_these() -> None:
    checks = {name for name in vars(testing) if name.startswith("check_")}
    assert set(testing.__all__) == checks


def test_the_checks_need_no_pytest() -> None:
    code = "import sys, training.testing; assert not {'pytest', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
