"""Sections of settings in a search space file, and what their values are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field

from training.config.types import NameIn
from tuner.spec.registry import SEARCHERS


def seconds(value: Any) -> Any:
    """Seconds of a duration such as `90`, `90s`, `30m` or `1.5h`."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    if isinstance(value, str) and value[-1:] in units:
        try:
            return float(value[:-1]) * units[value[-1]]
        except ValueError:
            pass
    if isinstance(value, str):
        raise ValueError(f"{value!r} is not a duration: write seconds, or 90s, 30m, 2h, 1d")
    return value


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed here, not true or false")
    return value


Whole = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, BeforeValidator(_no_bool)]


class Section(BaseModel):
    """A section of settings: each one is documented under its field."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    FORM: ClassVar[str] = "a mapping of names"
    """How the section is written, for error messages."""

    @classmethod
    def expand(cls, given: Any) -> Any:
        """The mapping of settings that a short form stands for; anything else as it is."""
        return given

    @classmethod
    def kind(cls, settings: Mapping[str, Any]) -> type[Section]:
        """The class that reads these settings.

        Raises:
            ValueError: if they name none.
        """
        return cls

    @classmethod
    def setting_names(cls) -> tuple[str, ...]:
        """Settings that may be named without their section, if no other section has them."""
        return tuple(cls.model_fields)


SearcherName = Annotated[str, NameIn(SEARCHERS)]


class SearchSettings(Section):
    """The section `search`: what proposes trials, and how many."""

    searcher: SearcherName = "gp"
    """What proposes trials: a key of `tuner.spec.registry.SEARCHERS`, or an import path of your
    own."""

    default_first: bool = True
    """Whether the first trial is the known good default: of each field the value of the network's
    recipe (`tuner.spec.recipes`), or else of `ModelTrainingConfig`, or what comes nearest to it
    in the field's domain."""

    start_from: list[dict[str, Any]] = Field(default_factory=list)
    """Points to try first, each a mapping of fields to values; fields that a point leaves out
    have their default."""

    warm_start: list[str] = Field(default_factory=list)
    """Earlier studies whose trials the searcher learns from; they are not trials of this study."""

    num_trials: Annotated[Whole, Field(ge=1)] = 20
    """Trials of the study. The search ends with the first of its budgets that is spent."""

    epoch_budget: Annotated[Whole, Field(ge=1)] | None = None
    """Epochs that all trials together may train, over all runs; null for no limit."""

    gpu_hours: Annotated[Number, Field(gt=0)] | None = None
    """GPU-hours that all trials together may train, over all runs; null for no limit."""

    folds: Annotated[Whole, Field(ge=1)] = 1
    """Folds that a configuration is judged on, one after the other: its score is the mean over
    them. They are the first so many of `config.num_folds`, which is as many where it is not given;
    test cases are in none of them. 1 judges it on one split."""

    race: bool = True
    """With several folds, whether a configuration that is behind the best one beyond doubt gets no
    further fold, by the difference on the folds that both have; if not, each gets them all."""

    seed: Annotated[Whole, Field(ge=0, lt=2**31)] = 0
    """Seed of the proposals."""

    time_budget: Annotated[Number, BeforeValidator(seconds), Field(gt=0)] | None = None
    """Time after which the search ends, e.g. `30m`, counted from the start of each `tune run` or
    `tune resume`; null for no limit."""


class FailureSettings(Section):
    """The section `failures`: how failed trials are retried."""

    max_failures: Annotated[Whole, Field(ge=0)] = 2
    """How often a trial that failed is tried again, from its last checkpoint: after an
    exception, or when its worker process died or hung. A node that was lost, or failed the trial,
    does not count."""

    hang_timeout: Annotated[Number, BeforeValidator(seconds), Field(gt=0)] | None = None
    """Time without a finished epoch after which a trial is taken for hung and its process
    ended, e.g. `30m`; it must cover the start of a process and the slowest epoch. Null for no
    limit."""

    on_out_of_memory: Literal["fail", "smaller_batch", "smaller_patch"] = "fail"
    """Whether a trial that ran out of memory is tried again with half the batch, or with a
    patch of about half the voxels."""


class CheckpointSettings(Section):
    """The section `checkpoints`: which checkpoints of trials that have ended are kept."""

    keep: Annotated[Whole, Field(ge=1)] = 5
    """How many of the best trials keep their checkpoints; those of other trials are removed
    when they have ended. The best checkpoint is kept of at least `export.ensemble` trials, of the
    best trial of each network, and of the default config."""

    disk_budget: Annotated[ByteSize, Field(gt=0)] | None = None
    """Disk that checkpoints of the study may take, e.g. `20GB`; null for no limit. Those of
    the winner and of trials that may go on are never removed."""


def _whole_gpus(value: Any) -> Any:
    if isinstance(value, int | float) and value > 1 and value != int(value):
        raise ValueError("a trial uses whole GPUs, or a fraction of one")
    return value


class ResourceSettings(Section):
    """The section `resources`: the share of one trial, and how many run at once."""

    cpu: Annotated[Number, Field(gt=0)] | Literal["auto"] = "auto"
    """CPU cores of a trial."""

    gpu: Annotated[Number, BeforeValidator(_whole_gpus), Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs of a trial: 0, a fraction of one, or several of one node, with a process for each.
    `auto`: one where there are GPUs; trials that leave enough of it share one where others wait,
    and when no other trial is left to begin, one that trains on may go on with more of its node."""

    batch: Literal["gpu", "trial"] = "gpu"
    """Whether `train_batch_size` is that of each GPU of a trial, or of all together."""

    logical_gpus: bool = False
    """Whether the GPUs are counts without a device, as `ray start --num-gpus=2` makes them on a
    machine that has none: trials are placed by them, and train on the CPU."""

    priority: Annotated[Number, Field(gt=0)] = 1
    """Weight of the study among those that share a cluster: one of priority 2 has twice as many
    trials at once as one of priority 1, where both want more than there is."""

    max_concurrent: Annotated[Whole, Field(ge=1)] | Literal["auto"] = "auto"
    """Trials at once. `auto`: as many as the nodes of the cluster hold, as they come and go."""


@dataclass(frozen=True)
class TrialResources:
    """Share of one trial, and how many trials run at once."""

    cpu: float
    gpu: float
    max_concurrent: int


UNITS = {"K": 10**3, "M": 10**6, "G": 10**9}


def _count(value: Any) -> Any:
    """A number such as `44650000`, `30e6` or `30M`."""
    if isinstance(value, bool):
        raise ValueError("a number is needed here, not true or false")
    if isinstance(value, str):
        try:
            return round(float(value[:-1]) * UNITS[value[-1:].upper()])
        except (KeyError, ValueError) as error:
            raise ValueError(f"{value!r} is not a number: write e.g. 30000000 or 30M") from error
    return value


class ConstraintSettings(Section):
    """The section `constraints`: a trial that breaks one ends, and cannot win."""

    max_parameters: Annotated[int, BeforeValidator(_count), Field(ge=1)] | None = None
    """Parameters of the network, e.g. `30M`, counted before it trains; null for no limit."""

    max_memory: Annotated[ByteSize, Field(gt=0)] | None = None
    """Memory that training and validation take, e.g. `10GB`: the peak that torch allocates on a
    GPU, or by which the process grows on a CPU, measured after each epoch; null for no limit."""


class ConfirmSettings(Section):
    """The section `confirm`: the best trials are trained again, with other seeds."""

    FORM: ClassVar[str] = "a mapping of names, or auto"

    auto: bool = False
    """Whether the time budget limits it: with as many seeds, of at least two, as there is time for
    when the search has ended, or not at all. `confirm: auto` is short for `{auto: true, top: 1}`:
    the winner and the default config."""

    top: Annotated[Whole, Field(ge=1)] = 3
    """How many of the best trials, beside the default config."""

    seeds: Annotated[Whole, Field(ge=2)] = 3
    """With how many seeds each."""

    @classmethod
    def expand(cls, given: Any) -> Any:
        """The settings that `auto` stands for."""
        return {"auto": True, "top": 1} if given == "auto" else given


def _on_or_off(value: Any) -> Any:
    # YAML reads these two words as true and false
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


class ExportSettings(Section):
    """The section `export`: what is made of the study's checkpoints when it is exported."""

    ensemble: Annotated[Whole, Field(ge=1)] = 5
    """How many networks an exported model may have. They are selected among the best trials by
    the validation cases, and taken where cross-validation over these cases says that they are
    better than the winner alone; 1 for the winner alone."""

    ensemble_time: Annotated[Number, Field(ge=1)] = 5.0
    """How many times as long as the winner an ensemble may take to predict a case."""

    mirroring: Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)] = "auto"
    """Whether predictions are averaged over mirrored images, along the axes that the training
    mirrored: `auto` for each network that validation cases are predicted better with."""

    postprocessing: bool = True
    """Whether predictions are cleaned of small components, where validation cases improve."""


EMBEDDED_DATA = "phantom"
"""Value of `data_dir` that names the embedded liver phantom."""
