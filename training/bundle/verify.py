"""Checks that a written bundle predicts what the trained networks predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from training.bundle.bundle import Bundle
from training.bundle.member import Member
from training.errors import BundleError

LIMIT = 1e-4
"""How far probabilities may be apart."""


def verify_bundle(
    folder: Path,
    members: Sequence[Member],
    images: Sequence[Path],
    cached: Float[Tensor, "c d h w"] | None = None,
    label: Path | None = None,
    channels: Sequence[int] | None = None,
) -> None:
    """Check that the written bundle predicts what the trials' models predict.

    The bundle is read back and segments the case from its image files; the trials' models segment
    the same case from the preprocessed cache. The cache keeps what carries a label outside the
    body, so it was made with the label map `label`. Each network is compared by itself, and the
    bundle with the weighted mean of what the models predict.

    Args:
        folder: The bundle.
        members: The trials' models, on the CPU, with the weights and mirrored axes that the bundle
            has.
        images: Image files of the case.
        cached: The preprocessed case; without it the trials' models get what the bundle makes of
            the files.
        label: The case's label map, where the preprocessed case was made with it.
        channels: Number of the channel that each image file is, where the case lacks others.

    Raises:
        BundleError: if the two differ.
        DatasetError: if the files cannot be read.
    """
    bundle = Bundle.load(folder, device="cpu", trust_code=True)
    case = torch.from_numpy(bundle.preprocessing.apply(images, label, channels).image)
    _check_alike(bundle, members, case, case if cached is None else cached, str(images[0]))


def verify_network(
    folder: Path, members: Sequence[Member], cached: Float[Tensor, "c d h w"], name: str
) -> None:
    """Check a written bundle as `verify_bundle` does, on a case that is preprocessed already.

    Args:
        folder: The bundle.
        members: The trials' models.
        cached: The preprocessed case.
        name: What it is, for the message of an error.

    Raises:
        BundleError: if the two differ.
    """
    bundle = Bundle.load(folder, device="cpu", trust_code=True)
    _check_alike(bundle, members, cached, cached, name)


def _check_alike(
    bundle: Bundle,
    members: Sequence[Member],
    case: Float[Tensor, "c d h w"],
    cached: Float[Tensor, "c2 d2 h2 w2"],
    name: str,
) -> None:
    if len(bundle.members) != len(members):
        raise BundleError(
            f"the exported model {bundle.folder} has {len(bundle.members)} networks, not "
            f"{len(members)}"
        )
    mean = torch.zeros(())
    for index, (written, trained) in enumerate(zip(bundle.members, members, strict=True)):
        expected = trained.probabilities(cached)
        mean = mean + trained.weight * expected
        if len(members) > 1:
            whose = f"network {index} of {bundle.folder}"
            _compare(whose, written.probabilities(case), expected, name)
    _compare(f"the exported model {bundle.folder}", bundle.probabilities(case), mean, name)


def _compare(whose: str, written: Tensor, expected: Tensor, name: str) -> None:
    if written.shape != expected.shape:
        raise BundleError(
            f"{whose} predicts a grid of {tuple(written.shape)} for {name}, the trial's model "
            f"{tuple(expected.shape)}: the data has changed since it was preprocessed"
        )
    difference = float((written - expected).abs().max())
    if not difference <= LIMIT:
        raise BundleError(
            f"{whose} does not predict what its trial predicted for {name}: probabilities differ "
            f"by {difference:.3g} (limit {LIMIT:g})"
        )
