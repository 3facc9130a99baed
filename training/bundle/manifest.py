"""What a bundle says of itself: the content of `bundle.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.bundle.folder import MANIFEST
from training.bundle.postprocessing import Postprocessing
from training.errors import BundleError

FORMAT_VERSION = 3

FORMAT_OF_PLAIN_LABELS = 2
"""Version that is written where nothing needs a newer one."""

READ_VERSIONS = (1, FORMAT_OF_PLAIN_LABELS, FORMAT_VERSION)
"""Version 1 has no `members`: one network, predicted without mirroring. Version 2 knows no labels
whose values have gaps, and no regions."""


class MemberEntry(BaseModel):
    """One network of a bundle.

    Attributes:
        folder: Where its weights and its config are, in the folder of the bundle.
        weight: Its share of the mean of probabilities; those of all members sum to 1.
        mirror_axes: Axes that its predictions are averaged over with the image mirrored: 0 depth,
            1 height, 2 width.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str = Field(default=".", pattern=r"^(\.|members/\d+)$")
    weight: float = Field(default=1.0, gt=0, le=1)
    mirror_axes: tuple[int, ...] = ()


class Manifest(BaseModel):
    """The content of `bundle.json`.

    Attributes:
        format_version: Version of this layout.
        labels: Name of each class, background first.
        label_values: Value of each class in label files, where that is not 0, 1, 2, ...
        regions: Label values of each region that the networks predict; None for exclusive classes.
        regions_class_order: Label value that is written for each region, later ones over earlier.
        channels: Name of each image channel.
        metrics: Metrics of what was exported, on the validation and test cases.
        provenance: Data fingerprint, versions, seed, commit and study of the training.
        members: Its networks.
        postprocessing: What is done to each label map that it predicts.
        choice: How members, mirroring and postprocessing were chosen, with the scores before and
            after; empty where nothing was.
    """

    model_config = ConfigDict(extra="forbid")

    format_version: int = FORMAT_VERSION
    labels: list[str]
    label_values: list[int] | None = None
    regions: dict[str, list[int]] | None = None
    regions_class_order: list[int] | None = None
    channels: list[str]
    metrics: dict[str, float | None]
    provenance: dict[str, Any]
    members: list[MemberEntry] = Field(default=[MemberEntry()], min_length=1)
    postprocessing: Postprocessing = Postprocessing()
    choice: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _shares_of_one(self) -> Self:
        total = sum(member.weight for member in self.members)
        if not math.isclose(total, 1, abs_tol=1e-6):
            raise ValueError(f"the weights of its members sum to {total:g}, not to 1")
        return self

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a bundle.

        Raises:
            BundleError: if it is of a version that is not known here.
            OSError: if it cannot be read.
            ValueError: if it is damaged.
        """
        content = json.loads((folder / MANIFEST).read_text())
        version = content.get("format_version") if isinstance(content, dict) else None
        if isinstance(version, int) and version not in READ_VERSIONS:
            raise BundleError(
                f"{folder} has format {version}, this version reads "
                f"{_listed(READ_VERSIONS)}: export it again"
            )
        return cls.model_validate(content)


def _listed(versions: Sequence[int]) -> str:
    return f"{', '.join(map(str, versions[:-1]))} and {versions[-1]}"


def clean_metrics(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics as JSON can hold them: null for a value that is not defined."""
    return {name: value if np.isfinite(value) else None for name, value in metrics.items()}
