"""TensorBoard's HParams tab: hyperparameters of a run, and its best score."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import summary_v2 as hp

from training.logged_names import best_name

if TYPE_CHECKING:
    from pytorch_lightning.loggers import TensorBoardLogger

    from training.config import ModelTrainingConfig


class _Number(hp.Domain):  # type: ignore[misc]
    """Numbers without bounds: TensorBoard hides runs outside the bounds of a column."""

    @property
    def dtype(self) -> type:
        """Numbers are floats to TensorBoard."""
        return float

    def sample_uniform(self, rng: Any = None) -> float:
        """Not used: nothing is sampled."""
        raise NotImplementedError

    def update_hparam_info(self, hparam_info: Any) -> None:
        """Say that the column has numbers."""
        hparam_info.type = api_pb2.DATA_TYPE_FLOAT64


@dataclass(frozen=True)
class Hyperparameter:
    """A column of the HParams tab.

    Attributes:
        name: Name of the field.
        value: Its value in this run.
        active: Whether it takes part in this run; the cell is empty if not.
        options: All values of a field that is not a number, which are shown as text; None for a
            number.
    """

    name: str
    value: Any = None
    active: bool = True
    options: Sequence[Any] | None = None

    def column(self) -> hp.HParam:
        """The column in TensorBoard's own type."""
        if self.options is None:
            return hp.HParam(self.name, _Number())
        return hp.HParam(self.name, hp.Discrete(list(dict.fromkeys(map(as_text, self.options)))))

    def cell(self) -> float | str:
        """The value as TensorBoard shows it."""
        return float(self.value) if self.options is None else as_text(self.value)


def as_text(value: Any) -> str:
    """A value in the words of a search space: `true`, `null`, `[1, 1, 3]`, `adamw`."""
    return value if isinstance(value, str) else json.dumps(value)


def is_number(value: Any) -> bool:
    """Whether a value is a number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def hyperparameters_of(config: ModelTrainingConfig) -> list[Hyperparameter]:
    """The fields of a config that could be searched: no paths, no machine, no data."""
    flat = config.flat()
    return [
        Hyperparameter(name, flat[name], options=None if is_number(flat[name]) else [flat[name]])
        for name in config.searchable_fields()
    ]


def log_hyperparameters(
    logger: TensorBoardLogger, shown: Sequence[Hyperparameter], monitor: str, run: str
) -> None:
    """Write the columns of the HParams tab and this run's values into its event file.

    Args:
        logger: Where the run is logged.
        shown: The columns, the same ones for all runs that are to be compared.
        monitor: The monitored metric; the tab shows its best value (`BestScore`).
        run: Name of the run: runs of the same values are rows of their own.
    """
    score = hp.Metric(best_name(monitor), display_name=best_name(monitor))
    values = {one.name: one.cell() for one in shown if one.active}
    writer = logger.experiment._get_file_writer()
    writer.add_summary(hp.hparams_config_pb([one.column() for one in shown], [score]))
    writer.add_summary(hp.hparams_pb(values, trial_id=run))
