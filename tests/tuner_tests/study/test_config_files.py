"""Which config trained which epochs of a trial, and what TensorBoard is told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from training.config import ModelTrainingConfig
from tuner.spec.load import parse_spec
from tuner.study.config_files import config_file, keep_changed_config, log_folder
from tuner.trial.context import shown_hyperparameters


def begin(folder: Path, epochs: int, **fields: Any) -> Path:
    """A trial that begins or goes on, and trains so many epochs in all; its log folder."""
    config = ModelTrainingConfig(log_dir=folder, checkpoint_dir=folder, **fields)
    metrics = folder / "metrics.csv"
    keep_changed_config(folder, config, metrics)
    logs = log_folder(folder)
    config.log_dir = logs
    (folder / "config.yaml").write_text(yaml.safe_dump(config.flat(), sort_keys=False))
    metrics.write_text("\n".join(["epoch", *map(str, range(1, epochs + 1))]) + "\n")
    return logs


def batch_of(folder: Path, epoch: int) -> int:
    return int(yaml.safe_load(config_file(folder, epoch).read_text())["train_batch_size"])


def test_epochs_before_a_smaller_batch_keep_their_config(tmp_path: Path) -> None:
    assert begin(tmp_path, 4, train_batch_size=8) == tmp_path
    # as before: it was only cut off
    assert begin(tmp_path, 6, train_batch_size=8) == tmp_path
    assert not list(tmp_path.glob("config.until-*"))
    # out of memory, once more before an epoch has ended, and later again
    assert begin(tmp_path, 6, train_batch_size=4) == tmp_path / "from-00007"
    assert begin(tmp_path, 9, train_batch_size=2) == tmp_path / "from-00007"
    assert begin(tmp_path, 10, train_batch_size=1) == tmp_path / "from-00010"
    assert begin(tmp_path, 11, train_batch_size=1) == tmp_path / "from-00010"
    batches = [batch_of(tmp_path, epoch) for epoch in (1, 6, 7, 9, 10, 99)]
    assert batches == [8, 8, 2, 2, 1, 1]


def test_a_trial_that_never_finished_an_epoch_has_one_config(tmp_path: Path) -> None:
    begin(tmp_path, 0, train_batch_size=8)
    # its first values are shown as a run without a score
    assert begin(tmp_path, 3, train_batch_size=4) == tmp_path / "from-00001"
    assert batch_of(tmp_path, 1) == 4


@pytest.mark.parametrize(
    "fields", [{"data_dir": "elsewhere"}, {"num_workers": 3}, {"gpus": 0}], ids=str
)
def test_where_a_trial_trains_is_no_other_config(tmp_path: Path, fields: dict[str, Any]) -> None:
    begin(tmp_path, 4)
    assert begin(tmp_path, 5, **fields) == tmp_path
    assert not list(tmp_path.glob("config.until-*"))


def test_the_columns_are_the_fields_that_vary() -> None:
    spec = parse_spec(
        """
space:
  learning_rate: {loguniform: [1e-4, 1e-1]}
  optimizer: {choice: [adamw, sgd]}
  momentum: {uniform: [0.8, 0.99], when: {optimizer: sgd}}
  train_batch_size: {choice: [1, 2, 4]}
  ema_decay: {choice: {none: null, slow: 0.999}}
  model_params.deep_supervision: {choice: [true, false]}
""",
        source="s.yaml",
    )
    values = {
        "learning_rate": 0.01,
        "optimizer": "adamw",
        "train_batch_size": 2,
        "ema_decay": None,
        "model_params.deep_supervision": True,
    }
    shown = {one.name: one for one in shown_hyperparameters(spec.space, values)}
    assert list(shown) == list(spec.space.domains)
    assert not shown["momentum"].active
    cells = {name: one.cell() for name, one in shown.items() if one.active}
    assert cells == {
        "learning_rate": 0.01,
        "optimizer": "adamw",
        "train_batch_size": 2.0,
        "ema_decay": "null",
        "model_params.deep_supervision": "true",
    }
