"""Where Ray may place a trial: on a node of the study's cluster that is not left out."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from ray.tune import PlacementGroupFactory
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from tuner.driver.ray_internals import placement_group_of

NODE_LABEL = "ray.io/node-id"
"""Label that Ray gives every node: its own name of it."""


class FitNodes(PlacementGroupFactory):  # type: ignore[misc]
    """The share of a trial, on a node that is not to be avoided when it is asked for.

    Its name says which driver asked for it, for the next one, see `release_places`.

    All trials of a study are alike to Tune, so that any may go on in the process of another.

    Args:
        cpu: CPU cores of a trial.
        gpu: GPUs of a trial.
        avoided: Which nodes to avoid just now, by Ray's name.
        token: What tells this driver from all others.
    """

    def __init__(
        self, cpu: float, gpu: float, avoided: Callable[[], frozenset[str]], token: str
    ) -> None:
        super().__init__([{"CPU": cpu, "GPU": gpu}])
        self._avoided = avoided
        self._token = token

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles it with each trial; what to avoid is the driver's to know."""
        return {**super().__getstate__(), "_avoided": frozenset}

    @property
    def avoided(self) -> frozenset[str]:
        """Nodes to avoid just now."""
        return self._avoided()

    def to_placement_group(self) -> PlacementGroup:
        """Ask Ray for the share."""
        avoided = self._avoided()
        label = {NODE_LABEL: f"!in({', '.join(sorted(avoided))})"} if avoided else None
        return placement_group(
            self.bundles,
            self.strategy,
            # Ray wants each name once
            name=f"{self._token}-{uuid.uuid4().hex}",
            bundle_label_selector=[label] if label else None,
        )


def release_places(token: str) -> None:
    """Free what a driver that is gone has asked for, and end the processes that run there.

    Ray does so too, but takes more than a minute to miss a driver whose host is gone.

    Args:
        token: The driver's.
    """
    for number, group in placement_group_table().items():
        if group["name"].startswith(f"{token}-") and group["state"] != "REMOVED":
            remove_placement_group(placement_group_of(number))
