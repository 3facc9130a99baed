"""The score of each test case by itself, where means are not enough."""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from training.bundle import load_checkpoint
from training.config import ModelTrainingConfig
from training.data import PreprocessedDataset, get_dataloader
from training.lightning_module import SegmentationLightningModule
from training.metrics import SegmentationMetrics, SurfaceMetrics, predict_labels
from training.trainer import choose_devices

MIXED = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


def score_test_cases(
    config: ModelTrainingConfig, checkpoint: Path, metric: str
) -> dict[str, float]:
    """A metric of each test case, predicted with the weights of a checkpoint.

    Args:
        config: Config of the training; its `data_dir` is a preprocessed folder.
        checkpoint: The weights.
        metric: Name of the metric without its stage, e.g. `dice`, `dice_2`, `nsd` or `loss`.

    Returns:
        Score by name of the case, without cases for which it is not defined.
    """
    module = load_checkpoint(checkpoint, config)
    on_gpu = choose_devices(config)["accelerator"] == "gpu"
    device = torch.device("cuda" if on_gpu else "cpu")
    module.to(device).eval()
    scores: dict[str, float] = {}
    with torch.inference_mode(), _precision(config, device):
        for batch in get_dataloader(config.data_dir, "test", 1, 0, shuffle=False):
            for case in batch:
                value = _score(
                    module, case["image"].to(device), case["label"].to(device), config, metric
                )
                if math.isfinite(value):
                    scores[case["case_id"]] = value
    return scores


def _precision(config: ModelTrainingConfig, device: torch.device) -> AbstractContextManager[object]:
    if config.precision not in MIXED:
        return nullcontext()
    return torch.autocast(device.type, dtype=MIXED[config.precision])


def _score(
    module: SegmentationLightningModule,
    image: Tensor,
    label: Tensor,
    config: ModelTrainingConfig,
    metric: str,
) -> float:
    logits = module.predict_logits(image)
    target = (
        label if config.target_label is None else (label == config.target_label).to(label.dtype)
    )
    if metric == "loss":
        return float(module.training_loss([logits], target))
    prediction = predict_labels(logits)
    if metric.startswith("nsd"):
        surface = _fresh(module.surface_metrics["test_surface"])
        assert isinstance(surface, SurfaceMetrics)
        surface.update(prediction, target, PreprocessedDataset.load(config.data_dir).spacing)
        return float(surface.compute()[metric])
    overlap = _fresh(module.metrics["test_metrics"])
    assert isinstance(overlap, SegmentationMetrics)
    overlap.update(prediction, target)
    return float(overlap.compute()[metric])


def _fresh(metric: nn.Module) -> nn.Module:
    """A metric with the settings of another, without its cases."""
    assert isinstance(metric, SegmentationMetrics | SurfaceMetrics)
    fresh = copy.deepcopy(metric)
    fresh.reset()
    return fresh
