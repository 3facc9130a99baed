"""Numbers for `patch_size: auto` and `train_batch_size: auto`, by the memory at hand."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from training.config import ModelTrainingConfig
from training.data import PreprocessedDataset
from training.models.patch_plan import (
    CPU_BATCH,
    CPU_LARGEST,
    LARGEST,
    LIBRARIES,
    MEMORY_PER_CPU_TRIAL,
    plan_batch,
    plan_patch,
)


@dataclass(frozen=True)
class Memory:
    """Memory for a training step.

    Attributes:
        bytes: How much there is.
        on_cpu: Whether it is the CPU's: patches are then kept small, since time is what lacks.
        described: It in words.
    """

    bytes: float
    on_cpu: bool
    described: str


def memory_at_hand(
    config: ModelTrainingConfig, share: float = 1.0, most: float | None = None
) -> Memory:
    """The memory that a training step may take on this machine.

    On a GPU it is all of it, or the share that a trial has, without what libraries take; on a CPU
    half of the machine's, and 3 GiB at most.

    Args:
        config: `config.gpus` says where it trains.
        share: Part of a GPU; one or more for whole ones.
        most: Bytes that a training may take at most, libraries included.
    """
    if config.gpus == 0 or not torch.cuda.is_available():
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        memory = min(total / 2, MEMORY_PER_CPU_TRIAL, *([] if most is None else [most]))
        return Memory(memory, True, f"{memory / 1e9:.1f} GB of this machine's memory")
    properties = torch.cuda.get_device_properties(0)
    whole = properties.total_memory * min(share, 1.0)
    memory = min(whole, most or whole) - LIBRARIES
    part = f"{share:g} of " if share < 1 else ""
    return Memory(memory, False, f"{memory / 1e9:.1f} GB for a step of {part}{properties.name}")


class CaseSizes(NamedTuple):
    """Sizes of the cases of a dataset, as they are prepared.

    Attributes:
        shape: Median voxels of a case (depth, height, width).
        spacing: Size of a voxel in mm.
        voxels: Voxels of all training cases.
    """

    shape: tuple[float, float, float]
    spacing: tuple[float, float, float]
    voxels: float

    @classmethod
    def of(cls, dataset: PreprocessedDataset) -> CaseSizes:
        """Those of a preprocessed dataset."""
        return cls(dataset.median_shape, dataset.spacing, dataset.voxels("train"))


def planned_values(config: ModelTrainingConfig, sizes: CaseSizes, memory: Memory) -> dict[str, Any]:
    """Numbers for what is `auto` in a config, by field; empty where nothing is.

    A patch is planned as nnU-Net does it (`training.models.patch_plan`), for the median case in the
    spacing of the data, which the network is then planned by as well.

    Raises:
        NoFitError: if nothing fits into the memory, with the way out.
    """
    given_patch, given_batch = config.patch_size, config.train_batch_size
    if given_patch != "auto" and given_batch != "auto":
        return {}
    if given_patch != "auto":
        assert given_batch == "auto"
        batch = plan_batch(config, memory.bytes, dataset_voxels=sizes.voxels)
        return {"train_batch_size": min(batch, CPU_BATCH) if memory.on_cpu else batch}
    plan = plan_patch(
        config,
        sizes.shape,
        sizes.spacing,
        memory.bytes,
        dataset_voxels=sizes.voxels,
        largest=CPU_LARGEST if memory.on_cpu else LARGEST,
        batch=None if given_batch == "auto" else given_batch,
    )
    values: dict[str, Any] = {
        "patch_size": list(plan.patch_size),
        "target_spacing": list(config.target_spacing or sizes.spacing),
    }
    if given_batch == "auto":
        most = CPU_BATCH if memory.on_cpu else plan.batch_size
        values["train_batch_size"] = min(plan.batch_size, most)
    return values


def planned_config(
    config: ModelTrainingConfig, memory: Memory | None = None
) -> ModelTrainingConfig:
    """The config with numbers where its patch or batch is `auto`.

    Args:
        config: Its `data_dir` is a preprocessed folder.
        memory: Memory for a training step; that of this machine by default.

    Raises:
        DatasetError: if `config.data_dir` is not a preprocessed folder.
        NoFitError: if nothing fits into the memory.

    Example:
        >>> config = planned_config(ModelTrainingConfig(data_dir=folder, patch_size="auto"))
        >>> config.patch_size
        (40, 56, 40)
    """
    sizes = CaseSizes.of(PreprocessedDataset.load(config.data_dir))
    values = planned_values(config, sizes, memory or memory_at_hand(config))
    planned = config.model_copy()
    for name, value in values.items():
        setattr(planned, name, value)
    return planned
