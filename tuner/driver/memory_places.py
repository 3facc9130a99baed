"""How many trials the memory of each node holds, by what trials are measured to take of it.

Ray ends a process of a node whose memory is nearly full, and its trial with it. So no further
trial begins on a node where one like the largest of late would not fit beside those that run.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tuner.study.trial_entry import MEMORY

if TYPE_CHECKING:
    from tuner.study.record import StudyRecord
    from tuner.trial.memory import MemoryUse

MARGIN = 1.1
"""Factor on what trials are measured to take, where it is asked whether a further one fits."""

RECENT = 10
"""Trials that the next one is compared with: it is taken to be as large as the largest of them."""


@dataclass
class _Node:
    """Memory of a node, in bytes.

    Attributes:
        limit: What its processes may hold before Ray ends one of them.
        others: What processes that are no trials of the study hold.
        trials: Trials that run there.
    """

    limit: float
    others: float = 0.0
    trials: set[int] = field(default_factory=set)


class MemoryPlaces:
    """The memory of a study's trials and nodes.

    A trial that has ended an epoch counts as what it held at most; one that has not, and the next
    one, as the largest of those that were measured last. The first trials are let in unmeasured.

    The driver's main thread tells what trials report, and that of `NodeWatch` asks too.
    """

    def __init__(self) -> None:
        self._record: StudyRecord | None = None
        self._lock = threading.RLock()
        self._nodes: dict[str, _Node] = {}
        self._node_of: dict[int, str] = {}
        self._means: dict[int, float] = {}
        self._unmeasured: set[int] = set()
        self._held: dict[int, float] = {}
        self._recent: list[int] = []
        self._before = 0.0
        self._leaving: set[int] = set()
        self._left = ""

    def follow(self, record: StudyRecord) -> None:
        """Look after the trials of a record from now on, which keeps what each held at most.

        Until one of them is measured, the next one is as large as the largest of those before.
        """
        with self._lock:
            self._before = self.largest
            self._record = record
            notes = {entry.number: entry.notes for entry in record.entries.values()}
            self._held = {each: note[MEMORY] for each, note in notes.items() if MEMORY in note}
            self._recent = list(self._held)[-RECENT:]
            self._node_of, self._means, self._left = {}, {}, ""
            self._unmeasured, self._leaving = set(), set()
            for node in self._nodes.values():
                node.trials.clear()

    @property
    def largest(self) -> float:
        """The most that one of the trials held that were measured last; 0 before there is one."""
        return max((self._held[number] for number in self._recent), default=self._before)

    def begins(self, number: int, use: MemoryUse | None) -> None:
        """Take over where a trial begins, or goes on, and what its node holds."""
        if use is None:
            return
        with self._lock:
            self._node_of[number] = use.node
            self._nodes.setdefault(use.node, _Node(use.limit)).trials.add(number)
            self._means[number] = use.mean
            self._unmeasured.add(number)
            self._look(use)

    def reports(self, number: int, use: MemoryUse | None) -> None:
        """Take over what a trial held until the end of an epoch."""
        if use is None or number not in self._node_of:
            return
        with self._lock:
            self._note(number, use.peak)
            self._means[number] = use.mean
            self._unmeasured.discard(number)
            self._look(use)

    def ends(self, number: int) -> None:
        """Count a trial no longer."""
        with self._lock:
            self._left = self._node_of.pop(number, "")
            if self._left:
                self._nodes[self._left].trials.discard(number)
            self._means.pop(number, None)
            self._unmeasured.discard(number)
            self._leaving.discard(number)

    def killed(self, number: int) -> bool:
        """Take over that Ray ended a trial's process for want of memory.

        Returns:
            Whether other trials of the study held some of it: there were too many at once.
        """
        with self._lock:
            node_id = self._node_of.get(number)
            if node_id is None:
                return False
            at_once = self.running(node_id)
            if at_once > 1:
                # so many of this size are too many
                self._note(number, self._free(node_id) / at_once)
            return at_once > 1

    def running(self, node_id: str) -> int:
        """Trials that run on a node."""
        node = self._nodes.get(node_id)
        return 0 if node is None else len(node.trials)

    def room(self, node_id: str) -> int | None:
        """Further trials that the memory of a node holds; None while nothing is known of it.

        A trial that does not fit by itself may run alone.
        """
        with self._lock:
            largest = self.largest
            if node_id not in self._nodes or not largest:
                return None
            trials = self._nodes[node_id].trials
            needs = sum(self._held.get(number, largest) for number in trials)
            free = self._free(node_id) - MARGIN * needs
            fit = max(0, math.floor(free / (MARGIN * largest)))
            return fit if trials else max(1, fit)

    def makes_room(self, number: int) -> str:
        """Why a trial is to pause: those of its node do not fit together; empty if they do.

        The first of them trains on.
        """
        with self._lock:
            node_id = self._node_of.get(number)
            if node_id is None:
                return ""
            stay = self._nodes[node_id].trials - self._leaving
            if len(stay) < 2 or number == min(stay):
                return ""
            needs = sum(self._held.get(each, self._means[each]) for each in stay)
            free = self._free(node_id)
            if needs <= free:
                return ""
            self._leaving.add(number)
            return (
                f"makes room: {len(stay)} trials of its node need {_gib(needs)} of memory, and may "
                f"use {_gib(free)}"
            )

    def lets_go(self) -> bool:
        """Whether the worker of the trial that ended last is given back: its node is full."""
        return bool(self._left) and self.room(self._left) == 0

    def describe(self, node_id: str) -> str:
        """What a trial needs of a node's memory, and what is there, as text."""
        return (
            f"a trial needs up to {_gib(self.largest)} (and a tenth to spare) of the "
            f"{_gib(self._free(node_id))} of memory that trials may use"
        )

    def _note(self, number: int, held: float) -> None:
        assert self._record is not None
        if held > self._held.get(number, -1.0):
            self._held[number] = held
            self._record.note(number, MEMORY, round(held), durable=False)
        self._recent = [each for each in self._recent if each != number][1 - RECENT :]
        self._recent.append(number)

    def _look(self, use: MemoryUse) -> None:
        """Take over what a node holds beside the study's trials."""
        node, largest, trials = self._nodes[use.node], self.largest, 0.0
        for number in node.trials:
            # one that has just begun will soon hold more
            likely = largest if number in self._unmeasured else 0.0
            trials += max(self._means[number], likely)
        node.limit, node.others = use.limit, max(0.0, use.used - trials)

    def _free(self, node_id: str) -> float:
        """What the trials of a node may hold together."""
        node = self._nodes.get(node_id)
        return math.inf if node is None else max(0.0, node.limit - node.others)


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
