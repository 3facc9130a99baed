"""Ray Tune's view of a trial."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
from ray import tune

from tuner.study.trial_entry import Placement
from tuner.trial.code import look_into_code
from tuner.trial.context import StudyContext
from tuner.trial.memory import GpuUse, MemoryMeter
from tuner.trial.messages import EpochReport, TrialRequest, TrialStart
from tuner.trial.ranks import Ranks
from tuner.trial.run import TrialRun


class TrialTrainable(tune.Trainable):  # type: ignore[misc]
    """Tune's view of a trial: `step` is one epoch; the actor is reused by the next trial.

    The first step of a trial trains nothing: it reports where the trial is.
    """

    _run: TrialRun
    _placed: bool
    _progress: str

    def setup(
        self,
        config: dict[str, Any],
        study: StudyContext,
        label: str,
        show: Callable[[str], None],
        node_memory: Callable[[], tuple[float, float]],
        gpu: Callable[[], GpuUse | None],
    ) -> None:
        """Start training the first trial of this actor.

        Args:
            config: The trial, see `TrialRequest`.
            study: Its study.
            label: Name of the study for people.
            show: Shows a text as the name of this process.
            node_memory: Bytes that are used on this node, and that may be.
            gpu: What this process takes of its GPU.
        """
        gpus = TrialRequest.from_ray(config).gpus
        # only trials that have as many go on in this process
        study = replace(study, gpus=gpus) if gpus else study
        self._study = study = study.on_this_node()
        self._label = label
        self._show = show
        self._memory = MemoryMeter(placement()["node_id"], node_memory, gpu)
        look_into_code(study.code)
        self._spec = study.spec
        self._ranks = Ranks(study.processes) if study.processes > 1 else None
        self._first = TrialRequest.from_ray(config).number
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End the trial before and start the next one in the same process."""
        self._run.close()
        self._start(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train until the end of an epoch and report it, or how the trial ended."""
        # Ray gives the process its own name before each step
        self._show(self._now())
        if not self._placed:
            self._placed = True
            where = placement()
            place = Placement(where["node"], tuple(where["gpu_ids"]))
            return TrialStart(place, self._memory.report()).to_ray()
        report = self._run.next_report()
        if isinstance(report, EpochReport):
            self._progress = f", epoch {report.epoch}, {self._spec.metric} {report.score:.4f}"
        return report.to_ray()

    def use_cores(self, cores: int) -> None:
        """Train with so many cores from the next epoch on."""
        self._run.use_cores(cores)

    def cleanup(self) -> None:
        """End the training thread, and the further processes."""
        self._run.close()
        if self._ranks is not None:
            self._ranks.close()
        self._memory.close()

    def __repr__(self) -> str:
        """Study, trial, epoch and score.

        Ray asks once, when the actor starts, and shows the answer for as long as the actor lives,
        so it says that there are further trials.
        """
        began = f"{self._label}, trials from {self._first} on"
        return f"{began}: {self._now()}" if self._progress else began

    def _now(self) -> str:
        return f"{self._label}, trial {self._number}{self._progress}"

    def _start(self, config: dict[str, Any]) -> None:
        self._number = TrialRequest.from_ray(config).number
        self._placed, self._progress = False, ""
        self._memory.begin()
        self._run = self._begin(config)

    def _begin(self, config: dict[str, Any]) -> TrialRun:
        request = TrialRequest.from_ray(config)
        return TrialRun(
            self._study, self._spec, request, placement(), self._ranks, self._memory.report
        )


def placement() -> dict[str, Any]:
    """Node and devices of this process, from Ray."""
    return {
        "node": socket.gethostname(),
        "node_ip": ray.util.get_node_ip_address(),
        "node_id": ray.get_runtime_context().get_node_id(),
        "pid": os.getpid(),
        "gpu_ids": [str(gpu) for gpu in ray.get_gpu_ids()],
    }
