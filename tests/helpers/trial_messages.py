"""What schedulers and searchers see of a trial: Ray's trial, and the results that it reports."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tuner.study.trial_entry import Placement, TrialState
from tuner.trial.messages import EpochReport, TrialEnd, TrialRequest, TrialStart


def ray_trial(number: int, **attributes: Any) -> Any:
    config = TrialRequest(number, {}).to_ray()
    return SimpleNamespace(config=config, trial_id=str(number), **attributes)


def start_result(node: str, *gpus: str) -> dict[str, Any]:
    return TrialStart(Placement(node, gpus)).to_ray()


def epoch_result(epoch: int, score: float, seconds: float = 1.0, **more: Any) -> dict[str, Any]:
    return EpochReport(epoch, score, {"val_dice": score}, seconds, **more).to_ray()


def completed(**notes: Any) -> dict[str, Any]:
    return TrialEnd(TrialState.COMPLETED, "done", notes).to_ray()
