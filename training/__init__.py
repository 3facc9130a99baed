"""Lightning segmentation library: networks, losses, metrics, data and training.

Its main parts can be imported from here; each is loaded, torch with it, when it is first used.

Example:
    >>> from training import ModelTrainingConfig, SegmentationTrainer, build_model, get_dataloaders
    >>> config = ModelTrainingConfig(data_dir="data_preprocessed", max_epochs=100)
    >>> train, val, test = get_dataloaders(config)
    >>> SegmentationTrainer(config, build_model(config), train, val, test).fit()
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.lazy_names import lazy_names

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

_MODULES = {
    "Bundle": "training.bundle.bundle",
    "ModelTrainingConfig": "training.config",
    "SegmentationLightningModule": "training.lightning_module",
    "SegmentationTrainer": "training.trainer",
    "SegtuneError": "training.errors",
    "build_model": "training.models",
    "get_dataloaders": "training.data",
    "prepare_dataset": "training.data",
}

__getattr__ = lazy_names(__name__, _MODULES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
