"""Data: layouts, preprocessing into a memory-mapped cache, splits, patches and loaders."""

from training.data.augmentation import AUGMENTATIONS
from training.data.cache import PreprocessedDataset, cache_root
from training.data.errors import DatasetError
from training.data.layouts import RawCase, RawDataset, read_layout
from training.data.loaders import get_dataloader, get_dataloaders
from training.data.phantom import PHANTOM, generate_phantom, resolve_data_dir
from training.data.preparation import DataSource, prepare_dataset, prepared_fingerprint
from training.data.preprocessing import CaseGeometry, PreprocessedCase, Preprocessing

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
]
