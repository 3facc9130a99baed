"""Data loaders over a preprocessed folder."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from training.config import MIRROR_AXES, ModelTrainingConfig
from training.data.patches.augmentation import Augmentation
from training.data.patches.mirroring import mirror_axes as axes_to_mirror
from training.data.patches.sampling import CaseDataset, CaseSampler, PatchDataset, PatchSampler
from training.data.prepared.cache import PreprocessedDataset
from training.data.prepared.split import SPLITS
from training.data.raw.label_values import shown_values
from training.errors import DatasetError

MAX_WORKERS = 8
"""Loader processes that `num_workers: auto` starts at most."""


class PrefetchingLoader(DataLoader[Any]):
    """A loader that draws the next batch in a thread while the network trains on this one.

    Drawing a patch releases the interpreter lock nearly all the time, and a thread starts at
    once, where a loader process takes seconds and a copy of the libraries for each trial. With
    `num_workers` above 0 the processes run ahead anyway.
    """

    def __iter__(self) -> Any:
        """The batches of an epoch."""
        batches = super().__iter__()
        return batches if self.num_workers else _ahead(batches)


def _ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches, the next one drawn before it is asked for."""
    with ThreadPoolExecutor(1, thread_name_prefix="patches") as pool:
        _one_core(pool)
        drawn = pool.submit(next, batches, None)
        while (batch := drawn.result()) is not None:
            drawn = pool.submit(next, batches, None)
            yield batch


def _one_core(pool: ThreadPoolExecutor) -> None:
    """Keep the thread of a pool to one core.

    Two threads that each spread their work over all cores wait for each other's parts: training
    steps would take half as long again.
    """
    threads = torch.get_num_threads()
    # a thread takes over the number that was set last when it first asks for it; what it sets
    # then is its own
    pool.submit(torch.get_num_threads).result()
    pool.submit(torch.set_num_threads, 1).result()
    torch.set_num_threads(threads)


def get_dataloader(
    data_dir: Path | str,
    split: str,
    batch_size: int,
    num_workers: int,
    shuffle: bool,
    *,
    patch_size: Sequence[int] = (32, 64, 64),
    foreground_fraction: float = 1 / 3,
    augmentation: str = "default",
    augmentation_strength: float = 1.0,
    channel_dropout: float = 0.0,
    mirror_axes: Sequence[int] = (0, 1, 2),
    steps_per_epoch: int | None = None,
    seed: int = 0,
    processes: int = 1,
    accumulate: int = 1,
    regions: Sequence[Sequence[int]] | None = None,
) -> DataLoader[Any]:
    """Loader of a split of a preprocessed folder.

    `train` gives batches of random patches, `image` `(b, c, *patch)` and `label`
    `(b, *patch)`. `val` and `test` give lists of whole cases, each with `image`
    `(1, c, *spatial)`, `label` `(1, *spatial)` and `case_id`. Where cases are labelled for some
    classes only, both have `labelled` `(b, classes)`, see `training.partial_labels`.

    Args:
        data_dir: What `prepare_dataset` returned.
        split: `train`, `val` or `test`.
        batch_size: Patches, or cases, of a batch.
        num_workers: Loader processes; 0 loads in a thread of this one.
        shuffle: Whether cases come in random order.
        patch_size: Size of a training patch.
        foreground_fraction: Share of training patches centred on a foreground voxel.
        augmentation: Key of `AUGMENTATIONS` or import path, for training patches.
        augmentation_strength: 1 is as nnU-Net does it.
        channel_dropout: Probability that a channel of a training patch is set to 0.
        mirror_axes: Axes of a patch that it may be mirrored along.
        steps_per_epoch: Optimizer steps of an epoch; one patch a case by default.
        seed: Seed of all that is random.
        processes: Processes that train together, each with batches of its own.
        accumulate: Batches of an optimizer step: an epoch has no step of fewer.
        regions: Classes of each region, by which foreground voxels are drawn.

    Raises:
        DatasetError: if the folder is not a preprocessed one, or the split has no case.
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
    a_step = batch_size * processes * accumulate
    steps = steps_per_epoch or math.ceil(len(cases) / a_step)
    patches = PatchDataset(
        dataset,
        split,
        patch_size=patch_size,
        foreground_fraction=foreground_fraction,
        augmentation=Augmentation(augmentation, patch_size, augmentation_strength, mirror_axes),
        channel_dropout=channel_dropout,
        shuffle=shuffle,
        seed=seed,
        regions=regions,
    )
    return PrefetchingLoader(
        patches,
        batch_size=batch_size,
        sampler=PatchSampler(steps * a_step),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )


def get_dataloaders(
    config: ModelTrainingConfig,
) -> tuple[DataLoader[Any], DataLoader[Any], DataLoader[Any] | None]:
    """Training, validation and test loader of a config; no test loader without test cases.

    Raises:
        DatasetError: if `config.data_dir` is not a preprocessed folder, or its cases have labels or
            channels that the network of the config has no place for.
    """
    dataset = PreprocessedDataset.load(config.data_dir)
    _check_fits(config, dataset)
    train = get_dataloader(
        config.data_dir,
        "train",
        config.known_batch_size,
        resolve_num_workers(config),
        shuffle=True,
        patch_size=config.known_patch_size,
        foreground_fraction=config.foreground_fraction,
        augmentation=config.augmentation,
        augmentation_strength=config.augmentation_strength,
        channel_dropout=config.channel_dropout,
        mirror_axes=[MIRROR_AXES.index(axis) for axis in axes_to_mirror(config, dataset.labels)],
        steps_per_epoch=config.steps_per_epoch,
        seed=config.seed,
        processes=max(config.gpus, 1),
        accumulate=config.accumulate,
        regions=None if config.label_regions is None else config.label_regions.classes,
    )
    val = get_dataloader(config.data_dir, "val", 1, 0, shuffle=False)
    has_test = bool(dataset.splits["test"])
    test = get_dataloader(config.data_dir, "test", 1, 0, shuffle=False) if has_test else None
    return train, val, test


def _check_fits(config: ModelTrainingConfig, dataset: PreprocessedDataset) -> None:
    """Check that a network of the config can take the images and learn the labels."""
    labels, channels = dataset.labels, dataset.channels
    # with a target label, all others are background
    too_few = config.target_label is None and config.num_classes < len(labels)
    problems = [
        f"{field}={getattr(config, field)}, but the data in {dataset.folder} have {len(found)} "
        f"({', '.join(found)}): set {field}={len(found)}"
        for field, found, wrong in (
            ("num_classes", labels, too_few),
            ("input_channels", channels, config.input_channels != len(channels)),
        )
        if wrong
    ]
    values = dataset.preprocessing.label_values
    if values is not None and config.label_values != list(values):
        problems.append(
            f"label_values={config.label_values}, but those of the data in {dataset.folder} are "
            f"{shown_values(values)} ({', '.join(labels)}): set label_values={list(values)}"
        )
    if problems:
        raise DatasetError("\n  ".join(problems))


def resolve_num_workers(config: ModelTrainingConfig) -> int:
    """Loader processes of a config, with `auto` resolved for this machine."""
    if config.num_workers != "auto":
        return config.num_workers
    if config.gpus == 0 or not torch.cuda.is_available():
        return 0
    # Ray sets the thread count to the cores of the trial
    cores = int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads())
    return min(cores, MAX_WORKERS)
