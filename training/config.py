"""The one configuration of a training run: flat, typed, and validated whenever it changes.

This module imports neither torch nor ray, so that a search space can be checked in
milliseconds on a machine that has no GPU.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

ModelName = Literal[
    "dformer3d",
    "dynunet",
    "unet3d",
    "basic_unet",
    "attention_unet",
    "vnet",
    "segresnet",
    "segresnet_ds",
    "mednext",
    "swin_unetr",
    "unetr",
]
OptimizerName = Literal["adam", "adamw", "sgd"]
SchedulerName = Literal["none", "step", "exponential", "plateau", "cosine", "poly", "one_cycle"]
LossName = Literal["cross_entropy", "dice_ce", "focal", "tversky"]
ClassWeightPreset = Literal["uniform", "inverse_frequency", "median_frequency", "effective_number"]
AugmentationName = Literal["none", "flip", "default", "nnunet"]
Precision = Literal["32-true", "16-mixed", "bf16-mixed"]
Mode = Literal["min", "max"]


def _reject_bool(value: Any) -> Any:
    """Refuse a boolean where a number is meant: YAML's `yes` would otherwise be 1."""
    if isinstance(value, bool):
        raise ValueError("a number is needed here, not true or false")
    return value


def _require_bool(value: Any) -> Any:
    """Refuse words: pydantic takes `yes` and `off` for booleans, YAML 1.2 does not."""
    if not isinstance(value, bool):
        raise ValueError("write true or false")
    return value


Bool = Annotated[bool, BeforeValidator(_require_bool)]
Int = Annotated[int, BeforeValidator(_reject_bool)]
Float = Annotated[float, BeforeValidator(_reject_bool)]
PositiveWeight = Annotated[Float, Field(ge=0)]
Size3d = tuple[
    Annotated[Int, Field(ge=1)], Annotated[Int, Field(ge=1)], Annotated[Int, Field(ge=1)]
]
Spacing3d = tuple[
    Annotated[Float, Field(gt=0)], Annotated[Float, Field(gt=0)], Annotated[Float, Field(gt=0)]
]

MIRROR_AXES: Final = ("depth", "height", "width")
"""Names of the spatial axes, in array order."""


def _axis_name(value: Any) -> Any:
    """The name of an axis that is given by its number."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(MIRROR_AXES):
        return MIRROR_AXES[value]
    return value


MirrorAxis = Annotated[Literal["depth", "height", "width"], BeforeValidator(_axis_name)]


def _auto_or_list(value: Any) -> Any:
    """Refuse words other than auto with the way to write axes."""
    if isinstance(value, str) and value != "auto":
        raise ValueError("write auto, or a list of depth, height and width; [] mirrors none")
    return value


MirrorAxes = Annotated[Literal["auto"] | list[MirrorAxis], BeforeValidator(_auto_or_list)]

NOT_SEARCHABLE: dict[str, Any] = {"searchable": False}


class ModelTrainingConfig(BaseModel):
    """Every hyperparameter and setting of one training run, one field each.

    The config is validated on construction and on every assignment; unknown fields are
    refused. Spatial triples are in array order: depth, height, width, which is the order
    (superior, anterior, right) of a volume in the preprocessed cache.

    Raises:
        pydantic.ValidationError: (a `ValueError`) names each field that is wrong and why.

    Example:
        >>> config = ModelTrainingConfig(model_name="dformer3d", learning_rate=1e-4)
        >>> config.target_label = 2
        >>> config.gpus = -1
        Traceback (most recent call last):
        ...
        pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelTrainingConfig
        ...
    """

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    # Network
    model_name: ModelName = "dformer3d"
    """Network to train, a key of `training.models.MODELS`."""

    model_params: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the network, e.g. `model_params.embed_dim`."""

    num_classes: Annotated[Int, Field(ge=2)] = Field(default=3, json_schema_extra=NOT_SEARCHABLE)
    """Output channels of the network, background included."""

    input_channels: Annotated[Int, Field(ge=1)] = Field(default=1, json_schema_extra=NOT_SEARCHABLE)
    """Image channels of a case (MR sequences, or 1 for CT)."""

    gradient_checkpointing: Bool = False
    """Recompute activations in the backward pass: less memory, more time."""

    # Data
    data_dir: Path = Field(default=Path("data_preprocessed"), json_schema_extra=NOT_SEARCHABLE)
    """Folder of the data; `phantom` in a search space is the embedded liver phantom."""

    target_spacing: Spacing3d | None = Field(default=None, json_schema_extra=NOT_SEARCHABLE)
    """Voxel spacing in mm that cases are resampled to; null takes the data's own median."""

    intensity_window: tuple[Float, Float] | None = Field(
        default=None, json_schema_extra=NOT_SEARCHABLE
    )
    """CT window in Hounsfield units; null takes foreground percentiles 0.5 and 99.5."""

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

    patch_size: Size3d = (32, 64, 64)
    """Voxels of a training patch and of a sliding window (depth, height, width)."""

    train_batch_size: Annotated[Int, Field(ge=1)] = 2
    """Patches of a training step, for each process: `gpus: 2` sees twice as many a step."""

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
    """Training steps in an epoch, of all processes alike; null is one patch a training case."""

    foreground_fraction: Annotated[Float, Field(ge=0, le=1)] = 1 / 3
    """Share of the patches that are centred on a foreground voxel."""

    augmentation: AugmentationName = "default"
    """Augmentation of training patches: none, flip (mirroring), default (mirroring and
    nnU-Net's changes of intensity), or nnunet (these, and its rotation and scaling)."""

    mirror_axes: MirrorAxes = "auto"
    """Axes that training patches are mirrored along, where the augmentation mirrors: a list of
    depth, height and width (or 0, 1, 2). Width is from left to right of the body.

    `auto` is all three; width is left out where names of labels say left or right, since a
    mirrored left kidney is a right one.
    """

    augmentation_strength: Annotated[Float, Field(ge=0, le=2)] = 1.0
    """How often and how much patches are changed: 1 is as nnU-Net does it, 0 only mirrors."""

    # Task
    target_label: Annotated[Int, Field(ge=1)] | None = Field(
        default=None, json_schema_extra=NOT_SEARCHABLE
    )
    """Train background against this one label; null trains all classes."""

    loss: LossName = "cross_entropy"
    """Training loss, a key of `training.losses.LOSSES`."""

    class_weights: ClassWeightPreset | list[PositiveWeight] = "uniform"
    """Weight of each class in the loss: a list, or a preset computed from the labels.

    With `target_label` the list still has one entry a class; background's and the
    target's are used. The presets are those of `training.class_weights`.
    """

    effective_number_beta: Annotated[Float, Field(ge=0, lt=1)] = 0.9999
    """Beta of the class weights `effective_number`: 0 weighs all alike, near 1 by frequency."""

    focal_gamma: Annotated[Float, Field(ge=0)] = 2.0
    """Exponent of the focal loss; 0 is cross-entropy."""

    tversky_alpha: Annotated[Float, Field(ge=0)] = 0.3
    """Weight of false positives in the Tversky loss; alpha = beta = 0.5 is Dice."""

    tversky_beta: Annotated[Float, Field(ge=0)] = 0.7
    """Weight of false negatives in the Tversky loss."""

    # Optimisation
    optimizer: OptimizerName = "adamw"
    """Optimizer, a key of `training.optimizers.OPTIMIZERS`."""

    learning_rate: Annotated[Float, Field(gt=0)] = 1e-4
    """Learning rate at the end of the warm-up."""

    weight_decay: Annotated[Float, Field(ge=0)] = 1e-5
    """Weight decay: decoupled for adamw, L2 for adam and sgd."""

    decay_norms_and_biases: Bool = False
    """Whether norms and biases decay too, as in nnU-Net; by default kernels and matrices alone."""

    momentum: Annotated[Float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd."""

    nesterov: Bool = False
    """Nesterov's form of momentum, for sgd."""

    scheduler: SchedulerName = "none"
    """Learning-rate scheduler, a key of `training.lr_schedules.SCHEDULERS`."""

    warmup_epochs: Annotated[Int, Field(ge=0)] = 0
    """Epochs of linear warm-up, before any scheduler: it has the epochs that are left."""

    step_size: Annotated[Int, Field(ge=1)] = 30
    """Epochs in which the step and exponential schedulers decay by `lr_decay`."""

    lr_decay: Annotated[Float, Field(gt=0, lt=1)] = 0.1
    """Factor of a decay of the step, exponential and plateau schedulers."""

    plateau_patience: Annotated[Int, Field(ge=0)] = 5
    """Epochs without improvement before the plateau scheduler decays."""

    poly_power: Annotated[Float, Field(gt=0)] = 0.9
    """Exponent of the poly scheduler: lr = lr0 * (1 - epoch / max_epochs) ** power."""

    one_cycle_peak: Annotated[Float, Field(gt=0, lt=1)] = 0.3
    """Share of the training after which one_cycle has risen to `learning_rate`."""

    ema_decay: Annotated[Float, Field(gt=0, lt=1)] | None = None
    """Decay a step of a moving average of the weights, e.g. 0.999; null keeps none.

    The averaged weights are those that are validated, tested and exported.
    """

    gradient_clip: Annotated[Float, Field(gt=0)] | None = None
    """Largest norm of the gradient; null does not clip."""

    max_epochs: Annotated[Int, Field(ge=1)] = 100
    """Epochs of a full training run."""

    # Run
    monitor: str = Field(default="val_dice", json_schema_extra=NOT_SEARCHABLE)
    """Logged metric that picks the best checkpoint and drives plateau and early stopping."""

    monitor_mode: Mode = Field(default="max", json_schema_extra=NOT_SEARCHABLE)
    """Whether a greater or a smaller monitored metric is better."""

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

    precision: Precision = Field(default="32-true", json_schema_extra=NOT_SEARCHABLE)
    """Arithmetic of the training: full, or mixed with fp16 or bf16."""

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

    def __setattr__(self, name: str, value: Any) -> None:
        """Assign and validate; a refused value leaves the config as it was."""
        if name not in type(self).model_fields:
            super().__setattr__(name, value)
            return
        before = dict(self.__dict__)
        before_set = set(self.model_fields_set)
        try:
            super().__setattr__(name, value)
        except ValueError:
            self.__dict__.update(before)
            object.__setattr__(self, "__pydantic_fields_set__", before_set)
            raise

    @model_validator(mode="after")
    def _check_fields_together(self) -> Self:
        for check in (self._check_classes, self._check_schedule, self._check_data):
            check()
        return self

    def _check_classes(self) -> None:
        default = "" if "num_classes" in self.model_fields_set else " (the default; give your own)"
        if self.target_label is not None and self.target_label >= self.num_classes:
            raise ValueError(
                f"target_label={self.target_label} must be below num_classes={self.num_classes}"
                f"{default}: labels are 0 (background) to {self.num_classes - 1}"
            )
        if isinstance(self.class_weights, list):
            if len(self.class_weights) != self.num_classes:
                raise ValueError(
                    f"class_weights has {len(self.class_weights)} entries "
                    f"({self.class_weights}) but num_classes={self.num_classes}{default}: "
                    "give one weight a class, background first"
                )
            if not math.fsum(self.class_weights) > 0:
                raise ValueError("class_weights are all 0: at least one class must count")

    def _check_schedule(self) -> None:
        if self.tversky_alpha == self.tversky_beta == 0:
            raise ValueError("tversky_alpha and tversky_beta are both 0: no error would cost")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=true needs momentum > 0, but got momentum=0")
        if self.warmup_epochs >= self.max_epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} must be below max_epochs={self.max_epochs}"
            )

    def _check_data(self) -> None:
        self._check_split_rules()
        if self.fold is not None and self.splits_file is None and self.fold >= self.num_folds:
            raise ValueError(
                f"fold={self.fold} must be below num_folds={self.num_folds}: folds are 0 to "
                f"{self.num_folds - 1}"
            )
        if self.fold is None and self.val_fraction + self.held_out_share >= 1:
            raise ValueError(
                f"val_fraction={self.val_fraction} and test_fraction={self.held_out_share} "
                "leave no case for training: together they must be below 1"
            )
        if self.intensity_window is not None:
            low, high = self.intensity_window
            if low >= high:
                raise ValueError(f"intensity_window needs low < high, but got [{low}, {high}]")

    def _check_split_rules(self) -> None:
        if isinstance(self.mirror_axes, list) and len(set(self.mirror_axes)) < len(
            self.mirror_axes
        ):
            raise ValueError(f"mirror_axes={self.mirror_axes} names an axis twice")
        if self.groups is not None and self.groups_file is None:
            try:
                found = re.compile(self.groups).groups
            except re.error as error:
                raise ValueError(
                    f"groups={self.groups!r} is not a regular expression: {error}"
                ) from error
            if found != 1:
                raise ValueError(
                    f"groups={self.groups!r} has {found} groups in parentheses, but needs one: "
                    r"e.g. (patient\d+)_, or the name of a CSV file that ends in .csv"
                )
        if self.splits_file is None:
            return
        if self.fold is None:
            raise ValueError(f"splits_file={self.splits_file} needs a fold: set e.g. fold: 0")
        if self.test_fraction:
            raise ValueError(
                f"test_fraction={self.test_fraction} and splits_file={self.splits_file}: the file "
                "alone says which cases are kept apart (in the part `test`); remove one"
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
        return 0.2 if self.fold is None else 0.0

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Self:
        """Build a config from flat values in which nested parts have dotted keys.

        `model_params.embed_dim` sets one network argument. `class_weights.2` sets the
        weight of class 2; the other classes keep their weight from `class_weights`, or 1.

        Raises:
            pydantic.ValidationError: for unknown fields and wrong values.
            ValueError: for a dotted key that does not fit its field.
        """
        plain = {key: value for key, value in values.items() if "." not in key}
        if isinstance(plain.get("model_params"), Mapping):
            plain["model_params"] = dict(plain["model_params"])
        for key in sorted(key for key in values if "." in key):
            field, _, entry = key.partition(".")
            if field == "model_params":
                plain.setdefault("model_params", {})[entry] = values[key]
            elif field == "class_weights":
                default = cls.model_fields["num_classes"].default
                num_classes = int(plain.get("num_classes", default))
                plain["class_weights"] = _with_weight(
                    plain.get("class_weights", "uniform"), num_classes, entry, values[key]
                )
            else:
                raise ValueError(
                    f"{key!r} is no field: only model_params and class_weights take dotted keys"
                )
        return cls(**plain)

    @classmethod
    def searchable_fields(cls) -> list[str]:
        """Fields that say how a network is trained: no paths, no machine, no data."""
        return [
            name
            for name, field in cls.model_fields.items()
            if not isinstance(field.json_schema_extra, dict)
            or field.json_schema_extra.get("searchable") is not False
        ]

    def flat(self) -> dict[str, Any]:
        """The config as plain values (JSON and YAML types), one entry a field."""
        return self.model_dump(mode="json")


def _with_weight(base: Any, num_classes: int, entry: str, weight: Any) -> list[Any]:
    """The class weights `base` with the weight of class `entry` replaced."""
    if base == "uniform":
        weights: list[Any] = [1.0] * num_classes
    elif isinstance(base, list | tuple):
        weights = list(base)
    else:
        raise ValueError(
            f"class_weights.{entry}={weight} cannot change one entry of the preset "
            f"class_weights={base!r}: use a list or 'uniform', or a `when` condition"
        )
    if not entry.isdecimal() or int(entry) >= len(weights):
        raise ValueError(
            f"class_weights.{entry} names no class: classes are 0 to {len(weights) - 1}"
        )
    weights[int(entry)] = weight
    return weights
