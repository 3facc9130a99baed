"""A trial's `patch_size: auto`: planned once, kept by the trial wherever it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.storages import InMemoryStorage
from spec_text import parse
from tiny_trial import QUIET, TINY, reports_of

import training.planning
from training.data import generate_phantom
from training.planning import CaseSizes, Memory
from tuner.errors import SpecError
from tuner.report.results_table import value_names
from tuner.spec.study_spec import StudySpec
from tuner.study.data import StudyData, case_sizes, prepare_data
from tuner.study.files import CONFIG_FILE
from tuner.study.record import StudyRecord
from tuner.study.study import Study
from tuner.study.trial_entry import TrialState
from tuner.trial.context import StudyContext
from tuner.trial.failures import end_trial
from tuner.trial.messages import EpochReport, TrialEnd, TrialRequest
from tuner.trial.networks import check_networks
from tuner.trial.run import TrialRun

pytestmark = QUIET

VALUES = {"learning_rate": 0.01, "patch_size": "auto"}


def spec_of(phantom: Path | str, more: str = "") -> StudySpec:
    config = {**TINY, "data_dir": str(phantom), "max_epochs": 2, "train_batch_size": "auto"}
    del config["patch_size"]
    return parse(
        f"config: {config}\n"
        "space:\n"
        "  learning_rate: {loguniform: [1e-4, 1e-1]}\n"
        "  patch_size: {choice: [auto, [8, 32, 32]]}\n" + more
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, private_cache: Path) -> StudyData:
    phantom = generate_phantom(tmp_path_factory.mktemp("raw") / "phantom", num_cases=5, seed=1)
    return prepare_data(spec_of(phantom))


def with_memory(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    memory = Memory(size, True, "so much")
    monkeypatch.setattr(training.planning, "memory_at_hand", lambda *_: memory)


def train(context: StudyContext, most: int = 99) -> list[Any]:
    return reports_of(TrialRun(context, context.spec, TrialRequest(0, VALUES)), most)


def test_a_trial_keeps_its_plan_where_there_is_other_memory(
    data: StudyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = StudyContext(tmp_path, data.spec, data.for_trials, gpus=0)
    with_memory(monkeypatch, 4e6)
    first = train(context, most=1)
    planned = first[0].planned
    assert planned["train_batch_size"] == 2
    config = yaml.safe_load((context.trial_folder(0) / CONFIG_FILE).read_text())
    assert {name: config[name] for name in planned} == dict(planned)
    with_memory(monkeypatch, 1e9)
    rest = train(context)
    # the first one is what its checkpoint holds
    assert [report.planned for report in rest[:-1]] == [planned, planned]
    assert rest[-1].state is TrialState.COMPLETED
    # another trial would be planned by what there is now
    (context.trial_folder(0) / CONFIG_FILE).unlink()
    other = StudyContext(tmp_path / "other", data.spec, data.for_trials, gpus=0)
    other.folder.mkdir()
    assert train(other, most=1)[0].planned["patch_size"] != planned["patch_size"]


def test_a_trial_that_fits_nowhere_ends_as_out_of_memory(
    data: StudyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, 1e3)
    (end,) = train(StudyContext(tmp_path, data.spec, data.for_trials, gpus=0))
    assert end.state is TrialState.OUT_OF_MEMORY
    assert "dformer3d takes more than 1e-06 GB" in end.reason


def test_the_record_has_the_numbers(tmp_path: Path) -> None:
    spec = spec_of("phantom")
    record = StudyRecord(tmp_path, spec.space, spec.mode, InMemoryStorage())
    entry = record.propose(VALUES, "test")
    planned = {"patch_size": [8, 16, 16], "train_batch_size": 3, "target_spacing": [1.0, 1.0, 1.0]}
    for epoch in (1, 2):
        EpochReport(epoch, 0.5, {}, 1.0, planned=planned).add_to(record, 0)
    assert entry.values == VALUES
    assert entry.trained_values == {**VALUES, **planned}
    assert entry.trained_values_at(1) == {**VALUES, **planned}
    assert len(entry.overridden) == 1
    config = spec.trial_config(entry.trained_values)
    assert (config.patch_size, config.train_batch_size) == ((8, 16, 16), 3)
    assert "train_batch_size" in value_names([entry], spec)


def test_what_ran_out_of_memory_goes_on_with_half_of_what_was_planned(tmp_path: Path) -> None:
    spec = spec_of("phantom", "failures: {on_out_of_memory: smaller_batch}\n")
    record = StudyRecord(tmp_path, spec.space, spec.mode, InMemoryStorage())
    entry = record.propose(VALUES, "test")
    study = Study(tmp_path, spec, record)
    folder = tmp_path / "trials" / "0000"
    folder.mkdir(parents=True)
    planned = {"patch_size": [8, 16, 16], "train_batch_size": 6, "target_spacing": [1.0, 1.0, 1.0]}
    (folder / CONFIG_FILE).write_text(yaml.safe_dump(planned))
    end_trial(study, 0, TrialEnd(TrialState.OUT_OF_MEMORY, "no memory"))
    assert entry.trained_values["train_batch_size"] == 3
    assert entry.trained_values["patch_size"] == [8, 16, 16]


def test_a_batch_that_gpus_share_is_that_of_the_trial(tmp_path: Path) -> None:
    spec = spec_of("phantom", "resources: {gpu: 2, batch: trial}\n")
    context = StudyContext(tmp_path, spec, (), gpus=2)
    assert context.of_whole_trial(spec, {"train_batch_size": 3}) == {"train_batch_size": 6}
    each = spec_of("phantom", "resources: {gpu: 2}\n")
    assert context.of_whole_trial(each, {"train_batch_size": 3}) == {"train_batch_size": 3}


def test_check_says_what_would_be_planned_here(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of("phantom")
    sizes = CaseSizes((40.0, 64.0, 64.0), (1.0, 1.0, 1.0), 1e8)
    with_memory(monkeypatch, 1e9)
    shown = "\n".join(check_networks(spec, sizes).describe())
    assert "planned   dformer3d with patches of" in shown
    assert ", 2 a batch (within so much)" in shown
    # without the data there is nothing to plan for
    assert "planned" not in "\n".join(check_networks(spec).describe())
    with_memory(monkeypatch, 1e3)
    with pytest.raises(SpecError, match=r"dformer3d cannot be built.*takes more than 1e-06 GB"):
        check_networks(spec, sizes)


def test_trials_that_copy_weights_need_numbers() -> None:
    with pytest.raises(SpecError, match="patch_size=auto does not go with policy=pbt"):
        parse(
            "config: {patch_size: auto}\nspace: {learning_rate: {uniform: [0.1, 1]}}\npolicy: pbt\n"
        )


def test_sizes_of_cases_are_read_where_they_matter(data: StudyData) -> None:
    found = case_sizes(spec_of(data.source))
    assert found is not None
    assert min(found.shape) > 8
    assert found.voxels > 0
    fixed = "config: {data_dir: DIR}\nspace: {learning_rate: {uniform: [0.1, 1]}}\n"
    assert case_sizes(parse(fixed.replace("DIR", str(data.source)))) is None
    assert case_sizes(spec_of("phantom")) is None
    assert case_sizes(spec_of(data.source / "none")) is None
