"""Fields of the data, their split and their patches."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from training.config.base import NOT_SEARCHABLE, ConfigPart
from training.config.types import (
    AugmentationName,
    BatchSize,
    Bool,
    Float,
    Int,
    MirrorAxes,
    MissingChannels,
    Normalisation,
    PatchSize,
    Spacing3d,
)
from training.errors import FieldsError

DEFAULT_TEST_FRACTION = 0.2
"""Share of the cases that are kept for testing where neither a share nor a fold is given."""


_NOT_PLANNED = (
    "{}=auto has no number yet: plan it for the data and the memory at hand with "
    "training.planning.planned_config(config), or give a number"
)


class DataFields(ConfigPart):
    """The data, their split and their patches."""

    data_dir: Path = Field(default=Path("data_preprocessed"), json_schema_extra=NOT_SEARCHABLE)
    """Folder of the data; `phantom` in a search space is the embedded liver phantom."""

    target_spacing: Spacing3d | None = Field(default=None, json_schema_extra=NOT_SEARCHABLE)
    """Voxel spacing in mm that cases are resampled to; null takes the data's own median."""

    intensity_window: tuple[Float, Float] | None = Field(
        default=None, json_schema_extra=NOT_SEARCHABLE
    )
    """CT window in Hounsfield units; null takes foreground percentiles 0.5 and 99.5."""

    normalisation: Normalisation = Field(default="auto", json_schema_extra=NOT_SEARCHABLE)
    """Normalisation of each channel, by nnU-Net's schemes: CT, zscore, noNorm, rescale_to_0_1 or
    rgb_to_0_1.

    `auto` takes a channel that is named after a scheme for that, and all others are z-scored; a
    mapping such as `{PET: noNorm}` changes that of some channels. `modality` is what studies of
    earlier versions keep: CT or z-score, and no other.
    """

    compress_cache: Bool = Field(default=False, json_schema_extra=NOT_SEARCHABLE)
    """Whether the preprocessed arrays are stored compressed (Blosc2, without loss).

    Two thirds of the disk or less, for 10 ms more a patch of 128 x 128 x 128.
    """

    missing_channels: MissingChannels | None = Field(default=None, json_schema_extra=NOT_SEARCHABLE)
    """Whether a case may lack channels, which are then 0: refused or allowed; null is what
    `missing_channels` in dataset.json says, which is refused where it says nothing."""

    val_fraction: Annotated[Float, Field(gt=0, lt=1)] = Field(
        default=0.2, json_schema_extra=NOT_SEARCHABLE
    )
    """Share of the cases that trials are judged on, where `fold` is null."""

    test_fraction: Annotated[Float, Field(ge=0, lt=1)] | None = Field(
        default=None, json_schema_extra=NOT_SEARCHABLE
    )
    """Share of the cases that no trial ever sees; null is 0.2, or with a `fold` none.

    nnU-Net keeps no case apart: its folds hold all of them.
    """

    fold: Annotated[Int, Field(ge=0)] | None = Field(default=None, json_schema_extra=NOT_SEARCHABLE)
    """Fold of a cross-validation that trials are judged on, from 0, in place of `val_fraction`.

    Folds are nnU-Net's: scikit-learn's `KFold` over the sorted names, shuffled with seed 12345.
    """

    num_folds: Annotated[Int, Field(ge=2)] = Field(default=5, json_schema_extra=NOT_SEARCHABLE)
    """Folds of the cross-validation, where `fold` is set."""

    groups: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, json_schema_extra=NOT_SEARCHABLE
    )
    """Cases that belong together, such as the scans of one patient: no split separates them.

    A regular expression with one group, searched in the names of the cases, e.g.
    `(patient\\d+)_`: what the group matches names the group of the case. Or a CSV file
    (`*.csv`) with the columns `case` and `group`.
    """

    splits_file: Path | None = Field(default=None, json_schema_extra=NOT_SEARCHABLE)
    """File of the folds, such as nnU-Net's `splits_final.json`; `fold` says which one is used."""

    split_seed: Annotated[Int, Field(ge=0)] = Field(default=0, json_schema_extra=NOT_SEARCHABLE)
    """Seed of the split into training, validation and test cases."""

    patch_size: PatchSize = (32, 64, 64)
    """Voxels of a training patch and of a sliding window (depth, height, width).

    `auto` is planned as nnU-Net does, once the data are prepared: the median case, made shorter
    until two patches fit into the memory of the trial. The trial's `config.yaml` and the results
    have the numbers, which it keeps when it is resumed.
    """

    train_batch_size: BatchSize = 2
    """Patches of a batch, for each process: with `gpus: 2` a step sees twice as many, and with
    `accumulate: 4` four times as many.

    `auto` is as many as fit into the memory of the trial, and 5 % of the data at most.
    """

    val_batch_size: Annotated[Int, Field(ge=1)] = 1
    """Windows predicted at once when a whole case is segmented; it changes speed alone."""

    num_workers: Annotated[Int, Field(ge=0)] | Literal["auto"] = Field(
        default="auto", json_schema_extra=NOT_SEARCHABLE
    )
    """Loader processes of the training data; 0 loads in a thread of the training process.

    `auto` is one a CPU core of the trial where a GPU trains, 8 at most. On the CPU it is 0:
    the thread keeps ahead of the network, and processes would only take its cores.
    """

    steps_per_epoch: Annotated[Int, Field(ge=1)] | None = None
    """Optimizer steps in an epoch, of all processes alike; null is one patch a training case."""

    foreground_fraction: Annotated[Float, Field(ge=0, le=1)] = 1 / 3
    """Share of the patches that are centred on a foreground voxel."""

    augmentation: AugmentationName = "nnunet"
    """Augmentation of training patches: none, flip (mirroring), default (mirroring and
    nnU-Net's changes of intensity), or nnunet (these, and its rotation and scaling); or an import
    path of your own."""

    mirror_axes: MirrorAxes = "auto"
    """Axes that training patches are mirrored along, where the augmentation mirrors: a list of
    depth, height and width (or 0, 1, 2). Width is from left to right of the body.

    `auto` is all three; width is left out where names of labels say left or right, since a
    mirrored left kidney is a right one.
    """

    augmentation_strength: Annotated[Float, Field(ge=0, le=2)] = 1.0
    """How often and how much patches are changed: 1 is as nnU-Net does it, 0 only mirrors."""

    channel_dropout: Annotated[Float, Field(ge=0, le=1)] = 0.0
    """Probability that a channel of a training patch is set to 0, each by itself, never all.

    It teaches a network to do without a channel that a case may lack.
    """

    @property
    def known_patch_size(self) -> tuple[int, int, int]:
        """The patch size, where it is known; that of one slice with `spatial_dims: 2`.

        Raises:
            FieldsError: (a `ValueError`) as long as it is `auto`.
        """
        if self.patch_size == "auto":
            raise FieldsError(_NOT_PLANNED.format("patch_size"), ("patch_size",))
        # the fields of the network are beside these in the config
        if getattr(self, "spatial_dims", 3) == 2:
            return 1, *self.patch_size[1:]
        return self.patch_size

    @property
    def known_batch_size(self) -> int:
        """The batch size, where it is known.

        Raises:
            FieldsError: (a `ValueError`) as long as it is `auto`.
        """
        if self.train_batch_size == "auto":
            raise FieldsError(_NOT_PLANNED.format("train_batch_size"), ("train_batch_size",))
        return self.train_batch_size

    @model_validator(mode="after")
    def _check_data_fields(self) -> Self:
        self._check_data()
        return self

    def _check_data(self) -> None:
        self._check_split_rules()
        if self.fold is not None and self.splits_file is None and self.fold >= self.num_folds:
            raise FieldsError(
                f"fold={self.fold} must be below num_folds={self.num_folds}: folds are 0 to "
                f"{self.num_folds - 1}",
                ("fold", "num_folds"),
            )
        if self.fold is None and self.val_fraction + self.held_out_share >= 1:
            raise FieldsError(
                f"val_fraction={self.val_fraction} and test_fraction={self.held_out_share} "
                "leave no case for training: together they must be below 1",
                ("val_fraction", "test_fraction"),
            )
        if self.intensity_window is not None:
            low, high = self.intensity_window
            if low >= high:
                raise FieldsError(
                    f"intensity_window needs low < high, but got [{low}, {high}]",
                    ("intensity_window",),
                )

    def _check_split_rules(self) -> None:
        if isinstance(self.mirror_axes, list) and len(set(self.mirror_axes)) < len(
            self.mirror_axes
        ):
            raise FieldsError(
                f"mirror_axes={self.mirror_axes} names an axis twice", ("mirror_axes",)
            )
        if self.groups is not None and self.groups_file is None:
            try:
                found = re.compile(self.groups).groups
            except re.error as error:
                raise FieldsError(
                    f"groups={self.groups!r} is not a regular expression: {error}", ("groups",)
                ) from error
            if found != 1:
                raise FieldsError(
                    f"groups={self.groups!r} has {found} groups in parentheses, but needs one: "
                    r"e.g. (patient\d+)_, or the name of a CSV file that ends in .csv",
                    ("groups",),
                )
        if self.splits_file is None:
            return
        if self.fold is None:
            raise FieldsError(
                f"splits_file={self.splits_file} needs a fold: set e.g. fold: 0",
                ("splits_file", "fold"),
            )
        if self.test_fraction:
            raise FieldsError(
                f"test_fraction={self.test_fraction} and splits_file={self.splits_file}: the file "
                "alone says which cases are kept apart (in the part `test`); remove one",
                ("test_fraction", "splits_file"),
            )

    @property
    def groups_file(self) -> Path | None:
        """The CSV file that `groups` names, None where it is a regular expression or not set."""
        if self.groups is None or not self.groups.lower().endswith(".csv"):
            return None
        return Path(self.groups)

    @property
    def held_out_share(self) -> float:
        """Share of the cases that are kept for testing, with the default resolved."""
        if self.test_fraction is not None:
            return self.test_fraction
        return DEFAULT_TEST_FRACTION if self.fold is None else 0.0
