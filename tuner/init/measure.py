"""Seconds and memory of training steps and of validation, measured on the data themselves."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from training.config import ModelTrainingConfig
from training.data import PreprocessedDataset, get_dataloader
from training.data.patches.loaders import MAX_WORKERS
from training.inference import predict_case
from training.losses import DeepSupervisionLoss, build_loss
from training.models import build_model
from training.models.footprint import training_bytes
from training.models.patch_plan import LIBRARIES
from training.optimizers import get_optimizer
from training.trainer import choose_precision
from tuner.init.device import Device

STEPS = {"cpu": 2, "cuda": 10}
"""Steps that are timed, after one that is not: its libraries choose kernels in it."""

A100_SECONDS_PER_BYTE = 0.025e-9
"""Seconds of a training step for each byte that it takes: nnU-Net's plans train 250,000 steps on
an A100 in 9 (plain), 12, 35 and 66 hours (residual encoder M, L and XL; Isensee et al., 2024,
table 1), which take 4.7, 6.9, 20.7 and 34.4 GB by our estimate."""


LEAST_SECONDS = 0.04
"""Seconds that a small step takes on a GPU: to start its kernels, and to draw its batch."""


@dataclass(frozen=True)
class Speed:
    """What a network takes.

    Attributes:
        step: Seconds of a training step, with the drawing of its batch.
        validation: Seconds of predicting all validation cases.
        memory: Bytes of GPU memory at the peak; 0 where it is not known.
        measured: Whether a step was trained; else it is a guess.
    """

    step: float
    validation: float
    memory: int
    measured: bool


def measure(config: ModelTrainingConfig, device: Device) -> Speed:
    """Train a few steps of a network, and predict a validation case.

    Args:
        config: Its `data_dir` is a preprocessed folder.
        device: Where; it must be here.

    Raises:
        torch.OutOfMemoryError: if a step does not fit.
    """
    dataset = PreprocessedDataset.load(config.data_dir)
    threads = torch.get_num_threads()
    torch.set_num_threads(device.threads)
    try:
        network = build_model(config).to(device.kind).train()
        if device.kind == "cuda":
            torch.cuda.reset_peak_memory_stats()
        step = _seconds_of_a_step(config, network, device)
        memory = torch.cuda.max_memory_allocated() if device.kind == "cuda" else 0
        # its size is the median: a large one would make all look slow
        cases = sorted(
            dataset.splits["val"], key=lambda name: math.prod(dataset.cases[name].shape[1:])
        )
        case = cases[len(cases) // 2]
        a_case = _seconds_of_a_case(config, network, dataset.image(case), device)
        return Speed(step, a_case * len(cases), memory, True)
    finally:
        torch.set_num_threads(threads)


def estimate(config: ModelTrainingConfig) -> Speed:
    """What a network takes on a GPU that is not here, by nnU-Net's published times on an A100."""
    needed = training_bytes(config)
    step = max(needed * A100_SECONDS_PER_BYTE, LEAST_SECONDS)
    dataset = PreprocessedDataset.load(config.data_dir)
    windows = sum(
        math.prod(
            max(1, math.ceil((size / patch - 1) / (1 - config.window_overlap)) + 1)
            for size, patch in zip(
                dataset.cases[name].shape[1:], config.known_patch_size, strict=True
            )
        )
        for name in dataset.splits["val"]
    )
    # a forward pass is a third of a step
    return Speed(step, windows * step / config.known_batch_size / 3, needed + LIBRARIES, False)


def _seconds_of_a_step(config: ModelTrainingConfig, network: nn.Module, device: Device) -> float:
    optimizer, _ = get_optimizer(config, network)
    # only its value, not its time, depends on class weights
    loss = DeepSupervisionLoss(build_loss(config)).to(device.kind)
    scaler = torch.amp.GradScaler(device.kind, enabled=choose_precision(config) == "16-mixed")
    steps = STEPS[device.kind]
    batches = get_dataloader(
        config.data_dir,
        "train",
        config.known_batch_size,
        # as `num_workers: auto` has it
        0 if device.kind == "cpu" else min(MAX_WORKERS, device.threads),
        True,
        patch_size=config.known_patch_size,
        augmentation=config.augmentation,
        steps_per_epoch=steps + 1,
    )
    clock = _Clock(device)
    for index, batch in enumerate(batches):
        if index == 1:
            clock = _Clock(device)
        image, label = batch["image"].to(device.kind), batch["label"].to(device.kind).long()
        with _autocast(config, device):
            outputs = network(image)
            value = loss(outputs, label)
        optimizer.zero_grad()
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
    return clock.seconds() / steps


def _seconds_of_a_case(
    config: ModelTrainingConfig, network: nn.Module, image: Any, device: Device
) -> float:
    network.eval()
    clock = _Clock(device)
    with (
        torch.inference_mode(),
        _autocast(config, device),
    ):
        predict_case(
            network,
            torch.from_numpy(image[None].copy()).to(device.kind),
            patch_size=config.known_patch_size,
            overlap=config.window_overlap,
            windows_per_batch=config.val_batch_size,
        )
    return clock.seconds()


def _autocast(config: ModelTrainingConfig, device: Device) -> torch.autocast:
    """The arithmetic of the training."""
    dtype = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}.get(choose_precision(config))
    return torch.autocast(device.kind, dtype, enabled=dtype is not None)


class _Clock:
    """Seconds since it was made, without those in which other programs had the cores."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._began = self._now()

    def seconds(self) -> float:
        """Seconds until what a GPU was given is computed."""
        wall, busy = (now - then for now, then in zip(self._now(), self._began, strict=True))
        # on a GPU this process waits, and on several cores its threads' seconds add up
        return wall if self._device.kind == "cuda" else min(wall, busy)

    def _now(self) -> tuple[float, float]:
        if self._device.kind == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()
