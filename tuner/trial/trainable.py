"""Ray Tune's view of a trial."""

from __future__ import annotations

import os
import socket
from typing import Any

import ray
from ray import tune

from tuner.trial.code import look_into_code
from tuner.trial.context import StudyContext
from tuner.trial.messages import TrialRequest
from tuner.trial.run import TrialRun


class TrialTrainable(tune.Trainable):  # type: ignore[misc]
    """Tune's view of a trial: `step` is one epoch; the actor is reused by the next trial."""

    def setup(self, config: dict[str, Any], study: StudyContext) -> None:
        """Start training the first trial of this actor."""
        self._study = study
        look_into_code(study.code)
        self._spec = study.spec
        self._run = self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End the trial before and start the next one in the same process."""
        self._run.close()
        self._run = self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train until the end of an epoch and report it, or how the trial ended."""
        return self._run.next_report().to_ray()

    def cleanup(self) -> None:
        """End the training thread."""
        self._run.close()

    def _begin(self, config: dict[str, Any]) -> TrialRun:
        return TrialRun(self._study, self._spec, TrialRequest.from_ray(config), placement())


def placement() -> dict[str, Any]:
    """Node and devices of this process, from Ray."""
    return {
        "node": socket.gethostname(),
        "node_ip": ray.util.get_node_ip_address(),
        "node_id": ray.get_runtime_context().get_node_id(),
        "pid": os.getpid(),
        "gpu_ids": [str(gpu) for gpu in ray.get_gpu_ids()],
    }
