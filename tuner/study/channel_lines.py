"""What a study says about the channels of its data before it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.data.prepared.normalisation import doubtful_schemes, schemes_of

if TYPE_CHECKING:
    from training.data import RawDataset
    from tuner.spec.study_spec import StudySpec

DROPOUT = "channel_dropout"


def dropout_lines(spec: StudySpec, dataset: RawDataset) -> list[str]:
    """Warnings about a channel dropout that is missing, or has no effect.

    Args:
        spec: The study's spec.
        dataset: The data that it is for.
    """
    varies = DROPOUT in spec.space.domains
    value = spec.base_config().channel_dropout
    if len(dataset.channels) == 1:
        if not varies and not value:
            return []
        return [
            f"warning: {DROPOUT} has no effect: the data have one channel ({dataset.channels[0]}), "
            "and the last one is never dropped"
        ]
    if not dataset.missing_channels or varies or value:
        return []
    lacking = sum(case.channels is not None for case in dataset.cases)
    return [
        f"warning: cases may lack channels, but {DROPOUT} is 0: the network learns to do without "
        f"one from the {lacking} of {len(dataset.cases)} cases that lack one, and from nothing "
        f"else; set e.g. {DROPOUT}: 0.2, or let it vary"
    ]


def channel_lines(spec: StudySpec, dataset: RawDataset) -> list[str]:
    """All warnings about channels that can be given before any voxel is read."""
    config = spec.base_config()
    doubts = doubtful_schemes(dataset, schemes_of(config, dataset), config)
    return [*(f"warning: {line}" for line in doubts), *dropout_lines(spec, dataset)]
