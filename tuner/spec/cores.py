"""What a training without a GPU gains from more CPU cores."""

from __future__ import annotations

ENOUGH_CORES = 8
"""Cores beyond which a training gains little: then several train on at the end of a study."""

GAIN = 0.65
"""With n times the cores an epoch takes n ** -GAIN of its time (a small U-Net on one and two cores:
30.5 and 19.6 s)."""


def alone(cores: float, share: float) -> tuple[int, float]:
    """Trials that share all cores at the end, and how long an epoch then takes, as a share.

    Args:
        cores: Cores of the machine.
        share: Cores of a trial before.
    """
    trials = max(1, int(cores) // ENOUGH_CORES)
    return trials, max(1.0, cores / trials / share) ** -GAIN
