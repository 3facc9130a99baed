"""A trial on several GPUs: processes that train together, here on the CPU, without Ray."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_trial import QUIET, TINY, VALUES, reports_of

from training.data import generate_phantom
from tuner.spec.study_spec import StudySpec
from tuner.study.data import StudyData, prepare_data
from tuner.study.trial_entry import TrialState
from tuner.trial.context import StudyContext
from tuner.trial.messages import EpochReport, TrialEnd, TrialRequest
from tuner.trial.ranks import Ranks
from tuner.trial.run import TrialRun

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:Grad strides do not match.*"),
    # they are measured over all processes, see `SegmentationLightningModule.log`
    pytest.mark.filterwarnings("ignore:It is recommended to use `self.log.*sync_dist.*"),
]

CONFIG = {
    **TINY,
    "train_batch_size": 2,
    "steps_per_epoch": 2,
    "max_epochs": 4,
    # a patch counts by itself, as the processes have them
    "loss": "cross_entropy",
    "precision": "32-true",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, private_cache: Path) -> StudyData:
    phantom = generate_phantom(tmp_path_factory.mktemp("raw") / "phantom", num_cases=6, seed=1)
    return prepare_data(
        StudySpec.from_dict(
            {
                "config": {"data_dir": str(phantom), "val_fraction": 0.4, **CONFIG},
                "space": {"learning_rate": {"loguniform": [1e-4, 1e-1]}},
                "resources": {"gpu": 2, "logical_gpus": True, "batch": "trial"},
            }
        )
    )


def context_of(folder: Path, data: StudyData, gpus: float) -> StudyContext:
    folder.mkdir(exist_ok=True)
    return StudyContext(folder, data.spec, data.for_trials, gpus=gpus)


@pytest.fixture
def ranks() -> Any:
    found = Ranks(2)
    yield found
    found.close()


def start(context: StudyContext, ranks: Ranks | None, number: int = 0) -> TrialRun:
    return TrialRun(context, context.spec, TrialRequest(number, VALUES), ranks=ranks)


def rows(folder: Path, number: int = 0) -> list[dict[str, float]]:
    path = folder / "trials" / f"{number:04d}" / "metrics.csv"
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def children_of(ranks: Ranks) -> list[int]:
    return [rank._process.pid for rank in ranks._others]


def test_several_processes_train_as_one_does(data: StudyData, tmp_path: Path, ranks: Ranks) -> None:
    single = context_of(tmp_path / "single", data, gpus=0)
    (*_, end) = reports_of(start(single, None))
    assert end.state is TrialState.COMPLETED
    several = context_of(tmp_path / "several", data, gpus=2)
    (*_, end) = reports_of(start(several, ranks))
    assert end.state is TrialState.COMPLETED, end.reason
    one, other = rows(single.folder), rows(several.folder)
    assert [row["epoch"] for row in other] == [1, 2, 3, 4]
    for name in ("train_loss", "val_loss", "val_dice", "lr"):
        expected = [row[name] for row in one]
        assert [row[name] for row in other] == pytest.approx(expected, rel=1e-3, abs=1e-4), name
    # as many examples for each
    config = (several.folder / "trials" / "0000" / "config.yaml").read_text()
    assert "train_batch_size: 1\n" in config
    assert "gpus: 2\n" in config
    assert not torch.distributed.is_initialized()


def test_a_trial_that_was_paused_goes_on_and_its_processes_stay(
    data: StudyData, tmp_path: Path, ranks: Ranks
) -> None:
    whole = context_of(tmp_path / "whole", data, gpus=2)
    expected = [r.score for r in reports_of(start(whole, ranks)) if isinstance(r, EpochReport)]
    before = children_of(ranks)
    cut = context_of(tmp_path / "cut", data, gpus=2)
    first = reports_of(start(cut, ranks), most=2)
    then = reports_of(start(cut, ranks))
    # an actor trains the next trial with the same processes
    other = reports_of(start(cut, ranks, number=1), most=1)
    assert isinstance(other[0], EpochReport)
    assert children_of(ranks) == before
    assert [r.score for r in first] == expected[:2]
    assert [r.score for r in then if isinstance(r, EpochReport)] == pytest.approx(expected)


def test_a_process_that_is_killed_fails_the_trial_and_the_next_one_trains(
    data: StudyData, tmp_path: Path, ranks: Ranks
) -> None:
    context = context_of(tmp_path / "study", data, gpus=2)
    run = start(context, ranks)
    assert isinstance(run.next_report(), EpochReport)
    (child,) = children_of(ranks)
    os.kill(child, signal.SIGKILL)
    began = time.monotonic()
    end = run.next_report()
    run.close()
    assert isinstance(end, TrialEnd)
    assert (end.state, end.reason) == (
        TrialState.FAILED,
        "process 1 of the trial was ended by signal 9",
    )
    assert time.monotonic() - began < 20
    assert children_of(ranks) == []
    again = [r for r in reports_of(start(context, ranks)) if isinstance(r, EpochReport)]
    assert [report.epoch for report in again] == [1, 2, 3, 4]


GREEDY = """
import torch
from training.lightning_module import SegmentationLightningModule

class Greedy(SegmentationLightningModule):
    def training_step(self, batch, batch_idx):
        if self.global_rank == 1 and self.current_epoch == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().training_step(batch, batch_idx)
"""


def test_a_process_that_runs_out_of_memory_ends_the_trial_as_that(
    data: StudyData, tmp_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "greedy_lab.py").write_text(GREEDY)
    monkeypatch.syspath_prepend(code)
    values = {**data.spec.config, "lightning_module": "greedy_lab:Greedy"}
    spec = data.spec.model_copy(update={"config": values})
    context = replace(context_of(tmp_path / "study", data, gpus=2), spec=spec, code=code)
    began = time.monotonic()
    *_, end = reports_of(start(context, ranks))
    assert isinstance(end, TrialEnd)
    assert (end.state, end.reason) == (
        TrialState.OUT_OF_MEMORY,
        "OutOfMemoryError: CUDA out of memory",
    )
    assert time.monotonic() - began < 60
    assert children_of(ranks) == []


def test_a_process_that_cannot_start_is_not_waited_for(
    data: StudyData, tmp_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(tmp_path / "study", data, gpus=2)
    monkeypatch.setattr("tuner.trial.ranks.PROGRAM", "tuner.trial.no_such_program")
    began = time.monotonic()
    *_, end = reports_of(start(context, ranks))
    assert isinstance(end, TrialEnd)
    assert (end.state, end.reason) == (
        TrialState.FAILED,
        "process 1 of the trial ended with exit code 1",
    )
    assert time.monotonic() - began < 60


PARENT = """
import time
from tuner.trial.ranks import _Rank
print(_Rank(1, 1)._process.pid, flush=True)
time.sleep(100)
"""


def test_no_process_stays_when_that_of_the_trial_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 20
    while is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
