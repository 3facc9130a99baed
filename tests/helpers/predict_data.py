"""Exported models of untrained networks, for predictions whose values do not matter."""

from __future__ import annotations

from pathlib import Path

import torch

from training.bundle.bundle import write_bundle
from training.bundle.manifest import Manifest
from training.bundle.member import Member
from training.config import ModelTrainingConfig
from training.data import Preprocessing
from training.data.prepared.preprocessing import ChannelNormalisation
from training.lightning_module import SegmentationLightningModule
from training.models import build_model


def make_bundle(folder: Path, channels: int = 1, depth: int = 8) -> Path:
    """Write a bundle of a small network with the labels liver and tumour."""
    torch.manual_seed(0)
    config = ModelTrainingConfig(
        model_name="unet3d",
        model_params={"channels": [4, 8], "strides": [1], "num_res_units": 0},
        patch_size=(depth, 8, 8),
        input_channels=channels,
    )
    module = SegmentationLightningModule(build_model(config), config).eval()
    write_bundle(
        folder,
        members=[Member(config, module, 1.0, ())],
        preprocessing=Preprocessing(
            spacing=(1.0, 1.0, 1.0),
            channels=[ChannelNormalisation(modality="MR")] * channels,
            num_classes=3,
        ),
        manifest=Manifest(
            labels=["background", "liver", "tumour"],
            channels=[f"c{n}" for n in range(channels)],
            metrics={},
            provenance={},
        ),
    )
    return folder
