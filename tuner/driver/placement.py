"""Where Ray may place a trial: on a node of the study's cluster that is not left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ray.tune import PlacementGroupFactory
from ray.util.placement_group import PlacementGroup, placement_group

from tuner.driver.resources import cores_for
from tuner.driver.shared_gpus import NODE_LABEL, SharedGpus


class FitNodes(PlacementGroupFactory):  # type: ignore[misc]
    """The share of a trial, on a node that is not to be avoided when it is asked for.

    All trials of a study are alike to Tune, so that any may go on in the process of another.

    Args:
        cpu: CPU cores of a trial.
        gpu: GPUs of a trial; parts of one are spread over the GPUs, see `SharedGpus`.
        avoided: Which nodes to avoid just now, by Ray's name.
        gpus: GPUs of each node that is not avoided.
    """

    def __init__(
        self,
        cpu: float,
        gpu: float,
        avoided: Callable[[], frozenset[str]],
        gpus: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        super().__init__([{"CPU": cpu, "GPU": gpu}])
        self._avoided = avoided
        self._cpu, self._gpu = cpu, gpu
        self._shared = SharedGpus(cpu, gpu, gpus) if 0 < gpu < 1 else None

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles it with each trial; where to place it is the driver's to know."""
        return {**super().__getstate__(), "_avoided": frozenset, "_shared": None}

    def with_gpus(self, gpus: float) -> FitNodes:
        """The same for a trial with so many times the GPUs and cores."""
        return FitNodes(cores_for(self._cpu, gpus), self._gpu * gpus, self._avoided)

    @property
    def avoided(self) -> frozenset[str]:
        """Nodes to avoid just now."""
        return self._avoided()

    def to_placement_group(self) -> PlacementGroup:
        """Ask Ray for the share."""
        alone = None if self._shared is None else self._shared.place()
        if alone is not None:
            return alone
        avoided = self._avoided()
        label = {NODE_LABEL: f"!in({', '.join(sorted(avoided))})"} if avoided else None
        place = placement_group(
            self.bundles, self.strategy, bundle_label_selector=[label] if label else None
        )
        if self._shared is not None:
            self._shared.asked(place)
        return place
