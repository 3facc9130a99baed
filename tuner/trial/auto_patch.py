"""Numbers for a trial's `patch_size: auto` and `train_batch_size: auto`, and who keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.study.config_files import AUTO, PLANNED, planned_in

if TYPE_CHECKING:
    from training.config import ModelTrainingConfig
    from training.planning import CaseSizes, Memory
    from tuner.spec.study_spec import StudySpec

STAND_IN = {"patch_size": (32, 64, 64), "train_batch_size": 2}
"""Patch and batch that a network is built for to look at, before they are planned."""


def is_auto(config: ModelTrainingConfig) -> bool:
    """Whether patch or batch of a config have no number yet."""
    return any(getattr(config, name) == AUTO for name in PLANNED)


def take_plan(
    config: ModelTrainingConfig, spec: StudySpec, folder: Path, gpus: float
) -> dict[str, Any]:
    """Give a trial's config numbers where it is `auto`; what they are, by field.

    Those that its config file has are taken: it goes on with them, also where there is other
    memory.

    Args:
        config: The trial's config, which is changed. Its `data_dir` is a preprocessed folder.
        spec: The spec of its study.
        folder: The trial's folder.
        gpus: GPUs of the trial; a fraction is a shared one.

    Raises:
        NoFitError: if nothing fits into the memory.
    """
    if not is_auto(config):
        return {}
    values = planned_in(folder, config)
    if not values:
        from training.data import PreprocessedDataset
        from training.planning import CaseSizes, planned_values

        sizes = CaseSizes.of(PreprocessedDataset.load(config.data_dir))
        values = planned_values(config, sizes, memory_of(config, spec, gpus))
    assign(config, values)
    return values


def memory_of(config: ModelTrainingConfig, spec: StudySpec, gpus: float) -> Memory:
    """The memory that a trial on this machine may plan with."""
    from training.planning import memory_at_hand

    most = spec.constraints.max_memory
    return memory_at_hand(config, gpus or 1.0, None if most is None else float(most))


def assign(config: ModelTrainingConfig, values: Mapping[str, Any]) -> None:
    """Set fields of a config."""
    for name, value in values.items():
        setattr(config, name, value)


def number_for_now(
    config: ModelTrainingConfig, spec: StudySpec, sizes: CaseSizes | None
) -> tuple[ModelTrainingConfig, str]:
    """A config with numbers to build its network with, and what was planned, as text.

    Args:
        config: A config of the space.
        spec: The spec.
        sizes: Sizes of the cases; None where they are not known, so that nothing is planned.

    Raises:
        NoFitError: if nothing fits into the memory of this machine.
    """
    if not is_auto(config):
        return config, ""
    config = config.model_copy()
    if sizes is None:
        wanted = [name for name in PLANNED if getattr(config, name) == AUTO]
        assign(config, {name: STAND_IN[name] for name in wanted})
        return config, ""
    from training.planning import planned_values

    share = spec.resources.gpu
    gpus = float(share) if isinstance(share, int | float) else 1.0
    if gpus == 0:
        config.gpus = 0
    memory = memory_of(config, spec, gpus)
    values = planned_values(config, sizes, memory)
    assign(config, values)
    patch = " x ".join(map(str, config.known_patch_size))
    return config, (
        f"{config.model_name} with patches of {patch}, {config.known_batch_size} a batch "
        f"(within {memory.described})"
    )
