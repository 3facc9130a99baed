"""Data: layouts, preprocessing into a memory-mapped cache, splits, patches and loaders.

Its parts load on first use: who asks where the cache is needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.data.cache_folder import cache_root
from training.errors import DatasetError
from training.lazy_names import lazy_names
from training.registry import AUGMENTATIONS

if TYPE_CHECKING:
    from training.data.patches.loaders import get_dataloader, get_dataloaders
    from training.data.prepared.cache import PreprocessedDataset
    from training.data.prepared.preparation import (
        DataSource,
        prepare_dataset,
        prepared_fingerprint,
    )
    from training.data.prepared.preprocessing import (
        CaseGeometry,
        PreprocessedCase,
        Preprocessing,
    )
    from training.data.prepared.task import task_of_data
    from training.data.raw.layouts import RawCase, RawDataset, read_layout
    from training.data.raw.phantom import PHANTOM, generate_phantom, resolve_data_dir

__all__ = [
    "AUGMENTATIONS",
    "PHANTOM",
    "CaseGeometry",
    "DataSource",
    "DatasetError",
    "PreprocessedCase",
    "PreprocessedDataset",
    "Preprocessing",
    "RawCase",
    "RawDataset",
    "cache_root",
    "generate_phantom",
    "get_dataloader",
    "get_dataloaders",
    "prepare_dataset",
    "prepared_fingerprint",
    "read_layout",
    "resolve_data_dir",
    "task_of_data",
]

_MODULES = {
    "CaseGeometry": "training.data.prepared.preprocessing",
    "DataSource": "training.data.prepared.preparation",
    "PHANTOM": "training.data.raw.phantom",
    "PreprocessedCase": "training.data.prepared.preprocessing",
    "PreprocessedDataset": "training.data.prepared.cache",
    "Preprocessing": "training.data.prepared.preprocessing",
    "RawCase": "training.data.raw.layouts",
    "RawDataset": "training.data.raw.layouts",
    "generate_phantom": "training.data.raw.phantom",
    "get_dataloader": "training.data.patches.loaders",
    "get_dataloaders": "training.data.patches.loaders",
    "prepare_dataset": "training.data.prepared.preparation",
    "prepared_fingerprint": "training.data.prepared.preparation",
    "read_layout": "training.data.raw.layouts",
    "resolve_data_dir": "training.data.raw.phantom",
    "task_of_data": "training.data.prepared.task",
}

__getattr__ = lazy_names(__name__, _MODULES)
