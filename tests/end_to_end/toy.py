"""`tune` with trials that do not train: a known curve, checkpoints as always, faults on demand.

All else is the real thing: driver, record, Ray Tune, workers, locks. As a script it is the
command `tune`. Faults are read from `NAME.faults.json` beside the study folder NAME (a folder
with foreign files would be refused): for the trial's number, the `epoch` (and the `fold`) before
which they happen, `what`, and how many `times`. `NAME.pace.txt` has the seconds of an epoch,
read anew before each, `NAME.claim.txt` those that it is said to have taken; `NAME.memory.json` the
memory that trials, GPUs and nodes are said to hold, as the fields of `MemoryUse` in bytes.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import tuner.driver.tune_run
from training.durable_write import write_durably
from tuner.cli.main import main
from tuner.study.files import METRICS_FILE
from tuner.trial.memory import GpuUse, MemoryUse
from tuner.trial.messages import TrialRequest
from tuner.trial.run import TrialRun
from tuner.trial.trainable import TrialTrainable, placement

FAULTS = "faults.json"
TRAINED = "trained.log"
PACE = "pace.txt"
CLAIM = "claim.txt"
MEMORY = "memory.json"


def beside(study: Path, name: str) -> Path:
    """The file of a study's settings for toy trials."""
    return study.with_name(f"{study.name}.{name}")


class ToyRun(TrialRun):
    """Writes what an epoch would; notes in `trained.log` when it began and was saved, and where."""

    def _train_in(self, folder: Path, fold: int) -> str:
        request = self._request
        config = self._study.trial_config(self._spec, request.number, request.values, fold)
        folder.mkdir(exist_ok=True)
        self._write_settings(folder, config)
        pace = beside(self._study.folder, PACE)
        claim = beside(self._study.folder, CLAIM)
        last = folder / "last.ckpt"
        history = json.loads(last.read_text()) if last.is_file() else []
        before = fold * config.max_epochs
        for row in history:
            self.report_epoch({**row, "epoch": before + row["epoch"]})
        for epoch in range(len(history) + 1, config.max_epochs + 1):
            self._log(folder, "began", epoch)
            self._fault(folder, epoch, config, fold)
            seconds = float(pace.read_text() or 0) if pace.is_file() else 0.0
            time.sleep(seconds)
            claimed = float(claim.read_text()) if claim.is_file() else seconds
            row = {"epoch": epoch, "seconds": claimed, "val_dice": score(config, epoch, fold)}
            history.append(row)
            write_durably(last, json.dumps(history))
            write_durably(folder / "best.ckpt", json.dumps(history))
            write_durably(folder / METRICS_FILE, "\n".join(str(row["epoch"]) for row in history))
            self._log(folder, "saved", epoch)
            self.report_epoch({**row, "epoch": before + epoch})
        return f"trained {config.max_epochs} epochs"

    def _log(self, folder: Path, what: str, epoch: int) -> None:
        with (folder / TRAINED).open("a") as file:
            file.write(f"{what} {epoch} {socket.gethostname()}:{os.getpid()}\n")

    def _fault(self, folder: Path, epoch: int, config: Any, fold: int) -> None:
        path = beside(self._study.folder, FAULTS)
        plan = json.loads(path.read_text()) if path.is_file() else {}
        fault = plan.get(str(self._number))
        if fault is None or (fault.get("fold", 0), fault["epoch"]) != (fold, epoch):
            return
        happened = folder / "happened"
        times = len(happened.read_text()) if happened.is_file() else 0
        if times < fault["times"]:
            happened.write_text("x" * (times + 1))
            if fault["what"] == "the user's files":
                put_files(self._study.folder)
            else:
                happen(fault["what"], config)


def put_files(study: Path) -> list[Path]:
    """Put files of a user into every folder of a study, under names that look like its own."""
    names = (
        *("notes.txt", "spec.yaml.mine", "optuna.db.backup", "export/mine.txt", "mine/best.ckpt"),
        *("trials/notes.txt", "trials/mine/epoch-00001.ckpt", "trials/mine/best.ckpt"),
        *("trials/0000/best.ckpt.mine", "trials/0000/last.ckpt.bak", "trials/0000/notes.txt"),
        *("trials/0001/best.ckpt.mine", "trials/0001/epoch-mine.ckpt", "trials/0002/note.txt"),
        *("trials/0000/config.until-mine.yaml", "ray/mine.txt", "ray/mine/experiment_state.json"),
    )
    files = [study / name for name in names]
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"mine: {path.name}")
    return files


def happen(what: str, config: Any) -> None:
    """Let a fault happen."""
    match what:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "exception":
            raise RuntimeError("a fault of this machine")
        case "hang":
            time.sleep(3600)
        case "disk full":
            with Path("/dev/full").open("w") as file:
                file.write("no room")
        case "out of memory":
            if config.train_batch_size > 1:
                raise MemoryError(f"a batch of {config.train_batch_size} is too large")


def score(config: Any, epoch: int, fold: int) -> float:
    """A curve that rises with the epochs, best at a learning rate of 1e-2; later folds are hard."""
    distance = abs(math.log10(config.learning_rate) + 2)
    return float(1 - 0.2 * distance - 0.5 / (epoch + distance) - 0.1 * fold)


class ToyTrainable(TrialTrainable):
    """Ray's view of a toy trial."""

    def _begin(self, config: dict[str, Any]) -> ToyRun:
        request = TrialRequest.from_ray(config)
        memory = self._memory.report
        path = beside(self._study.folder, MEMORY)
        if path.is_file():
            claims = json.loads(path.read_text())
            gpu = GpuUse(**claims.pop("gpu")) if "gpu" in claims else None
            claimed = MemoryUse(placement()["node_id"], **claims, gpu=gpu)
            memory = self._memory.report = lambda: claimed  # type: ignore[method-assign]
        return ToyRun(self._study, self._spec, request, placement(), memory=memory)


def repeated(log: Path) -> list[int]:
    """Epochs that began although a checkpoint of them was there."""
    saved, again = 0, []
    for line in log.read_text().splitlines():
        what, epoch, _ = line.split()
        if what == "saved":
            saved = max(saved, int(epoch))
        elif int(epoch) <= saved:
            again.append(int(epoch))
    return again


if __name__ == "__main__":
    tuner.driver.tune_run.TrialTrainable = ToyTrainable  # type: ignore[misc]
    sys.exit(main(sys.argv[1:]))
