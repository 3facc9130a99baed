"""A study at an address, run and shown by several machines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import waiting
from s3_server import S3Server

from training.storage import Store
from tuner.errors import StudyError
from tuner.spec.load import parse_spec
from tuner.study.checkpoint_files import checkpoint_files, remove_checkpoints
from tuner.study.create import create_study
from tuner.study.driver import only_driver
from tuner.study.driver_lock import driver_is_running
from tuner.study.open import open_study, open_to_show, study_folders
from tuner.study.remote.place import local_studies_dir, remote_place
from tuner.study.remote.study import fetch_checkpoints
from tuner.study.remote.trial import fetch_from_trial, trained_here
from tuner.study.study import Study
from tuner.study.trial_entry import TrialState

SPEC = parse_spec(
    "metric: val_dice\n"
    "config: {max_epochs: 9}\n"
    "space: {learning_rate: {loguniform: [1e-5, 1e-2]}}\n"
    "search: {num_trials: 6}\n",
    source="s.yaml",
)
Go = Callable[[str], Path]


def nothing() -> None:
    """Neither leave nor make way."""


def propose(study: Study, rate: float = 1e-3) -> int:
    return study.record.propose({"learning_rate": rate}, "a test").number


wait_until = partial(waiting.wait_for, seconds=60)


def rates(study: Study) -> list[float]:
    return [entry.values["learning_rate"] for entry in study.record.entries.values()]


def test_a_study_goes_on_elsewhere_from_the_storage_alone(
    server: S3Server, on: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    studies = on("cluster")
    study = create_study(SPEC, studies, "liver")
    with only_driver(study):
        propose(study, 1e-3)
        study.record.finish(0, TrialState.FAILED, "a test")
        propose(study, 2e-3)
    studies = on("laptop")
    assert [folder.name for folder in study_folders(studies)] == ["liver"]
    there, _ = open_to_show(studies, "liver")
    assert rates(there) == [1e-3, 2e-3]
    decided = [(d.trial, d.action, d.reason) for d in study.record.decisions]
    assert [(d.trial, d.action, d.reason) for d in there.record.decisions[:3]] == decided
    assert (there.folder / "spec.yaml").read_text() == SPEC.source_text
    with only_driver(there):
        propose(there, 3e-3)
    # what this machine has is older now
    back = open_study(on("cluster"), "liver")
    assert rates(back) == [1e-3, 2e-3, 3e-3]
    assert create_study(SPEC, on("cluster"), "liver").record.entries.keys() == {0, 1, 2}
    # nothing is ever written to a folder that is called like the address
    assert {path.name for path in tmp_path.iterdir()} == {"cluster", "laptop"}


def test_a_decision_is_there_while_the_study_runs_and_nobody_else_runs_it(
    server: S3Server, on: Go
) -> None:
    study = create_study(SPEC, on("cluster"), "liver")
    with only_driver(study):
        propose(study)
        studies = on("laptop")
        wait_until(lambda: rates(open_study(studies, "liver")) == [1e-3])
        assert driver_is_running(studies / "liver")
        there = open_study(studies, "liver")
        with (
            pytest.raises(
                StudyError, match=r"another machine \(process \d+ on .+\) runs the study"
            ),
            only_driver(there),
        ):
            pass
        on("cluster")
    assert not driver_is_running(study.folder)


RUN = """\
import sys
from pathlib import Path
from tuner.study.driver import only_driver
from tuner.study.open import open_study
from tuner.study.remote.place import local_studies_dir
study = open_study(local_studies_dir(sys.argv[1]), "liver")
with only_driver(study):
    study.record.propose({"learning_rate": 1e-3}, "a test")
    print(flush=True)
    sys.stdin.read()
"""


def test_a_driver_that_was_killed_goes_on_where_it_was(server: S3Server, on: Go) -> None:
    create_study(SPEC, on("cluster"), "liver").record.close()
    run = [sys.executable, "-c", RUN, server.address]
    with subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        driver.stdout.readline()
        # nothing of it is sent any more
        server.full = True
        driver.kill()
    server.full = False
    assert rates(open_study(on("laptop"), "liver")) in ([], [1e-3])
    again = open_study(on("cluster"), "liver")
    assert rates(again) == [1e-3]
    with only_driver(again):
        propose(again, 2e-3)
    assert rates(open_study(on("laptop"), "liver")) == [1e-3, 2e-3]


def test_storage_that_is_full_loses_nothing(
    server: S3Server, on: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = create_study(SPEC, on("cluster"), "liver")
    told: list[str] = []

    def run() -> None:
        with only_driver(study, told.append):
            server.full = True
            propose(study)
            wait_until(lambda: bool(told))

    with pytest.raises(StudyError) as error:
        run()
    assert "s3://studies/lab cannot be written" in told[0]
    assert "it is tried again" in told[0]
    assert f"all of the study is in {study.folder} on this machine" in str(error.value)
    server.full = False
    again = open_study(on("cluster"), "liver")
    # the one before could not even let go of its lease
    monkeypatch.setattr("tuner.study.remote.lease.SILENT_SECONDS", 1.0)
    with only_driver(again):
        pass
    assert rates(open_study(on("laptop"), "liver")) == [1e-3]


def test_storage_that_does_not_answer_for_a_while_is_told_and_waited_for(
    server: S3Server, on: Go
) -> None:
    study = create_study(SPEC, on("cluster"), "liver")
    told: list[str] = []
    with only_driver(study, told.append):
        server.silent = True
        propose(study)
        wait_until(lambda: len(told) == 1)
        server.silent = False
        wait_until(lambda: len(told) == 2)
    assert told[1] == "the storage has all files of the study again"
    assert rates(open_study(on("laptop"), "liver")) == [1e-3]
    server.silent = True
    with pytest.raises(StudyError, match="s3://studies/lab cannot be read"):
        open_study(on("laptop"), "liver")


def test_a_folder_of_this_machine_is_not_at_an_address(tmp_path: Path) -> None:
    (tmp_path / "remote.json").write_text('{"address": "s3://studies/lab"}')
    assert remote_place(tmp_path / "studies" / "liver") is None
    assert local_studies_dir(tmp_path / "studies") == tmp_path / "studies"


def test_a_start_that_comes_to_nothing_leaves_nothing(server: S3Server, on: Go) -> None:
    study = create_study(SPEC, on("cluster"), "liver")
    assert study.before is not None
    with only_driver(study):
        study.record.close()
        study.before.restore()
    assert Store(server.address).listing() == {}
    assert study_folders(on("laptop")) == []


def test_a_study_that_is_not_there_is_asked_for_by_its_address(server: S3Server, on: Go) -> None:
    with pytest.raises(StudyError, match="no study 'lung' in s3://studies/lab"):
        open_study(on("laptop"), "lung")
    assert not (on("laptop") / "lung").exists()


def test_a_trial_goes_on_at_another_node(server: S3Server, on: Go) -> None:
    trial = on("first") / "liver" / "trials" / "0003"
    trial.mkdir(parents=True)
    with trained_here(trial, nothing, nothing):
        (trial / "last.ckpt").write_bytes(b"epoch 1")
        (trial / "best.ckpt").write_bytes(b"epoch 1")
        (trial / "metrics.csv").write_text("epoch\n1\n")
        wait_until(lambda: bool(Store(server.address).find("liver/trials/0003/best.ckpt")))
        (trial / "last.ckpt").write_bytes(b"epoch 2")
    other = on("second") / "liver" / "trials" / "0003"
    other.mkdir(parents=True)
    # they would fill the disk of every node that a trial was on
    assert [path.name for path in trial.iterdir()] == ["metrics.csv"]
    with trained_here(other, nothing, nothing):
        assert (other / "last.ckpt").read_bytes() == b"epoch 2"
        assert (other / "metrics.csv").read_text() == "epoch\n1\n"
        (other / "last.ckpt").write_bytes(b"epoch 3")
        (other / "best.ckpt").unlink()
    found = checkpoint_files(on("third") / "liver", 3, ["*.ckpt"])
    assert [(file.path.name, file.size) for file in found] == [("best.ckpt", 7), ("last.ckpt", 7)]
    fetch_from_trial(on("third") / "liver" / "trials" / "0003", "last.ckpt")
    fetched = on("third") / "liver" / "trials" / "0003"
    assert [path.name for path in fetched.iterdir()] == ["last.ckpt"]
    assert remove_checkpoints(on("third") / "liver", 3, ["last.ckpt"]) == 7
    fetch_checkpoints(on("fourth") / "liver")
    folder = on("fourth") / "liver" / "trials" / "0003"
    assert {path.name for path in folder.iterdir()} == {"best.ckpt", "metrics.csv"}


def test_a_trial_that_another_node_takes_makes_way_and_sends_nothing_more(
    server: S3Server, on: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [on(name) / "liver" / "trials" / "0003" for name in ("first", "second")]
    for folder in folders:
        folder.mkdir(parents=True)
    told: list[str] = []
    with trained_here(folders[0], nothing, lambda: told.append("make way")):
        (folders[0] / "last.ckpt").write_bytes(b"epoch 1")
        wait_until(lambda: bool(Store(server.address).find("liver/trials/0003/last.ckpt")))
        monkeypatch.setattr("tuner.study.remote.lease.SILENT_SECONDS", 1.0)
        with trained_here(folders[1], nothing, nothing):
            wait_until(lambda: told == ["make way"])
            (folders[0] / "last.ckpt").write_bytes(b"epoch 1 and 2")
            (folders[1] / "last.ckpt").write_bytes(b"epoch 2")
    assert Store(server.address).read("liver/trials/0003/last.ckpt") == b"epoch 2"


def test_what_a_trial_cannot_send_is_an_error_of_storage(server: S3Server, on: Go) -> None:
    trial = on("node") / "liver" / "trials" / "0000"
    trial.mkdir(parents=True)

    def train() -> None:
        with trained_here(trial, nothing, nothing):
            server.full = True
            (trial / "last.ckpt").write_bytes(b"epoch 1")

    with pytest.raises(OSError, match="cannot be written"):
        train()
    # it is kept for the next try
    assert (trial / "last.ckpt").is_file()
