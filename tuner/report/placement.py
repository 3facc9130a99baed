"""Where trials run, as tables show it: only where there is a choice of nodes, or a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tuner.study.trial_entry import Placement, TrialEntry

PLACE_COLUMNS = ("node", "gpu")


def places_differ(entries: Iterable[TrialEntry]) -> bool:
    """Whether tables have the columns `PLACE_COLUMNS`: trials ran on several nodes, or on GPUs."""
    return Places(entries).differ


def place_cells(entry: TrialEntry) -> list[str]:
    """The cells of `PLACE_COLUMNS`; empty for a trial that is not known to have run."""
    placement = entry.placement
    return ["", ""] if placement is None else [placement.node, ",".join(placement.gpus)]


class Places:
    """The nodes that trials of a study ran on so far.

    Args:
        entries: Trials that ran before.
    """

    def __init__(self, entries: Iterable[TrialEntry] = ()) -> None:
        self._nodes: set[str] = set()
        self._gpus = False
        for entry in entries:
            if entry.placement is not None:
                self.add(entry.placement)

    def add(self, placement: Placement) -> None:
        """Count a place."""
        self._nodes.add(placement.node)
        self._gpus = self._gpus or bool(placement.gpus)

    @property
    def differ(self) -> bool:
        """Whether trials ran on several nodes, or on GPUs."""
        return self._gpus or len(self._nodes) > 1
