"""What a study's actors and processes are called, and where its trials say they ran."""

from __future__ import annotations

import csv
import io
import socket
import threading
from pathlib import Path
from types import ModuleType
from typing import Self

from ray._private import state
from rich.console import Console

import tuner


class Looking:
    """Looks at the processes of this machine again and again."""

    def __init__(self) -> None:
        self.processes: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        # an epoch takes longer
        while not self._ended.wait(0.05):
            self.processes |= {_name(path) for path in Path("/proc").glob("[0-9]*/cmdline")}


def _name(cmdline: Path) -> str:
    try:
        return cmdline.read_text().rstrip("\0")
    except OSError:
        return ""


def test_actors_processes_and_lines_have_study_trial_and_place(
    cluster: str, space_file: Path, toy: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "liver.v2.pace.txt").write_text("0.3")
    log = io.StringIO()
    with Looking() as looking:
        study = tuner.run(
            space_file, "liver.v2", studies_dir=tmp_path, progress=Console(file=log, width=200)
        )
    ours = {name for name in looking.processes if name.startswith("ray::liver.v2, trial ")}
    assert any(", epoch 1, val_dice 0." in name for name in ours)
    trials = {name.removeprefix("ray::liver.v2, trial ").split(",")[0] for name in ours}
    assert trials <= {str(trial.number) for trial in study.trials}
    assert len(trials) > 1
    # Ray keeps what follows the last dot of a class's name
    actors = [a for a in state.actors().values() if a["ActorClassName"] == "liver_v2"]
    assert actors
    assert len(actors) <= len(study.trials)
    here = socket.gethostname()
    events = [line for line in log.getvalue().splitlines() if "] trial " in line]
    assert events
    assert all(f"{here} GPU " in line for line in events)
    with (study.folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["node"] for row in rows} == {here}
    assert {row["gpu"] for row in rows} <= {"0", "1"}
