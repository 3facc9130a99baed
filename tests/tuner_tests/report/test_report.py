"""What people see of a study, in the terminal and in `report.html`."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from trial_messages import epoch_result, ray_trial, start_result

from tuner.driver.callbacks import ViewCallback
from tuner.driver.scheduler import RecordScheduler
from tuner.errors import ExportError
from tuner.report.documents import trial_document
from tuner.report.files import write_results
from tuner.report.live import StudyView
from tuner.report.results_table import results_table
from tuner.report.spec import print_spec
from tuner.report.summary import print_summary
from tuner.report.tables import studies_table
from tuner.search.policies import Policy
from tuner.spec.load import parse_spec
from tuner.spec.settings import TrialResources
from tuner.spec.study_spec import StudySpec
from tuner.study.confirmation import is_finished
from tuner.study.record import StudyRecord
from tuner.study.study import Study
from tuner.study.trial_entry import Placement, TrialState

SPACE = """
config: {max_epochs: 5}
space: {learning_rate: {loguniform: [1e-5, 1e-1]}}
search: {num_trials: 3}
policy: none
"""


@pytest.fixture
def spec() -> StudySpec:
    return parse_spec(SPACE, source="s.yaml")


@pytest.fixture
def record(tmp_path: Path, spec: StudySpec) -> StudyRecord:
    return StudyRecord(tmp_path, spec.space, spec.mode)


def add(record: StudyRecord, *scores: float) -> int:
    number = record.propose({"learning_rate": 0.01 * (1 + len(record.entries))}, "test").number
    for epoch, score in enumerate(scores, start=1):
        record.report(number, epoch, score, {"val_dice": score}, 1.0)
    return number


def summary(record: StudyRecord, spec: StudySpec) -> str:
    out = io.StringIO()
    console = Console(file=out, width=200)
    study = Study(record.folder, spec, record)
    print_summary(console, study)
    console.print(studies_table([study]))
    write_results(study)
    return out.getvalue()


def test_a_running_trial_may_be_the_best_everywhere(record: StudyRecord, spec: StudySpec) -> None:
    record.finish(add(record, 0.5), TrialState.COMPLETED, "trained 1 epochs")
    add(record, 0.6, 0.8, 0.7)
    shown = summary(record, spec)
    assert shown.count("val_dice 0.8000 (trial 1, epoch 2, still running)") == 2
    assert "learning_rate: 0.02" in shown
    page = (record.folder / "report.html").read_text()
    assert "0.8000" in page
    assert "1 (still running)" in page
    record.finish(1, TrialState.COMPLETED, "trained 3 epochs")
    assert "val_dice 0.8000 (trial 1, epoch 2)" in summary(record, spec)


def told(record: StudyRecord, spec: StudySpec, results: list[dict[str, Any]]) -> list[str]:
    """Lines of a view that sees a trial start and report, after the scheduler has."""
    out = io.StringIO()
    console = Console(file=out, width=200)
    resources = TrialResources(1, 0, 1)
    scheduler = RecordScheduler(record, Policy(record))
    trial = ray_trial(0)
    with StudyView(Study(record.folder, spec, record), resources, None, console) as shown:
        view = ViewCallback(shown, spec.metric)
        for result in [start_result("node-a"), *results]:
            scheduler.on_trial_result(None, trial, result)  # type: ignore[arg-type]
            view.on_trial_result(0, [], trial, result)
    return [line.split("trial   0  ")[1] for line in out.getvalue().splitlines() if "0  " in line]


def test_epochs_that_a_checkpoint_brings_along_are_not_told_again(
    record: StudyRecord, spec: StudySpec
) -> None:
    add(record)
    lines = told(record, spec, [epoch_result(1, 0.1), epoch_result(2, 0.2)])
    assert [line.split("  ")[0] for line in lines] == ["started", "epoch 1/5", "epoch 2/5"]
    record.interrupt(0, "the time budget ended")
    record.running(0)
    # it first reports what its checkpoint holds; of its last epoch the record may not know yet
    lines = told(record, spec, [epoch_result(epoch, epoch / 10) for epoch in (1, 2, 3, 4)])
    assert [line.split("  ")[0] for line in lines] == [
        "goes on after 2",
        "epoch 3/5",
        "epoch 4/5",
    ]


PLACES = [
    ([Placement("node-a"), Placement("node-a")], False),
    ([Placement("node-a"), Placement("node-b")], True),
    ([Placement("node-a", ("0",)), Placement("node-a", ("1",))], True),
]


@pytest.mark.parametrize(("places", "shown_at_all"), PLACES)
def test_where_trials_ran_is_shown_where_there_is_a_choice(
    record: StudyRecord, spec: StudySpec, places: list[Placement], shown_at_all: bool
) -> None:
    for place in places:
        record.place(add(record, 0.5), place)
    shown = summary(record, spec)
    columns, rows = results_table(Study(record.folder, spec, record))
    page = (record.folder / "report.html").read_text()
    assert ("node" in columns) is ("gpu" in columns) is shown_at_all
    assert (places[1].node in shown) is (places[1].node in page) is shown_at_all
    if shown_at_all:
        assert [row["node"] for row in rows] == [place.node for place in places]
        assert [row["gpu"] for row in rows] == [",".join(place.gpus) for place in places]
    # another reader of the record finds them, and programs get them always
    read_again = StudyRecord(record.folder, spec.space, spec.mode)
    documents = [trial_document(entry, "max") for entry in read_again.entries.values()]
    assert [(document["node"], document["gpus"]) for document in documents] == [
        (place.node, list(place.gpus)) for place in places
    ]
    read_again.close()


def test_a_trial_that_did_not_run_has_no_place(record: StudyRecord, spec: StudySpec) -> None:
    record.place(add(record), Placement("node-a", ("0",)))
    document = trial_document(record.entries[add(record)], "max")
    assert document["node"] is document["gpus"] is None
    assert summary(record, spec).count("node-a") == 1


def test_each_line_of_a_log_has_node_and_gpu(record: StudyRecord, spec: StudySpec) -> None:
    add(record)
    out = io.StringIO()
    study = Study(record.folder, spec, record)
    scheduler = RecordScheduler(record, Policy(record))
    trial = ray_trial(0)
    with StudyView(study, TrialResources(1, 1, 1), None, Console(file=out, width=200)) as shown:
        view = ViewCallback(shown, spec.metric)
        for result in (start_result("node-b", "1"), epoch_result(1, 0.5)):
            scheduler.on_trial_result(None, trial, result)  # type: ignore[arg-type]
            view.on_trial_result(0, [], trial, result)
        record.finish(0, TrialState.COMPLETED, "done")
        view.on_trial_complete(0, [], trial)
    lines = [line.partition("] ")[2] for line in out.getvalue().splitlines() if "] " in line]
    assert [" ".join(line.split()) for line in lines] == [
        "trial 0 node-b GPU 1 started",
        "trial 0 node-b GPU 1 epoch 1/5 val_dice 0.5000",
        "trial 0 node-b GPU 1 completed: done",
    ]


class Forecasts:
    """What is told after each epoch: how many trainings fit, or how the study ends."""

    def __init__(self, *endings: str) -> None:
        self.endings = list(endings)

    def capacity(self) -> str:
        return "about 2.0 trainings of 5 epochs fit into it"

    def ending(self) -> str:
        return self.endings.pop(0)


def test_the_end_of_a_time_budget_is_told_once(record: StudyRecord, spec: StudySpec) -> None:
    out = io.StringIO()
    add(record)
    study = Study(record.folder, spec, record)
    forecast = Forecasts("", "no new ones", "no new ones")
    console = Console(file=out, width=200)
    with StudyView(study, TrialResources(1, 0, 1), None, console, forecast) as view:
        view.trial_started(0)
        for epoch in (1, 2, 3):
            view.epoch_ended(0, epoch, "val_dice 0.5")
        record.shorten(0, 4, "the time ends")
        view.epoch_ended(0, 4, "val_dice 0.6")
    lines = [line.partition("] ")[2] for line in out.getvalue().splitlines() if "] " in line]
    assert [" ".join(line.split()) for line in lines] == [
        "trial 0 started",
        "trial 0 epoch 1/5 val_dice 0.5",
        "time budget: about 2.0 trainings of 5 epochs fit into it",
        "trial 0 epoch 2/5 val_dice 0.5",
        "trial 0 epoch 3/5 val_dice 0.5",
        "time budget: no new ones",
        "trial 0 epoch 4/4 val_dice 0.6",
    ]


class FullNodes:
    """Nodes whose memory holds fewer trials than they have cores for."""

    def summary(self) -> str:
        return ""

    def short_of_memory(self) -> list[str]:
        return ["3 at once instead of 4: a trial needs up to 5.1 GiB"]


@pytest.mark.parametrize("terminal", [True, False])
def test_memory_that_holds_fewer_trials_is_told_once_and_shown(
    record: StudyRecord, spec: StudySpec, terminal: bool
) -> None:
    out = io.StringIO()
    study = Study(record.folder, spec, record)
    console = Console(file=out, width=200, force_terminal=terminal)
    resources = TrialResources(1, 0, 4)
    with StudyView(study, resources, None, console, cluster=FullNodes()) as view:
        for _ in range(3):
            number = add(record, 0.5)
            record.finish(number, TrialState.COMPLETED, "done")
            view.trial_ended(number)
    # rich colours numbers
    lines = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", out.getvalue()).replace("\r", "\n").splitlines()
    told = [line for line in lines if "memory: 3 at once instead of 4" in line]
    assert len(told) == 1
    assert told[0].endswith("a trial needs up to 5.1 GiB")
    if terminal:
        # at the end all trials of the study have begun: nothing waits for memory
        assert "memory" not in "\n".join(lines).rpartition("best ")[2]


ENDINGS = [
    (TrialState.DIVERGED, "the training loss is nan", "lower the range of learning_rate"),
    (TrialState.OUT_OF_MEMORY, "can't allocate", "patch_size or train_batch_size smaller"),
    (TrialState.INFEASIBLE, "above max_parameters", "raise the limits in `constraints`"),
    (TrialState.FAILED, "RuntimeError: no", "see error.txt"),
]


@pytest.mark.parametrize(("state", "reason", "advice"), ENDINGS)
def test_a_study_without_a_model_does_not_send_people_in_a_circle(
    record: StudyRecord, spec: StudySpec, state: TrialState, reason: str, advice: str
) -> None:
    """Neither the summary nor `tune export` send to `tune resume`, which has nothing to do."""
    from tuner.export.export import export_study

    for score in (0.5, math.nan, 0.4):
        record.finish(add(record, score), state, reason)
    study = Study(record.folder, spec, record)
    assert is_finished(study)
    shown = summary(record, spec)
    assert f"no trial can be exported: 3 {state} (trial 0: {reason})" in shown
    with pytest.raises(ExportError) as error:
        export_study(study, record.folder / "bundle")
    for text in (shown, str(error.value)):
        assert advice in text
        assert f"tune run SPACE.yaml --name {record.folder.name}-2" in text
        assert "tune resume" not in text


def test_no_factor_is_given_of_no_epochs(record: StudyRecord, spec: StudySpec) -> None:
    record.interrupt(add(record), "the time budget ended")
    assert "epochs  0; training all 1 trials to the end would take 5\n" in summary(record, spec)


def test_a_study_that_may_find_one_yet_is_resumed(record: StudyRecord, spec: StudySpec) -> None:
    from tuner.export.export import export_study

    record.finish(add(record), TrialState.DIVERGED, "the training loss is nan")
    study = Study(record.folder, spec, record)
    assert f"tune resume {record.folder.name}" in summary(record, spec)
    with pytest.raises(ExportError, match="tune resume"):
        export_study(study, record.folder / "bundle")
    add(record, 0.5)
    with pytest.raises(ExportError, match="still runs: export it when one has ended"):
        export_study(study, record.folder / "bundle")


def test_a_grid_that_is_spent_is_the_end_of_its_study(tmp_path: Path) -> None:
    spec = parse_spec(
        "space: {optimizer: {choice: [adamw, sgd]}}\n"
        "search: {searcher: grid, num_trials: 40}\npolicy: none\n",
        source="s.yaml",
    )
    record = StudyRecord(tmp_path, spec.space, spec.mode)
    for optimizer in ("adamw", "sgd"):
        number = record.propose({"optimizer": optimizer}, "grid").number
        record.report(number, 1, 0.5, {}, 1.0)
        record.finish(number, TrialState.COMPLETED, "")
    shown = summary(record, spec)
    assert is_finished(Study(tmp_path, spec, record))
    assert "to come" not in shown
    assert "tune resume" not in shown


def test_folds_are_shown_as_their_mean(tmp_path: Path) -> None:
    """Of a trial with two of three folds, and of one that is in the middle of its second."""
    spec = parse_spec(SPACE.replace("num_trials: 3", "num_trials: 3, folds: 3"), source="s.yaml")
    record = StudyRecord(tmp_path, spec.space, spec.mode, fold_epochs=spec.fold_epochs)
    add(record, *[0.5] * 5, *[0.7] * 5)
    record.finish(0, TrialState.STOPPED, "by the race")
    add(record, *[0.4] * 5, 0.9, 0.9)
    study = Study(tmp_path, spec, record)
    shown = summary(record, spec)
    assert "0.6000 ± 0.1414 (2 folds)" in shown
    assert "0.4000 (1 fold)" in shown
    assert "best    val_dice 0.6000 ± 0.1414 (trial 0, mean of 2 folds)" in shown
    assert "epochs  17; training all 2 trials to the end would take 30" in shown
    assert "0.6000 ± 0.1414 (2 folds)" in (tmp_path / "report.html").read_text()
    first, second = (trial_document(entry, "max") for entry in record.entries.values())
    assert (first["score"], first["folds"], first["epochs"]) == (pytest.approx(0.6), [0.5, 0.7], 10)
    assert (second["score"], second["folds"], second["epochs"]) == (0.4, [0.4], 7)
    columns, rows = results_table(study)
    assert columns[7:9] == ["folds", "fold_values"]
    assert [(row["folds"], row["fold_values"]) for row in rows] == [(2, "[0.5, 0.7]"), (1, "[0.4]")]
    out = io.StringIO()
    view = StudyView(study, TrialResources(1, 0, 1), None, Console(file=out, width=200))
    with view:
        view.trial_started(1)
        record.report(1, 8, 0.9, {"val_dice": 0.9}, 1.0)
        view.epoch_ended(1, 8, "val_dice 0.9000")
    assert "3 of up to 5 epochs on each of 3 folds" in out.getvalue()
    assert "epoch 3/5 of fold 2/3  val_dice 0.9000" in out.getvalue()


def test_a_valid_spec_with_folds_says_what_they_cost() -> None:
    spec = parse_spec(SPACE.replace("num_trials: 3", "num_trials: 10, folds: 3"), source="s.yaml")
    out = io.StringIO()
    print_spec(Console(file=out, width=200), spec)
    assert "folds     3: a trial that is behind beyond doubt gets no further one" in out.getvalue()
    # all train the first fold, and two in ten the two others
    budget = "about 70 epochs; training every trial to epoch 5 on every fold would take 150"
    assert budget in out.getvalue()
