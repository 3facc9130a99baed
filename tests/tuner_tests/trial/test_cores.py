"""How many cores a trial trains with: real trainings of a tiny network, without Ray."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from tiny_trial import QUIET, TINY, VALUES

from training.data import generate_phantom
from tuner.spec.study_spec import StudySpec
from tuner.study.data import prepare_data
from tuner.trial.context import StudyContext
from tuner.trial.messages import EpochReport, TrialRequest
from tuner.trial.run import TrialRun

pytestmark = QUIET

SPEC = {
    "config": {**TINY, "max_epochs": 3},
    "space": {"learning_rate": {"loguniform": [1e-4, 1e-1]}},
}


def test_cores_change_between_epochs_and_the_next_trial_has_its_own_share(
    tmp_path: Path, private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phantom = generate_phantom(tmp_path / "phantom", num_cases=5, seed=1)
    config = {**SPEC["config"], "data_dir": str(phantom)}
    data = prepare_data(StudySpec.from_dict({**SPEC, "config": config}))
    folder = tmp_path / "study"
    folder.mkdir()
    context = StudyContext(folder, data.spec, data.for_trials, gpus=0)
    share = torch.get_num_threads()
    calls: list[tuple[str, int]] = []
    set_threads = torch.set_num_threads

    def noted(threads: int) -> None:
        calls.append((threading.current_thread().name, threads))
        set_threads(threads)

    monkeypatch.setattr(torch, "set_num_threads", noted)

    def of_training() -> list[tuple[str, int]]:
        # not those of the thread that draws patches, which has one
        return [call for call in calls if call[0].startswith("trial-") and call[1] != share]

    first = TrialRun(context, data.spec, TrialRequest(0, VALUES))
    assert isinstance(first.next_report(), EpochReport)
    assert of_training() == []
    first.use_cores(share + 1)
    assert isinstance(first.next_report(), EpochReport)
    first.close()
    # after the loader set its own thread to one core, it sets this one again
    assert set(of_training()) == {("trial-0", share + 1)}
    calls.clear()
    second = TrialRun(context, data.spec, TrialRequest(1, VALUES))
    assert isinstance(second.next_report(), EpochReport)
    second.close()
    assert calls[0] == ("trial-1", share)
    assert of_training() == []
