"""Normalisation of intensities, channel by channel: the schemes of nnU-Net.

A channel's name chooses its scheme, as in nnU-Net (Isensee et al., 2021;
`channel_name_to_normalization_mapping`): `CT`, `noNorm`, `zscore`, `rescale_to_0_1` and
`rgb_to_0_1`, in capitals or not; every other name is a z-score. Here a name that begins with the
word CT, such as `CT (venous)`, is CT as well. The config field `normalisation` overrides it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from training.config import NORMALISATION_SCHEMES, ModelTrainingConfig, NormalisationScheme
from training.data.raw.layouts import Modality, RawDataset
from training.errors import DatasetError

RGB_MAXIMUM = 255.0
"""Greatest value of a colour of 8 bits."""

_BY_NAME = {scheme.casefold(): scheme for scheme in NORMALISATION_SCHEMES}


class ChannelNormalisation(BaseModel):
    """How the intensities of one channel are normalised.

    Attributes:
        modality: What the channel shows, which decides where the body is in it.
        scheme: `CT`: clipped to [`low`, `high`], then (x - `mean`) / `std`, all of them of the
            labelled data's foreground. `zscore`: (x - mean) / std of the case's own voxels.
            `rescale_to_0_1`: (x - min) / (max - min) of the case's own voxels. `rgb_to_0_1`:
            x / 255. `noNorm`: as it is. Of older versions: CT by modality, else `zscore`.
        low: Of `CT`.
        high: Of `CT`.
        mean: Of `CT`.
        std: Of `CT`.
        body_only: Of `zscore`: the statistics are those of the body's voxels alone, and what is
            around it becomes 0. Where most of an image is empty (a brain without its skull), the
            empty part would otherwise decide them. nnU-Net's `use_mask_for_norm`.
        minima: Least and greatest of the lowest intensities of the training cases, which tell a
            CT from other images; None in settings of older versions.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    modality: Modality
    scheme: NormalisationScheme = "zscore"
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    std: float = 1.0
    body_only: bool = False
    minima: tuple[float, float] | None = None

    @model_validator(mode="before")
    @classmethod
    def _scheme_of_older_versions(cls, values: Any) -> Any:
        if isinstance(values, dict) and "scheme" not in values:
            return {**values, "scheme": by_modality(values.get("modality", "MR"))}
        return values

    def apply(
        self,
        voxels: NDArray[np.float32],
        body: NDArray[np.bool_] | None = None,
        sample: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Normalised intensities of one channel.

        Args:
            voxels: The channel, cropped.
            body: Where the body is in it, for `body_only`.
            sample: Voxels whose statistics are taken without it; those of `voxels`.
        """
        if self.scheme == "CT":
            clipped = np.clip(voxels, self.low, self.high)
            return np.asarray((clipped - self.mean) / self.std, dtype=np.float32)
        if self.scheme == "noNorm":
            return voxels
        if self.scheme == "rgb_to_0_1":
            return np.asarray(voxels / RGB_MAXIMUM, dtype=np.float32)
        sample = voxels if sample is None else sample
        if self.scheme == "rescale_to_0_1":
            low, high = float(sample.min()), float(sample.max())
            return np.asarray((voxels - low) / ((high - low) or 1.0), dtype=np.float32)
        return _z_score(voxels, body, sample)

    def check(self, path: Path, voxels: NDArray[np.float32]) -> None:
        """Check that the scheme fits the intensities of a channel.

        Raises:
            DatasetError: naming the file and what is in it.
        """
        if self.scheme != "rgb_to_0_1":
            return
        low, high = float(voxels.min()), float(voxels.max())
        if low < 0 or high > RGB_MAXIMUM:
            raise DatasetError(
                f"{path}: intensities of {low:g} to {high:g}, but rgb_to_0_1 is for colours of 0 "
                f"to {RGB_MAXIMUM:g}: choose rescale_to_0_1 or zscore (`normalisation` in the "
                "config, or the name of the channel in dataset.json)"
            )


def _z_score(
    voxels: NDArray[np.float32], body: NDArray[np.bool_] | None, sample: NDArray[np.float32]
) -> NDArray[np.float32]:
    inside = np.asarray(sample if body is None else voxels[body], dtype=np.float64)
    if inside.size == 0:
        return np.zeros_like(voxels)
    # a constant image has nothing to scale
    normalised = (voxels - inside.mean()) / (float(inside.std()) or 1.0)
    if body is not None:
        normalised[~body] = 0
    return np.asarray(normalised, dtype=np.float32)


def by_modality(modality: Modality) -> NormalisationScheme:
    """The scheme that versions before this field had for a modality."""
    return "CT" if modality == "CT" else "zscore"


def schemes_of(config: ModelTrainingConfig, dataset: RawDataset) -> list[NormalisationScheme]:
    """The scheme of each channel of the data, by the config and the names of the channels."""
    before = [by_modality(modality) for modality in dataset.modalities]
    given = config.normalisation
    if given == "modality":
        return before
    chosen = {} if isinstance(given, str) else _by_folded_name(given)
    return [
        chosen.get(name.casefold()) or _BY_NAME.get(name.strip().casefold(), earlier)
        for name, earlier in zip(dataset.channels, before, strict=True)
    ]


def fingerprint_settings(config: ModelTrainingConfig, dataset: RawDataset) -> dict[str, Any]:
    """What the fingerprint of prepared data has of their schemes.

    It is empty where they are those that every version had, so that data which were prepared
    before are found again.
    """
    schemes = schemes_of(config, dataset)
    before = [by_modality(modality) for modality in dataset.modalities]
    return {} if schemes == before else {"normalisation": list(schemes)}


def normalisation_problems(config: ModelTrainingConfig, dataset: RawDataset) -> list[str]:
    """Channels that `normalisation` names and the data do not have, a line each."""
    if isinstance(config.normalisation, str):
        return []
    known = [name.casefold() for name in dataset.channels]
    return [
        f"normalisation names the channel {name!r}, but those of the data in {dataset.folder} are "
        f"{', '.join(dataset.channels)}: correct the name"
        for name in config.normalisation
        if name.casefold() not in known
    ]


def doubtful_schemes(
    dataset: RawDataset, schemes: Sequence[NormalisationScheme], config: ModelTrainingConfig
) -> list[str]:
    """Warnings about schemes that may not be meant, a line each."""
    warnings = []
    if config.intensity_window is not None and "CT" not in schemes:
        warnings.append(
            f"intensity_window={list(config.intensity_window)} has no effect: no channel is CT "
            f"({', '.join(dataset.channels)})"
        )
    if config.normalisation == "auto":
        warnings += [
            f"the channel {name!r} is normalised by z-score, since its name does not begin with "
            f"the word CT: if it is a CT, write normalisation: {{{name}: CT}} under config"
            for name, scheme in zip(dataset.channels, schemes, strict=True)
            if scheme == "zscore" and re.search(r"(?<![a-z])ct(?![a-z])", name.lower())
        ]
    return warnings


def _by_folded_name(
    given: Mapping[str, NormalisationScheme],
) -> dict[str, NormalisationScheme]:
    return {name.casefold(): scheme for name, scheme in given.items()}
