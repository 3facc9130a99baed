"""The configs that a trial trained its epochs with, and where each is logged for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from training.config import ModelTrainingConfig
from tuner.study.files import CONFIG_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping


AUTO = "auto"

PLANNED = ("patch_size", "train_batch_size")
"""Fields that a trial plans where they are `auto`."""

EARLIER_CONFIGS = "config.until-[0-9][0-9][0-9][0-9][0-9].yaml"
"""File names of the configs that a trial had before."""


def config_file(folder: Path, epoch: int) -> Path:
    """The file of the config with which a trial trained an epoch."""
    for path in _earlier_configs(folder):
        if epoch <= _until(path):
            return path
    return folder / CONFIG_FILE


def planned_in(folder: Path, config: ModelTrainingConfig) -> dict[str, Any]:
    """Numbers that a trial has planned for what is `auto`, as its config file has them.

    Args:
        folder: The trial's folder.
        config: Its config; only what is `auto` there is looked for.
    """
    wanted = [name for name in PLANNED if getattr(config, name) == AUTO]
    path = config_file(folder, 1)
    if not wanted or not path.is_file():
        return {}
    kept = yaml.safe_load(path.read_text())
    if any(kept.get(name, AUTO) == AUTO for name in wanted):
        return {}
    if "patch_size" in wanted:
        wanted.append("target_spacing")
    return {name: kept[name] for name in wanted}


def set_aside_config(folder: Path, epoch: int) -> None:
    """Keep the config of the epochs until `epoch`, after which there is another."""
    until = folder / f"config.until-{epoch:05d}.yaml"
    if not until.is_file() and (folder / CONFIG_FILE).is_file():
        (folder / CONFIG_FILE).replace(until)


def keep_changed_config(folder: Path, config: ModelTrainingConfig, metrics_file: Path) -> None:
    """Set a trial's config aside if it trained so far with other values than it will now."""
    path = folder / CONFIG_FILE
    if path.is_file() and _hyperparameters(yaml.safe_load(path.read_text())) != _hyperparameters(
        config.flat()
    ):
        lines = metrics_file.read_text().splitlines() if metrics_file.is_file() else []
        set_aside_config(folder, max(0, len(lines) - 1))


def log_folder(folder: Path) -> Path:
    """Where TensorBoard events go: epochs trained with other values are a run of their own.

    TensorBoard keeps one set of values for each run, the first one that it reads.
    """
    earlier = _earlier_configs(folder)
    return folder / f"from-{_until(earlier[-1]) + 1:05d}" if earlier else folder


def _earlier_configs(folder: Path) -> list[Path]:
    return sorted(folder.glob(EARLIER_CONFIGS), key=_until)


def _until(path: Path) -> int:
    return int(path.name.removesuffix(".yaml").rpartition("-")[2])


def _hyperparameters(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that could be searched, of a config as its file has them.

    One that a file of an earlier version does not have is at its default, which means as then.
    """
    known = {**ModelTrainingConfig().flat(), **flat}
    return {name: known[name] for name in ModelTrainingConfig.searchable_fields()}
