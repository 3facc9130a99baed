"""Fields of the run: what is monitored, and where and how it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from training.config.base import NOT_SEARCHABLE, ConfigPart
from training.config.types import Bool, Float, Int, MetricPath, Mode, ModulePath, Precision


class RunFields(ConfigPart):
    """What is monitored, and where and how it trains."""

    monitor: str = Field(default="val_dice", json_schema_extra=NOT_SEARCHABLE)
    """Logged metric that picks the best checkpoint and drives plateau and early stopping."""

    monitor_mode: Mode = Field(default="max", json_schema_extra=NOT_SEARCHABLE)
    """Whether a greater or a smaller monitored metric is better."""

    own_metrics: list[MetricPath] = Field(default_factory=list, json_schema_extra=NOT_SEARCHABLE)
    """Import paths of metrics of your own, `my_metrics:volume_error`, that are measured on each
    validation and test case; see `training.metrics.own`. A monitored one need not be listed."""

    lightning_module: ModulePath | None = Field(default=None, json_schema_extra=NOT_SEARCHABLE)
    """Import path of a subclass of `SegmentationLightningModule` that trains in its place."""

    early_stopping_patience: Annotated[Int, Field(ge=1)] | None = Field(
        default=50, json_schema_extra=NOT_SEARCHABLE
    )
    """Epochs without improvement after which training stops; null never stops early."""

    boundary_tolerance: Annotated[Float, Field(ge=0)] = Field(
        default=1.0, json_schema_extra=NOT_SEARCHABLE
    )
    """Distance in voxels within which two boundary voxels count as matching."""

    surface_tolerance: Annotated[Float, Field(ge=0)] = Field(
        default=1.0, json_schema_extra=NOT_SEARCHABLE
    )
    """Distance in mm within which surfaces count as matching in the normalised surface Dice."""

    window_overlap: Annotated[Float, Field(ge=0, lt=1)] = Field(
        default=0.5, json_schema_extra=NOT_SEARCHABLE
    )
    """Overlap of neighbouring sliding windows, as a share of the window."""

    precision: Precision = Field(default="auto", json_schema_extra=NOT_SEARCHABLE)
    """Arithmetic of the training: full, or mixed with fp16 or bf16. `auto` is 16-mixed on a GPU; on
    a CPU with instructions for bf16 it is bf16-mixed for convolutional networks, else 32-true."""

    gpus: Annotated[Int, Field(ge=0)] = Field(default=1, json_schema_extra=NOT_SEARCHABLE)
    """GPUs to train on; where there is none, as many processes on the CPU. 0 forces the CPU."""

    seed: Annotated[Int, Field(ge=0, lt=2**32)] = 0
    """Seed of weights, patches and augmentation."""

    deterministic: Bool = Field(default=False, json_schema_extra=NOT_SEARCHABLE)
    """Refuse GPU operations that may differ from run to run; slower."""

    log_dir: Path = Field(default=Path("logs"), json_schema_extra=NOT_SEARCHABLE)
    """Folder of the TensorBoard events."""

    checkpoint_dir: Path = Field(default=Path("checkpoints"), json_schema_extra=NOT_SEARCHABLE)
    """Folder of the best and the last checkpoint."""

    debug: Bool = Field(default=False, json_schema_extra=NOT_SEARCHABLE)
    """Log shapes, outputs and progress of every step."""
