"""`tuner.run` in a script: in any thread, interrupted, resumed, exported."""

from __future__ import annotations

import io
import os
import re
import signal
import threading
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

import tuner
from training.bundle.bundle import Bundle


class Interrupting(io.StringIO):
    """A log that sends SIGINT to this process when a line with `word` is written to it."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self._word = word

    def write(self, text: str) -> int:
        if self._word and self._word in text:
            self._word = ""
            os.kill(os.getpid(), signal.SIGINT)
        return super().write(text)


def handlers() -> tuple[object, object]:
    return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)


def test_ctrl_c_ends_a_study_in_order_and_it_can_be_resumed(
    cluster: str, space_file: Path, toy: ModuleType, tmp_path: Path
) -> None:
    before = handlers()
    log = Interrupting("epoch 1/4")
    with pytest.raises(tuner.StudyInterrupted, match=r"study\.resume\(\)") as end:
        tuner.run(space_file, "cut", studies_dir=tmp_path, progress=Console(file=log))
    assert isinstance(end.value, KeyboardInterrupt)
    study = end.value.study
    assert not study.finished
    assert not study.running
    assert any(trial.state is tuner.TrialState.INTERRUPTED for trial in study.trials)
    # the handlers of the caller are back
    assert handlers() == before
    assert study.resume(progress=False) is study
    assert study.finished
    assert len(study.trials) == 5
    assert all(trial.state.finished for trial in study.trials)


def test_a_study_runs_in_a_thread_of_the_caller_s(
    cluster: str, space_file: Path, toy: ModuleType, tmp_path: Path
) -> None:
    """A notebook's or a server's: signals are left to the main thread."""
    before = handlers()
    done: list[tuner.Study] = []

    def search() -> None:
        spec = tuner.load_spec(space_file, num_trials=2)
        done.append(tuner.run(spec, "thread", studies_dir=tmp_path, progress=False))

    thread = threading.Thread(target=search)
    thread.start()
    thread.join()
    assert handlers() == before
    (study,) = done
    assert study.finished
    assert len(study.trials) == 2
    # more trials, by its name
    again = tuner.resume("thread", studies_dir=tmp_path, num_trials=3, progress=False)
    assert len(again.trials) == 3
    assert again.finished


def test_the_winner_of_a_study_is_exported(
    cluster: str, space_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tuner.load_spec(space_file, num_trials=1, max_epochs=1, policy="none")
    study = tuner.run(spec, "one", studies_dir=tmp_path)
    shown = capsys.readouterr().out
    assert "epoch 1/1  val_dice" in shown
    assert re.search(r"trial   0  \S+ GPU \d  completed: trained 1 epochs", shown)
    best = study.best
    assert best is not None
    assert best.history[0]["val_dice"] == best.score
    assert best.checkpoint is not None
    assert best.config.num_classes == 3
    exported = study.export(tmp_path / "bundle", best)
    assert Bundle.load(exported.folder).config.learning_rate == best.params["learning_rate"]
    with pytest.raises(tuner.ExportError, match="has no trial 7"):
        study.export(tmp_path / "bundle", 7)
    assert study.provenance["data"]["fingerprint"]
