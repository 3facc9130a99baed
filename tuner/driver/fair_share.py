"""Shares a cluster among the studies that run on it, by their priorities.

Each driver writes what its study wants into the cluster's own store, reads what the others want,
and comes to the same division. A study that has more than its part lets trials pause between two
epochs; they go on where they were when there is room.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tuner.driver.ray_internals import (
    cluster_notes,
    ended_jobs,
    free_places,
    remove_cluster_note,
    write_cluster_note,
)

if TYPE_CHECKING:
    from tuner.spec.settings import TrialResources

PREFIX = "segtune-share-"
"""How the keys of claims begin in the cluster's store."""

SILENT_SECONDS = 15.0
"""A claim that was not renewed for so long is that of a driver that answers no more."""

TURN_SECONDS = 300.0
"""Where there are fewer places than studies, they take turns of so long, times their priority."""


@dataclass(frozen=True)
class Claim:
    """What a study wants of a cluster.

    Attributes:
        study: Its name.
        token: Its driver.
        job: Ray's name of the driver's job, which the cluster knows the end of.
        priority: Its weight.
        kind: What its trials are placed by, `GPU` or `CPU`.
        size: How much of that a trial takes.
        wanted: Trials that it could run now.
        served: Seconds that its trials had of `kind` since there is another study.
        beat: How often its driver has written it.
    """

    study: str
    token: str
    job: str
    priority: float
    kind: str
    size: float
    wanted: int
    served: float = 0.0
    beat: int = 0


def divide(total: float, claims: Sequence[Claim]) -> dict[str, int]:
    """Places of each study, by the token of its driver.

    Weighted max-min fairness in whole places: the next place goes to the study that would have
    the least for its priority with it, as long as it wants one. Nothing that anyone wants is left
    idle. Where not each has one, they take turns.

    Args:
        total: How much there is of what trials are placed by.
        claims: The studies, all of one kind.
    """
    given = {claim.token: 0 for claim in claims}
    left = total

    def need(claim: Claim) -> tuple[float, int, str]:
        would_have = (given[claim.token] + 1) * claim.size / claim.priority
        turns = int(claim.served / (TURN_SECONDS * claim.priority))
        return would_have, turns, claim.token

    while True:
        able = [
            claim
            for claim in claims
            if given[claim.token] < claim.wanted and claim.size <= left + 1e-9
        ]
        if not able:
            return given
        chosen = min(able, key=need)
        given[chosen.token] += 1
        left -= chosen.size


class FairShare:
    """The part of a joined cluster that a study may use.

    Args:
        study: Name of the study.
        priority: Its weight.
        job: Ray's name of this driver's job.
        token: What tells this driver from all others.
    """

    def __init__(self, study: str, priority: float, job: str, token: str) -> None:
        self._study = study
        self._priority = priority
        self._job = job
        self._token = token
        self._kind, self._size = "", 0.0
        self._wanted: Callable[[], int] = lambda: 0
        self._live: Callable[[], int] = lambda: 0
        self._served = 0.0
        self._beat = 0
        self._looked = time.monotonic()
        self._beats: dict[str, tuple[int, float]] = {}
        self._others: list[Claim] = []
        self._told = ""
        self._leaving = 0
        self._left = False
        self.places: int | None = None
        """Trials that may run at once; None while no other study is there."""

    def take_over(self, token: str) -> None:
        """Free what the driver before has of this cluster, if it had claimed some.

        Its workers end with that. Ray frees it too, but takes more than a minute to miss a driver
        whose host is gone.

        Args:
            token: The driver's.
        """
        for text in cluster_notes(f"{PREFIX}{token}"):
            job = Claim(**json.loads(text)).job
            # a process may run a study twice
            if job != self._job:
                free_places(job)
            remove_cluster_note(f"{PREFIX}{token}")

    def claim(self, resources: TrialResources) -> None:
        """Say what a trial takes."""
        self._kind = "GPU" if resources.gpu else "CPU"
        self._size = resources.gpu or resources.cpu

    def follow(self, wanted: Callable[[], int], live: Callable[[], int]) -> None:
        """Say who knows how many trials could run, and how many do."""
        self._wanted, self._live = wanted, live

    def look(self, totals: dict[str, float]) -> list[str]:
        """Write what this study wants, and take its part; what is to be told of it.

        Args:
            totals: CPUs and GPUs of the nodes that this study uses.
        """
        if not self._kind or self._left:
            return []
        now = time.monotonic()
        seconds, self._looked = now - self._looked, now
        self._beat += 1
        own = Claim(
            self._study, self._token, self._job, self._priority, self._kind, self._size,
            self._wanted(), self._served, self._beat,
        )  # fmt: skip
        write_cluster_note(f"{PREFIX}{self._token}", json.dumps(asdict(own)))
        self._others = self._read(now)
        if not self._others:
            self.places, self._served = None, 0.0
        else:
            self._served += seconds * self._live() * self._size
            places = divide(totals.get(self._kind, 0.0), [own, *self._others])
            self.places = places[self._token]
        told = self._describe()
        if told == self._told:
            return []
        self._told = told
        return [told] if told else ["this study has the cluster to itself again"]

    def makes_room(self) -> str:
        """Why a trial is to pause: other studies wait for places that this one has; or empty.

        The trial that is told so pauses, and its worker is given back.
        """
        if self.places is None or self._live() - self._leaving <= self.places:
            return ""
        self._leaving += 1
        return f"makes room for {self._names()}: {self._part()}"

    def lets_go(self) -> bool:
        """Whether a worker whose trial has ended is given back; asked once for each."""
        if not self._leaving:
            return False
        self._leaving -= 1
        return True

    def leave(self) -> None:
        """Claim nothing any more."""
        self._left = True
        with suppress(Exception):
            # the cluster may be gone
            remove_cluster_note(f"{PREFIX}{self._token}")

    def _read(self, now: float) -> list[Claim]:
        """What other studies want that are placed by the same."""
        claims = [Claim(**json.loads(text)) for text in cluster_notes(PREFIX)]
        others = [claim for claim in claims if claim.token != self._token]
        ended = ended_jobs() if others else frozenset()
        found = []
        for claim in others:
            if claim.job in ended:
                # its driver was killed
                remove_cluster_note(f"{PREFIX}{claim.token}")
                continue
            beat, since = self._beats.get(claim.token, (-1, now))
            if claim.beat != beat:
                since = now
            self._beats[claim.token] = claim.beat, since
            if now - since <= SILENT_SECONDS and claim.kind == self._kind and claim.wanted:
                found.append(claim)
        return found

    def _names(self) -> str:
        return ", ".join(
            f"{claim.study} (priority {claim.priority:g})"
            for claim in sorted(self._others, key=lambda claim: (claim.study, claim.token))
        )

    def _part(self) -> str:
        at_once = f"{self.places} at once" if self.places else "none for now"
        return f"trials of this study (priority {self._priority:g}): {at_once}"

    def _describe(self) -> str:
        if self.places is None:
            return ""
        return f"shared with {self._names()}; {self._part()}"
