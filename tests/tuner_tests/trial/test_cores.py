"""How many cores a trial trains with: real trainings of a tiny network, without Ray."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from training.data import generate_phantom
from tuner.spec.study_spec import StudySpec
from tuner.study.data import prepare_data
from tuner.trial.context import StudyContext
from tuner.trial.messages import EpochReport, TrialRequest
from tuner.trial.run import TrialRun

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
]

SPEC: dict[str, Any] = {
    "config": {
        "model_params": {
            "embed_dim": 4,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "patch_size": [2, 4, 4],
        },
        "patch_size": [8, 32, 32],
        "steps_per_epoch": 1,
        "window_overlap": 0,
        "val_batch_size": 8,
        "max_epochs": 3,
    },
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

    first = TrialRun(context, data.spec, TrialRequest(0, {"learning_rate": 0.01}))
    assert isinstance(first.next_report(), EpochReport)
    assert of_training() == []
    first.use_cores(share + 1)
    assert isinstance(first.next_report(), EpochReport)
    first.close()
    # after the loader set its own thread to one core, it sets this one again
    assert set(of_training()) == {("trial-0", share + 1)}
    calls.clear()
    second = TrialRun(context, data.spec, TrialRequest(1, {"learning_rate": 0.01}))
    assert isinstance(second.next_report(), EpochReport)
    second.close()
    assert calls[0] == ("trial-1", share)
    assert of_training() == []
