"""A package of somebody's own, written to a folder: network, loss, metric, searcher and more."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILES = {
    "liver_lab/__init__.py": "",
    "liver_lab/nets.py": '''
import torch
from torch import nn

class TinyNet(nn.Module):
    def __init__(self, num_classes, input_channels, width=4):
        super().__init__()
        # imported where it is used, from a module beside the package
        from lab_blocks import conv_block
        self.layers = nn.Sequential(
            conv_block(input_channels, width), nn.Conv3d(width, num_classes, 1)
        )

    def forward(self, image):
        return self.layers(image)

def build_tiny(config, width: int = 4):
    """A network with a recipe of its own."""
    return TinyNet(config.num_classes, config.input_channels, width)

build_tiny.recipe = {"optimizer": "sgd", "learning_rate": 0.02, "loss": "dice_ce"}

def build_nothing():
    return 3

NUMBER = 3
''',
    "lab_blocks.py": """
from torch import nn

def conv_block(channels, width):
    return nn.Sequential(nn.Conv3d(channels, width, 3, padding=1), nn.ReLU())
""",
    "liver_lab/training.py": """
import torch
import torch.nn.functional as F
from torch import nn
from training.lr_schedules import EpochSchedule

class SmoothCrossEntropy(nn.Module):
    def __init__(self, weight=None):
        super().__init__()
        self.weight = weight

    def forward(self, logits, targets):
        return F.cross_entropy(logits, targets.long(), self.weight, label_smoothing=0.1)

def rmsprop(config, groups):
    return torch.optim.RMSprop(groups, lr=config.learning_rate)

def halved(optimizer):
    return EpochSchedule(optimizer, lambda epoch: 0.5 ** int(epoch))

def halved_each_step(optimizer, steps_per_epoch):
    return EpochSchedule(optimizer, lambda epoch: 0.5 ** epoch, steps_per_epoch)

halved_each_step.each_step = True

def by_root(counts):
    return counts.sum(dim=0) ** -0.5

def brighter(image, label, rng):
    return image + rng.random(), label
""",
    "liver_lab/metrics.py": '''
import math

def volume_error(prediction, target):
    """Relative error of the foreground's volume; nan without a foreground."""
    true = int((target > 0).sum())
    return abs(int((prediction > 0).sum()) - true) / true if true else math.nan

def words(prediction, target):
    return "good"
''',
    "liver_lab/module.py": '''
from training.lightning_module import SegmentationLightningModule

class LabModule(SegmentationLightningModule):
    """Logs a metric of its own."""

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        self.log("val_epochs_seen", float(self.current_epoch + 1))
''',
    "liver_lab/search.py": '''
from tuner.search.policies import Action, Decision, Policy
from tuner.search.searchers import Proposal

def first_draw(view):
    """Random search."""
    import random
    return Proposal(view.space.sample(random.Random(view.trial_seed())))

class StopOdd(Policy):
    """Trials of odd numbers end after an epoch."""

    def judge(self, number, epoch):
        if number % 2:
            return Decision(Action.STOP, "stopped by StopOdd after its first epoch")
        return Decision(Action.CONTINUE)

def stop_odd(record, spec):
    return StopOdd(record)
''',
    "liver_lab/broken.py": "import a_library_that_is_not_there\n",
    "liver_lab/raises.py": "raise RuntimeError('no licence')\n",
}


def write_package(folder: Path) -> Path:
    """Write the package below a folder."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def forget_package() -> None:
    """Let the package be imported anew."""
    for name in [
        name for name in sys.modules if name.partition(".")[0] in ("liver_lab", "lab_blocks")
    ]:
        del sys.modules[name]


@contextmanager
def importable(folder: Path) -> Iterator[Path]:
    """The package in a folder, on the Python path."""
    before = list(sys.path)
    write_package(folder)
    forget_package()
    sys.path.insert(0, str(folder))
    try:
        yield folder
    finally:
        sys.path[:] = before
        forget_package()
