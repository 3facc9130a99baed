"""What a study would make of data: the spacing, the normalisation and the patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.config import ModelTrainingConfig
from training.data.prepared.normalisation import schemes_of
from training.data.prepared.resampling import choose_spacing
from training.data.raw.formats.geometry import spacing_text
from training.data.raw.layouts import RawDataset
from training.data.statistics.measures import CaseMeasures
from training.models.patch_plan import LIBRARIES, plan_patch

NETWORK = "dynunet"
"""The network that a patch is planned for: nnU-Net's U-Net."""

MEMORY = 8_000_000_000
"""Bytes of the GPU that a patch is planned for: nnU-Net's target."""


@dataclass(frozen=True)
class DataPlan:
    """A plan for data, from their headers.

    Attributes:
        spacing: Spacing that cases are resampled to, in mm (depth, height, width).
        shape: Median size of a case at that spacing, in voxels.
        schemes: Normalisation of each channel.
        patch_size: Voxels of a patch; None where no patch of the network fits.
        batch_size: Patches of a step, 0 without a patch.
        reason: Why there is no patch.
    """

    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    schemes: tuple[str, ...]
    patch_size: tuple[int, int, int] | None
    batch_size: int = 0
    reason: str = ""

    def rows(self, channels: Sequence[str]) -> list[tuple[str, str]]:
        """What is planned, each with its name.

        Args:
            channels: Names of the channels.
        """
        sizes = [
            " x ".join(map(str, size)) if size else "" for size in (self.shape, self.patch_size)
        ]
        patch = f"{sizes[1]} voxels, {self.batch_size} in a batch" if sizes[1] else self.reason
        return [
            ("spacing", f"{spacing_text(self.spacing)} mm"),
            ("median case at that spacing", f"{sizes[0]} voxels"),
            *(
                (f"normalisation of {channel}", scheme)
                for channel, scheme in zip(channels, self.schemes, strict=True)
            ),
            ("patch", patch),
        ]


def plan_data(dataset: RawDataset, cases: Sequence[CaseMeasures]) -> DataPlan:
    """The plan for data.

    It is made from whole volumes; a study crops them to the body first, so that its own is equal or
    a little smaller.

    Args:
        dataset: The data.
        cases: Measures of at least one of its cases.
    """
    spacing = choose_spacing(
        [case.grid.spacing for case in cases], [case.grid.shape for case in cases]
    )
    resampled = np.array([case.grid.extent for case in cases]) / spacing
    depth, height, width = (max(1, round(size)) for size in np.median(resampled, axis=0).tolist())
    shape = (depth, height, width)
    config = ModelTrainingConfig(
        model_name=NETWORK,
        num_classes=len(dataset.labels),
        input_channels=len(dataset.channels),
        precision="16-mixed",
    )
    schemes = tuple(schemes_of(config, dataset))
    try:
        patch = plan_patch(
            config,
            shape,
            spacing,
            MEMORY - LIBRARIES,
            dataset_voxels=float(resampled.prod(axis=1).sum()),
        )
    except ValueError as error:
        return DataPlan(spacing, shape, schemes, None, reason=str(error))
    return DataPlan(spacing, shape, schemes, patch.patch_size, patch.batch_size)
