"""Spreads trials that have a part of a GPU over the GPUs before several share one.

Ray (2.60) gives a part of a GPU where the least is left that is enough, so that two halves share
one GPU while the next idles. So what is left of the GPUs that trials are on is booked while a
further trial is placed on a node that has one without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

NODE_LABEL = "ray.io/node-id"
"""Label that Ray gives every node: its own name of it."""

PLACED_SECONDS = 1.0
"""Seconds that Ray may take to book what is free; it takes a few milliseconds."""

WHOLE = 10_000
"""Parts in which Ray counts a GPU."""

ROUNDING = 10
"""Parts by which what is left of a GPU may differ from what is known, for rounding."""


class SharedGpus:
    """Places trials that have a part of a GPU.

    It knows the places that it has asked for itself, and what GPUs they are on by what Ray does;
    what other studies take it does not know. Where they are in the way a trial is placed as Ray
    would.

    Args:
        cpu: CPU cores of a trial.
        gpu: Its part of a GPU.
        nodes: GPUs of each node that may be used now, by Ray's name of it.
    """

    def __init__(self, cpu: float, gpu: float, nodes: Callable[[], Mapping[str, int]]) -> None:
        self._bundle = {"CPU": cpu, "GPU": gpu}
        self._share = round(gpu * WHOLE)
        self._nodes = nodes
        self._places: dict[PlacementGroup, tuple[str, int]] = {}
        self._asked: list[PlacementGroup] = []

    def place(self) -> PlacementGroup | None:
        """A place on a GPU that no trial of the study is on; None if there is none."""
        self._look()
        left = {node: self._left(node, gpus) for node, gpus in self._nodes().items()}
        for node in sorted(left, key=lambda node: sum(left[node]), reverse=True):
            if WHOLE not in left[node]:
                continue
            used = [part for part in left[node] if self._share <= part < WHOLE]
            here = {NODE_LABEL: node}
            with _booked([{"GPU": (part - ROUNDING) / WHOLE} for part in used], here):
                place = placement_group([self._bundle], bundle_label_selector=[here])
                if place.wait(PLACED_SECONDS):
                    self._places[place] = node, left[node].index(WHOLE)
                    return place
                remove_placement_group(place)
        return None

    def asked(self, place: PlacementGroup) -> None:
        """Know of a place that is not from here, and that Ray may not have found yet."""
        self._asked.append(place)

    def _left(self, node: str, gpus: int) -> list[int]:
        """What the study's trials leave of each GPU of a node, of `WHOLE`."""
        left = [WHOLE] * gpus
        for found, gpu in self._places.values():
            if found == node and gpu < gpus:
                left[gpu] -= self._share
        return left

    def _look(self) -> None:
        """Forget places that were given back, and take over those that Ray has found."""
        for place in list(self._places):
            if placement_group_table(place)["state"] != "CREATED":
                del self._places[place]
        waiting, self._asked = self._asked, []
        for place in waiting:
            found = placement_group_table(place)
            if found["state"] == "CREATED":
                node = found["bundles_to_node_id"][0]
                left = self._left(node, self._nodes().get(node, 0))
                enough = [part for part in left if part >= self._share]
                # as Ray does: where the least is left
                self._places[place] = node, left.index(min(enough)) if enough else 0
            elif found["state"] != "REMOVED":
                self._asked.append(place)


@contextmanager
def _booked(bundles: list[dict[str, float]], here: dict[str, str]) -> Iterator[None]:
    """Book parts of the GPUs of a node for a moment."""
    if not bundles:
        yield
        return
    booked = placement_group(bundles, bundle_label_selector=[here] * len(bundles))
    booked.wait(PLACED_SECONDS)
    try:
        yield
    finally:
        remove_placement_group(booked)
