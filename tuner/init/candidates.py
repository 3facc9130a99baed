"""Networks that a space tries: which ones, how wide, and with which patch and batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from training.config import ModelTrainingConfig
from training.models.footprint import training_bytes
from training.models.patch_plan import CPU_BATCH, CPU_LARGEST, LARGEST, PatchPlan, plan_patch
from tuner.errors import StudyError
from tuner.init.device import Device
from tuner.init.survey import DataSurvey
from tuner.spec.recipes import usual_optimizer


@dataclass(frozen=True)
class Plan:
    """Networks of a space, which share a patch and a batch so that their steps compare.

    Attributes:
        networks: `model_params` of each network by name, the one that patches are planned by first.
        patch: Patch and batch.
        left_out: Networks that do not fit into the memory, with what a step of each takes.
        largest: Voxels of a patch at most.
        optimizer: The optimizer of all networks; None for that of each one's recipe.
    """

    networks: dict[str, dict[str, Any]]
    patch: PatchPlan
    left_out: dict[str, int] = field(default_factory=dict)
    largest: float = LARGEST
    optimizer: str | None = None

    def optimizer_of(self, network: str) -> str:
        """The optimizer of a network."""
        return self.optimizer or usual_optimizer(network)


GPU_NETWORKS: dict[str, dict[str, Any]] = {
    "resenc_unet": {},
    "dynunet": {},
    "mednext": {},
    "segresnet": {"init_filters": 32},
}
"""Networks for a GPU: those that led in nnU-Net Revisited (Isensee et al., 2024), and SegResNet,
whose step is cheap. Patches are planned by the first."""

CPU_NETWORKS: dict[str, dict[str, Any]] = {"dynunet": {"filters": [16, 32, 64, 128, 128, 128, 128]}}
"""Networks for CPU cores: nnU-Net's U-Net with half the channels, about a quarter of its time."""

CPU_OPTIMIZER = "adamw"
"""Optimizer where a training has a few thousand steps. Of 2,400 steps of batch 2 on Hippocampus
nnU-Net's SGD (momentum 0.99) needs some 600 until it predicts more than background; it ends at a
Dice of 0.862 on test cases, SGD with momentum 0.9 at 0.861, AdamW with warm-up at 0.868."""


def make_plan(survey: DataSurvey, device: Device) -> Plan:
    """The plan for data and a device.

    Raises:
        StudyError: if not even the smallest patch fits into the memory.
    """
    on_cpu = device.kind == "cpu"
    networks = CPU_NETWORKS if on_cpu else GPU_NETWORKS
    largest = CPU_LARGEST if on_cpu else LARGEST
    first = next(iter(networks))
    base = survey.base_config().model_copy(
        update={
            "precision": device.precision,
            "optimizer": CPU_OPTIMIZER if on_cpu else usual_optimizer(first),
        }
    )
    try:
        patch = plan_patch(
            base.model_copy(update={"model_name": first, "model_params": networks[first]}),
            survey.shape,
            survey.spacing,
            device.memory,
            dataset_voxels=survey.voxels,
            largest=largest,
        )
    except ValueError as error:
        raise StudyError(
            f"no search space can be written for {device.described}: {error}"
        ) from error
    if on_cpu:
        patch = patch._replace(batch_size=CPU_BATCH)
        return Plan(dict(networks), patch, largest=largest, optimizer=CPU_OPTIMIZER)
    return _those_that_fit(base, networks, patch, device)


def _those_that_fit(
    base: ModelTrainingConfig,
    networks: dict[str, dict[str, Any]],
    patch: PatchPlan,
    device: Device,
) -> Plan:
    kept: dict[str, dict[str, Any]] = {}
    left_out: dict[str, int] = {}
    for name, params in networks.items():
        config = base.model_copy(
            update={
                "model_name": name,
                "model_params": params,
                "patch_size": patch.patch_size,
                "train_batch_size": patch.batch_size,
                "optimizer": usual_optimizer(name),
            }
        )
        needed = training_bytes(config)
        if needed <= device.memory:
            kept[name] = params
        else:
            left_out[name] = needed
    return Plan(kept, patch, left_out)
