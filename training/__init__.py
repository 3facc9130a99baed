"""Lightning segmentation library: networks, losses, metrics, data and training.

Its main parts can be imported from here; each is loaded, torch with it, when it is first used.

Example:
    >>> from training import ModelTrainingConfig, SegmentationTrainer, build_model, get_dataloaders
    >>> config = ModelTrainingConfig(data_dir="data_preprocessed", max_epochs=100)
    >>> train, val, test = get_dataloaders(config)
    >>> SegmentationTrainer(config, build_model(config), train, val, test).fit()
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.bundle.bundle import Bundle
    from training.config import ModelTrainingConfig
    from training.data import get_dataloaders, prepare_dataset
    from training.errors import SegtuneError
    from training.lightning_module import SegmentationLightningModule
    from training.models import build_model
    from training.trainer import SegmentationTrainer

__all__ = [
    "Bundle",
    "ModelTrainingConfig",
    "SegmentationLightningModule",
    "SegmentationTrainer",
    "SegtuneError",
    "build_model",
    "get_dataloaders",
    "prepare_dataset",
]

_HOMES = {
    "Bundle": "training.bundle.bundle",
    "ModelTrainingConfig": "training.config",
    "SegmentationLightningModule": "training.lightning_module",
    "SegmentationTrainer": "training.trainer",
    "SegtuneError": "training.errors",
    "build_model": "training.models",
    "get_dataloaders": "training.data",
    "prepare_dataset": "training.data",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
