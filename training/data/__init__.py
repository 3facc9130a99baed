"""Data: layouts, preprocessing into a memory-mapped cache, splits, patches and loaders."""

from training.data.cache_folder import cache_root
from training.data.patches.loaders import get_dataloader, get_dataloaders
from training.data.prepared.cache import PreprocessedDataset
from training.data.prepared.preparation import DataSource, prepare_dataset, prepared_fingerprint
from training.data.prepared.preprocessing import CaseGeometry, PreprocessedCase, Preprocessing
from training.data.raw.layouts import RawCase, RawDataset, read_layout
from training.data.raw.phantom import PHANTOM, generate_phantom, resolve_data_dir
from training.errors import DatasetError
from training.registry import AUGMENTATIONS

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
