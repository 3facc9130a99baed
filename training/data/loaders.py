"""Data loaders over a preprocessed folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from training.config import AugmentationName, ModelTrainingConfig
from training.data.augmentation import SeededAugmentation
from training.data.cache import PreprocessedDataset
from training.data.errors import DatasetError
from training.data.sampling import CaseDataset, CaseSampler, PatchDataset, PatchSampler
from training.data.split import SPLITS


def get_dataloader(
    data_dir: Path | str,
    split: str,
    batch_size: int,
    num_workers: int,
    shuffle: bool,
    *,
    patch_size: Sequence[int] = (32, 64, 64),
    foreground_fraction: float = 1 / 3,
    augmentation: AugmentationName = "default",
    steps_per_epoch: int | None = None,
    seed: int = 0,
    processes: int = 1,
) -> DataLoader[Any]:
    """Loader of a split of a preprocessed folder.

    `train` gives batches of random patches, `image` `(b, c, *patch)` and `label`
    `(b, *patch)`. `val` and `test` give lists of whole cases, each with `image`
    `(1, c, *spatial)`, `label` `(1, *spatial)` and `case_id`.

    Args:
        data_dir: What `prepare_dataset` returned.
        split: `train`, `val` or `test`.
        batch_size: Patches, or cases, of a batch.
        num_workers: Loader processes; 0 loads in this one.
        shuffle: Whether cases come in random order.
        patch_size: Size of a training patch.
        foreground_fraction: Share of training patches centred on a foreground voxel.
        augmentation: Key of `AUGMENTATIONS`, for training patches.
        steps_per_epoch: Training batches of an epoch; one patch a case by default.
        seed: Seed of all that is random.
        processes: Processes that train together, each with batches of its own.

    Raises:
        DatasetError: if the folder is no preprocessed one, or the split has no case.
    """
    dataset = PreprocessedDataset.load(Path(data_dir))
    if split not in SPLITS:
        raise DatasetError(f"there is no split {split!r}: choose {', '.join(SPLITS)}")
    cases = dataset.splits[split]
    if not cases:
        raise DatasetError(f"the split {split!r} of {data_dir} has no case")
    if split != "train":
        return DataLoader(
            CaseDataset(dataset, split),
            batch_size=batch_size,
            sampler=CaseSampler(len(cases), shuffle=shuffle, seed=seed),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            collate_fn=list,
        )
    steps = steps_per_epoch or math.ceil(len(cases) / (batch_size * processes))
    patches = PatchDataset(
        dataset,
        split,
        patch_size=patch_size,
        foreground_fraction=foreground_fraction,
        augmentation=SeededAugmentation(augmentation),
        shuffle=shuffle,
        seed=seed,
    )
    return DataLoader(
        patches,
        batch_size=batch_size,
        sampler=PatchSampler(steps * batch_size * processes),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )


def get_dataloaders(
    config: ModelTrainingConfig,
) -> tuple[DataLoader[Any], DataLoader[Any], DataLoader[Any] | None]:
    """Training, validation and test loader of a config; no test loader without test cases.

    Raises:
        DatasetError: if `config.data_dir` is no preprocessed folder.
    """
    train = get_dataloader(
        config.data_dir,
        "train",
        config.train_batch_size,
        config.num_workers,
        shuffle=True,
        patch_size=config.patch_size,
        foreground_fraction=config.foreground_fraction,
        augmentation=config.augmentation,
        steps_per_epoch=config.steps_per_epoch,
        seed=config.seed,
        processes=max(config.gpus, 1),
    )
    val = get_dataloader(config.data_dir, "val", 1, 0, shuffle=False)
    has_test = bool(PreprocessedDataset.load(config.data_dir).splits["test"])
    test = get_dataloader(config.data_dir, "test", 1, 0, shuffle=False) if has_test else None
    return train, val, test
