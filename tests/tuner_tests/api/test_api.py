"""The Python API: what it exports, what it loads, and what a study tells."""

from __future__ import annotations

import doctest
import importlib
import inspect
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

import tuner
from training.config import ModelTrainingConfig
from tuner.cli.main import main
from tuner.report.files import write_results
from tuner.spec.load import parse_spec
from tuner.study import study as ground_floor
from tuner.study.create import create_study
from tuner.study.files import METRICS_FILE, trial_folder
from tuner.study.trial_entry import TrialState

ROOT = Path(__file__).parents[3]

SPACE = """
metric: [val_dice, val_accuracy]
config: {max_epochs: 3}
space: {learning_rate: {loguniform: [1e-5, 1e-1]}}
search: {num_trials: 3}
policy: none
"""

HISTORIES = [[0.5], [0.6, 0.8, 0.7], [math.nan]]


def fill(study: ground_floor.Study, histories: list[list[float]]) -> None:
    """Trials with these scores by epoch, as if they had been trained."""
    for rate, scores in enumerate(histories, start=1):
        values = {"learning_rate": rate / 100}
        number = study.record.propose(values, "test").number
        folder = trial_folder(study.folder, number)
        folder.mkdir(parents=True)
        rows = ["epoch,seconds,val_dice,train_loss"]
        for epoch, score in enumerate(scores, start=1):
            metrics = {"val_dice": score, "val_accuracy": 1 - score}
            study.record.report(number, epoch, score, metrics, 2.0)
            rows.append(f"{epoch},2.0,{score},{'' if epoch == 2 else 0.25}")
        (folder / METRICS_FILE).write_text("\n".join(rows))
        study.record.finish(number, TrialState.COMPLETED, f"trained {len(scores)} epochs")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the study `liver`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "liver.yaml").write_text(SPACE)
    study = create_study(parse_spec(SPACE, source="liver.yaml"), Path("studies"), "liver")
    fill(study, HISTORIES)
    write_results(study)
    study.record.close()
    return study.folder


def test_exported_members() -> None:
    """Exactly what is meant is public, and every name leads somewhere."""
    assert tuner.__all__ == sorted(tuner.__all__, key=lambda name: (not name[0].isupper(), name))
    assert set(tuner._MODULES) | {"__version__"} == set(tuner.__all__)
    for name in tuner.__all__:
        assert getattr(tuner, name) is not None
        assert name in dir(tuner)
    for name in tuner.__all__:
        found = getattr(tuner, name)
        if inspect.isclass(found) or inspect.isfunction(found):
            assert found.__name__ == name
            assert found.__doc__
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        tuner.runn  # noqa: B018


PROGRAM = """
import sys
import tuner
{use}
print(sorted({{"torch", "ray", "optuna", "pandas"}} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("use", "loaded"),
    [
        ("", []),
        ("tuner.SpecError, tuner.Study, tuner.Trial, tuner.StudySpec, tuner.__version__", []),
        ("tuner.run, tuner.resume, tuner.open_study, tuner.list_studies", []),
        ("tuner.load_spec(tuner.load_spec.__globals__['Path'](sys.argv[1]))", []),
    ],
)
def test_importing_loads_nothing_heavy(use: str, loaded: list[str], folder: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(use=use), "liver.yaml"],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == f"{loaded}\n"


def test_a_study_tells_its_trials(folder: Path) -> None:
    study = tuner.open_study("liver")
    assert (study.name, study.folder) == ("liver", folder)
    assert study.finished
    assert not study.running
    assert study.cut_off is None
    assert [trial.number for trial in study.trials] == [0, 1, 2]
    best = study.best
    assert best is not None
    assert (best.number, best.score, best.epoch, best.epochs) == (1, 0.8, 2, 3)
    assert best.state is tuner.TrialState.COMPLETED
    assert best.reason == "trained 3 epochs"
    assert best.params == {"learning_rate": 0.02}
    assert best.metrics == {"val_dice": 0.8, "val_accuracy": pytest.approx(0.2)}
    assert best.seconds == 6
    assert best.folder == folder / "trials" / "0001"
    assert best.checkpoint is None
    assert best.lineage == []
    assert best.config.learning_rate == 0.02
    assert best.config.max_epochs == 3
    undefined = study.trials[2]
    assert (undefined.score, undefined.epoch, undefined.epochs) == (None, None, 1)
    assert [trial.number for trial in study.pareto_front()] == [1, 0]


def test_the_history_is_the_trial_s_metrics_by_epoch(folder: Path) -> None:
    trial = tuner.open_study("liver").trials[1]
    assert trial.history == [
        {"epoch": 1, "seconds": 2.0, "val_dice": 0.6, "train_loss": 0.25},
        {"epoch": 2, "seconds": 2.0, "val_dice": 0.8},
        {"epoch": 3, "seconds": 2.0, "val_dice": 0.7, "train_loss": 0.25},
    ]
    assert all(isinstance(row["epoch"], int) for row in trial.history)
    (trial.folder / METRICS_FILE).unlink()
    # the record has the scores
    assert [row["val_dice"] for row in trial.history] == [0.6, 0.8, 0.7]


def test_the_config_of_a_trial_is_the_one_that_its_best_epoch_was_trained_with(
    folder: Path,
) -> None:
    trial = tuner.open_study("liver").trials[1]
    for name, rate in (("config.until-00002.yaml", 0.3), ("config.yaml", 0.4)):
        config = ModelTrainingConfig(learning_rate=rate, num_classes=5)
        (trial.folder / name).write_text(json.dumps(config.flat()))
    assert (trial.config.learning_rate, trial.config.num_classes) == (0.3, 5)


def test_the_data_frame_is_results_csv(folder: Path) -> None:
    frame = tuner.open_study("liver").to_dataframe()
    written = pd.read_csv(folder / "results.csv")
    assert list(frame.columns) == list(written.columns)
    # the third trial has no score
    assert frame["value"].dtype == frame["best_epoch"].dtype == "float64"
    read = frame.astype(written.dtypes.to_dict())
    pd.testing.assert_frame_equal(read, written)
    assert {"trial", "state", "value", "params_learning_rate", "metrics_val_dice"} <= {*frame}


def test_without_pandas_a_data_frame_is_a_clear_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install pandas.*results\.csv"):
        tuner.open_study("liver").to_dataframe()


def test_studies_are_listed_whatever_is_wrong_with_one(folder: Path) -> None:
    broken = folder.parent / "broken"
    broken.mkdir()
    (broken / "spec.resolved.yaml").write_text("space: [")
    with pytest.warns(UserWarning, match="broken cannot be read"):
        (study,) = tuner.list_studies()
    assert repr(study) == "<Study 'liver': 3 trials, best val_dice 0.8000 (trial 1, epoch 2)>"
    sentences: list[str] = []
    assert len(tuner.list_studies(on_unreadable=sentences.append)) == 1
    assert len(sentences) == 1


def test_a_finished_study_is_not_run_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tuner.run("liver.yaml", "liver")
    assert study.finished
    assert capsys.readouterr().out == "the study liver has finished already\n"
    tuner.resume("liver", progress=False)
    assert capsys.readouterr().out == ""
    with pytest.raises(tuner.SpecError, match="num_trials=0"):
        study.resume(num_trials=0)
    with pytest.raises(tuner.StudyError, match="must start with a letter"):
        tuner.run("liver.yaml", "../liver")
    with pytest.raises(tuner.StudyError, match="no study 'lung' in studies"):
        tuner.resume("lung")


@pytest.mark.parametrize("command", ["status", "list"])
def test_the_json_of_a_command_is_one_document_with_its_keys(
    folder: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, *(["liver"] if command == "status" else []), "--json"]) == 0

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    document = json.loads(capsys.readouterr().out, parse_constant=refuse)
    if command == "list":
        assert set(document) == {"studies", "unreadable"}
        (document,) = document["studies"]
        assert document == tuner.open_study("liver").to_dict(trials=False)
        assert "trials" not in document
    else:
        assert document == tuner.open_study("liver").to_dict()
        assert [trial["score"] for trial in document["trials"]] == [0.5, 0.8, None]
        assert document["trials"][2]["metrics"] == {}
        assert document["best"] == document["trials"][1]
    documented = importlib.import_module("tuner.report.documents").__doc__
    for key in (*document, *document["best"]):
        assert f"`{key}`" in documented
    assert (document["metric"], document["num_trials"]) == ("val_dice", 3)
    assert document["states"] == {"completed": 3}


def test_status_is_sorted_and_cut(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "liver", "--sort", "score", "--top", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [trial["number"] for trial in document["trials"]] == [1, 0]
    assert main(["status", "liver", "--sort", "score", "--top", "2"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [words[0] for words in lines if "completed" in words and words[0].isdigit()] == [
        "1",
        "0",
    ]
    assert main(["status", "liver", "--sort", "dice"]) == 2
    assert "choose from number, state, score" in capsys.readouterr().err
    assert main(["list", "--sort", "dice"]) == 2
    assert "choose from name, trials, epochs, score" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["status", "liver", "--top", "0"])
    assert "'0' is not a whole number above 0" in capsys.readouterr().err


def documented_modules() -> list[ModuleType]:
    files = (ROOT / "tuner").rglob("*.py")
    paths = [file.relative_to(ROOT) for file in files if ">>>" in file.read_text()]
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return [importlib.import_module(name) for name in sorted(names)]


@pytest.mark.parametrize("module", documented_modules(), ids=lambda module: module.__name__)
def test_examples_in_docstrings_work(module: ModuleType, folder: Path) -> None:
    failures, tried = doctest.testmod(module, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert tried
    assert failures == 0


@pytest.mark.parametrize(
    "public", [tuner.Study, tuner.Trial, *map(tuner.__getattr__, ("run", "resume"))]
)
def test_what_is_public_has_an_example(public: object) -> None:
    assert ">>> " in str(inspect.getdoc(public))
