"""A study in a bucket: no folder is shared by the driver, the workers and who looks at it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import waiting
from s3_server import S3Server

from training.storage import Store
from tuner.cli.main import main
from tuner.study.confirmation import is_finished
from tuner.study.open import open_study
from tuner.study.remote.place import local_studies_dir
from tuner.study.trial_entry import TrialState

BUCKET = S3Server.address
EPOCHS = 8
SLOWLY = "steps_per_epoch=30"
"""Makes a trial take longer than the second in which a driver looks what it has to send."""


wait_for = partial(waiting.wait_for, seconds=120)


def _epochs(store: Store, copy: Path) -> int:
    """Epochs that the record in the bucket has of the trial that got furthest."""
    stored = store.find("liver/optuna.db")
    if stored is None:
        return 0
    store.bring("liver/optuna.db", stored, copy)
    with closing(sqlite3.connect(copy)) as record:
        return record.execute("SELECT MAX(step) FROM trial_intermediate_values").fetchone()[0] or 0


def test_a_study_whose_machine_is_lost_goes_on_from_the_bucket(
    cluster: str,
    bucket: S3Server,
    space_file: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    where = ["--studies-dir", BUCKET]
    options = ["--num-trials", "2", "--max-epochs", str(EPOCHS)]
    options += ["--set", "policy=none", "--set", SLOWLY]
    command = [sys.executable, "-m", "tuner", "run", str(space_file), "--name", "liver"]
    driver = subprocess.Popen(
        [*command, *where, *options, "--address", cluster],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "SEGTUNE_CACHE": str(tmp_path / "driver"), "COLUMNS": "200"},
    )
    store = Store(BUCKET)
    # the driver sends the record, and each trial its checkpoint, whenever they look
    copy = tmp_path_factory.mktemp("seen") / "optuna.db"
    wait_for(lambda: _epochs(store, copy), driver)
    wait_for(lambda: store.find("liver/trials/0000/last.ckpt") is not None, driver)
    driver.send_signal(signal.SIGKILL)
    driver.communicate(timeout=60)
    # another machine, with nothing but the address
    monkeypatch.setenv("SEGTUNE_CACHE", str(tmp_path / "laptop"))
    assert main(["resume", "liver", *where, "--address", cluster]) == 0
    study = open_study(local_studies_dir(BUCKET), "liver")
    assert is_finished(study)
    for entry in study.record.entries.values():
        assert entry.state is TrialState.COMPLETED
        assert list(entry.scores) == list(range(1, EPOCHS + 1))
    resumed = [d for d in study.record.decisions if d.action == "resumed"]
    assert any(decision.epoch for decision in resumed), study.record.decisions
    # and a third one takes the model away
    monkeypatch.setenv("SEGTUNE_CACHE", str(tmp_path / "third"))
    capsys.readouterr()
    assert main(["list", *where]) == 0
    assert "liver" in capsys.readouterr().out
    assert main(["status", "liver", *where]) == 0
    assert f"--studies-dir {BUCKET}" in capsys.readouterr().out
    assert main(["export", "liver", *where, "-o", str(tmp_path / "bundle")]) == 0
    assert (tmp_path / "bundle" / "bundle.json").is_file()
    # nothing is called like the address, and no worker keeps what the bucket has
    here = {path.name for path in tmp_path.iterdir()}
    assert here == {"driver", "laptop", "third", "bundle"}
    kept = Path(os.environ["SEGTUNE_CACHE"]).parent.rglob("*.ckpt")
    assert all("third" in path.parts for path in kept)
