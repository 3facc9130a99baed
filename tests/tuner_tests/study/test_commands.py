"""Commands that are shown to people do what they say when they are typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tuner.cli.main import build_parser, main
from tuner.errors import StudyError
from tuner.report.summary import next_commands
from tuner.spec.load import parse_spec
from tuner.spec.study_spec import StudySpec
from tuner.study.commands import study_command
from tuner.study.create import create_study
from tuner.study.folder import driver_lock
from tuner.study.record import StudyRecord
from tuner.study.storage import TransactionalStorage
from tuner.study.study import Study
from tuner.study.trial_entry import TrialState
from tuner.trial.failures import halted_message

SPACE = """
space: {learning_rate: {uniform: [0.1, 1]}}
search: {num_trials: 3}
confirm: {top: 1, seeds: 2}
"""


@pytest.fixture
def spec() -> StudySpec:
    return parse_spec(SPACE, source="s.yaml")


@pytest.fixture
def study(tmp_path: Path, spec: StudySpec) -> Study:
    """A study away from the usual folder, with a trial that is left."""
    study = create_study(spec, tmp_path / "my studies", "s")
    study.record.propose({"learning_rate": 0.2}, "test")
    return study


def commands_in(text: str) -> list[list[str]]:
    """Words of every `tune ...` in backquotes."""
    return [shlex.split(command) for command in re.findall(r"`(tune [^`]*)`", text)]


def propose_many(record: StudyRecord, number: int) -> None:
    for _ in range(number):
        record.propose({"learning_rate": 0.3}, "test")


def assert_names(words: list[str], study: Study) -> None:
    options = build_parser().parse_args(words[1:])
    assert options.studies_dir.absolute() / options.name == study.folder


def test_the_usual_folder_need_not_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert study_command("resume", tmp_path / "studies" / "s") == "tune resume s"
    assert study_command("status", tmp_path / "studies" / "a b") == "tune status 'a b'"
    elsewhere = study_command("export", tmp_path / "my runs" / "s")
    assert elsewhere == f"tune export s --studies-dir '{tmp_path}/my runs'"


def test_what_to_type_next_finds_the_study(study: Study, spec: StudySpec) -> None:
    study.record.report(0, 1, 0.5, {}, 1.0)
    study.record.finish(0, TrialState.COMPLETED, "")
    resume, export, tensorboard = map(shlex.split, next_commands(study))
    for words in (resume, export):
        assert_names(words, study)
    assert tensorboard[-1] == str(study.folder / "trials")


def test_a_study_whose_trials_all_ended_without_a_model_is_followed_by_one_beside_it(
    study: Study, spec: StudySpec
) -> None:
    propose_many(study.record, 2)
    for number in range(3):
        study.record.finish(number, TrialState.DIVERGED, "the training loss is nan")
    shown = "\n".join(next_commands(study))
    options = build_parser().parse_args(commands_in(shown)[0][1:])
    assert (options.name, options.studies_dir) == ("s-2", study.folder.parent)


def test_looks_at_a_study_that_was_cut_off_name_its_folder(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    study.record.close()
    where = ["--studies-dir", str(study.folder.parent)]
    for words in (["status", "s"], ["list"]):
        assert main([*words, *where]) == 0
        assert_names(commands_in(capsys.readouterr().out.replace("\n", " "))[-1], study)


def test_a_study_whose_budget_is_spent_is_not_called_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = SPACE.replace("num_trials: 3", "num_trials: 3, epoch_budget: 1").replace(
        "confirm: {top: 1, seeds: 2}", ""
    )
    study = create_study(parse_spec(space, source="s.yaml"), tmp_path, "s")
    study.record.propose({"learning_rate": 0.2}, "test")
    study.record.report(0, 1, 0.5, {}, 1.0)
    study.record.interrupt(0, "the budget of 1 epochs is spent")
    study.record.close()
    assert main(["resume", "s", "--studies-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "the study s does not go on: the budget of 1 epochs is spent" in shown
    assert "finished" not in shown
    assert f"tune resume s --studies-dir {tmp_path} --epoch-budget N" in shown


def test_refusals_name_the_folder(study: Study, tmp_path: Path) -> None:
    with (
        driver_lock(study.folder),
        pytest.raises(StudyError, match="another process runs the study") as refused,
        driver_lock(study.folder),
    ):
        pass
    assert_names(commands_in(str(refused.value))[0], study)
    assert_names(commands_in(halted_message("raylet ended", study.folder))[0], study)


def test_a_confirmation_that_is_cut_off_is_resumed_by_the_name_of_its_study(
    study: Study, spec: StudySpec
) -> None:
    """Its record lies in a folder `confirm` of its own, which is no study."""
    study.record.close()
    with driver_lock(study.folder):
        pass
    folder = study.folder / "confirm"
    folder.mkdir()
    assert_names(commands_in(halted_message("raylet ended", folder))[0], study)
    record = StudyRecord(folder, spec.space, spec.mode)
    assert isinstance(record._storage, TransactionalStorage)
    record._storage._open_writer().execute("PRAGMA max_page_count = 1")
    with pytest.raises(StudyError, match="make room") as full:
        propose_many(record, 200)
    assert_names(commands_in(str(full.value))[0], study)
