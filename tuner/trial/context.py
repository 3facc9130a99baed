"""Context of a trial: settings of its study; combines sampled and fixed values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.spec.study_spec import StudySpec
from tuner.study.config_files import AUTO
from tuner.study.files import fold_folder, trial_folder
from tuner.study.remote.node import RemoteFolder

if TYPE_CHECKING:
    from training.config import ModelTrainingConfig
    from training.data import DataSource
    from training.hparams import Hyperparameter
    from tuner.spec.space import Space


@dataclass(frozen=True)
class StudyContext:
    """Settings of a study that every trial needs.

    Attributes:
        folder: The study folder, an absolute path that every node can write; of a study at an
            address, where the driver's machine works on it.
        spec: The resolved spec.
        data: Where the data are, split for each fold of the study; for one without folds, once.
        gpus: GPUs of a trial, 0 for none; a fraction is one shared GPU.
        judged: Whether trials are judged on the test cases when they have trained to the end.
        code: Where the study keeps the code of the user's own; None if it has none.
        remote: Where the storage has the study; None for one in a folder that all nodes mount.
    """

    folder: Path
    spec: StudySpec
    data: tuple[DataSource, ...]
    gpus: float
    judged: bool = False
    code: Path | None = None
    remote: RemoteFolder | None = None

    def on_this_node(self) -> StudyContext:
        """The same where this node works on a study at an address, with its code fetched.

        Raises:
            StoreError: if the storage does not answer.
        """
        if self.remote is None:
            return self
        folder, code = self.remote.here_with_code(self.code)
        return replace(self, folder=folder, code=code)

    def trial_folder(self, number: int) -> Path:
        """Folder of one trial."""
        return trial_folder(self.folder, number)

    @property
    def processes(self) -> int:
        """Processes that train a trial together: one for each of its GPUs."""
        return max(1, int(self.gpus))

    @property
    def folds(self) -> int:
        """Folds that each trial trains on; a confirmation judges on test cases, and has one."""
        return 1 if self.judged else self.spec.folds

    def trial_config(
        self, spec: StudySpec, number: int, values: Mapping[str, Any], fold: int = 0
    ) -> ModelTrainingConfig:
        """The config of one trial on a fold, from its sampled values and the fixed ones."""
        config = spec.trial_config(values, fold)
        folder = fold_folder(self.trial_folder(number), fold)
        config.data_dir = self.data[fold].preprocessed
        config.log_dir = folder
        config.checkpoint_dir = folder
        config.gpus = 1 if self.gpus and not spec.resources.logical_gpus else 0
        if self.processes > 1:
            config.gpus = self.processes
            if self._shares_batch(spec) and config.train_batch_size != AUTO:
                config.train_batch_size = config.known_batch_size // self.processes
        return config

    def of_whole_trial(self, spec: StudySpec, planned: Mapping[str, Any]) -> dict[str, Any]:
        """What a process of a trial has planned, as values of the trial."""
        values = dict(planned)
        if self.processes > 1 and self._shares_batch(spec) and "train_batch_size" in values:
            values["train_batch_size"] *= self.processes
        return values

    def _shares_batch(self, spec: StudySpec) -> bool:
        # with `auto` it began with one GPU, and its batch stays what it was
        return spec.resources.batch == "trial" or spec.resources.gpu == "auto"


def shown_hyperparameters(space: Space, values: Mapping[str, Any]) -> list[Hyperparameter]:
    """Columns of TensorBoard's HParams tab: every field that the study varies.

    Args:
        space: What the study varies.
        values: What the trial trains with, by field name.
    """
    from training.hparams import Hyperparameter, is_number

    shown = []
    for name, domain in space.items():
        options = None if domain.options is None else list(domain.options)
        if options is not None and all(map(is_number, options)):
            options = None
        shown.append(Hyperparameter(name, values.get(name), name in values, options))
    return shown
