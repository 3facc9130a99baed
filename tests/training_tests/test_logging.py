"""What TensorBoard shows of a run: read back with TensorBoard's own readers."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing import data_provider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups
from torch import nn

from training.config import ModelTrainingConfig
from training.hparams import Hyperparameter
from training.lightning_module import SegmentationLightningModule
from training.trainer import SegmentationTrainer
from tuner.trial.epoch_gate import EpochGate

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
]


def run_of(
    folder: Path, module: type[SegmentationLightningModule] | None = None, **fields: Any
) -> SegmentationTrainer:
    """A run of one convolution on noise, with two steps an epoch."""
    hyperparameters = fields.pop("hyperparameters", None)
    torch.manual_seed(0)
    config = ModelTrainingConfig(
        **{
            "num_classes": 2,
            "patch_size": (4, 4, 4),
            "max_epochs": 4,
            "gpus": 0,
            "log_dir": folder,
            "checkpoint_dir": folder,
            **fields,
        }
    )
    data = torch.Generator().manual_seed(0)
    cases = [
        {
            "image": torch.randn(1, 4, 4, 4, generator=data),
            "label": torch.randint(0, 2, (4, 4, 4), generator=data),
        }
        for _ in range(4)
    ]
    loader = torch.utils.data.DataLoader(cases, batch_size=2)
    network: nn.Module = nn.Conv3d(1, 2, 3, padding=1)
    return SegmentationTrainer(
        config,
        network if module is None else module(network, config),
        loader,
        loader,
        callbacks=[EpochGate(lambda row: None, folder / "metrics.csv")],
        progress_bar=False,
        hyperparameters=hyperparameters,
    )


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def rates(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row["lr"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("scheduler", ["none", "cosine", "one_cycle"])
def test_the_rate_has_one_name_and_epochs_are_the_axis(
    tmp_path: Path, optimizer: str, scheduler: str
) -> None:
    fields = {"optimizer": optimizer, "scheduler": scheduler, "learning_rate": 0.02}
    run_of(tmp_path, warmup_epochs=1, max_epochs=5, **fields).fit()
    found = scalars(tmp_path)
    assert [tag for tag in found if "lr" in tag.lower() or "rate" in tag] == ["lr"]
    for tag, points in found.items():
        assert [step for step, _ in points] == [1, 2, 3, 4, 5], tag
    logged = [value for _, value in found["lr"]]
    assert logged == pytest.approx(rates(tmp_path))
    # what was asked for is another thing: the schedule is below it for a time
    assert min(logged) < 0.02 or scheduler == "none"


def test_no_logged_name_is_that_of_a_hyperparameter(tmp_path: Path) -> None:
    run_of(tmp_path, scheduler="poly", max_epochs=2).fit()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        columns = next(csv.reader(file))
    assert len(columns) == len(set(columns))
    names = {*columns, *scalars(tmp_path)}
    assert not names & set(ModelTrainingConfig.model_fields)


def test_the_best_score_is_known_whenever_a_run_ends(tmp_path: Path) -> None:
    """Also of a run that was cut off and goes on: its best may lie before that."""
    run_of(tmp_path, max_epochs=3, learning_rate=0.05).fit()
    run_of(tmp_path, max_epochs=5, learning_rate=10.0).fit(resume=True)
    found = scalars(tmp_path)
    scores = [value for _, value in found["val_dice"]]
    best = [max(scores[: count + 1]) for count in range(5)]
    assert len(scores) == 5
    assert [value for _, value in found["best_val_dice"]] == pytest.approx(best)


def hparams_tab(folder: Path) -> tuple[Any, list[Any]]:
    """The tab as TensorBoard's server answers it for the runs in a folder."""
    events = EventMultiplexer().AddRunsFromDirectory(str(folder))
    events.Reload()
    provider = data_provider.MultiplexerDataProvider(events, str(folder))
    context = backend_context.Context(SimpleNamespace(data_provider=provider))
    request = RequestContext()
    metadata = context.hparams_metadata(request, "")
    experiment = context.experiment_from_metadata(request, "", True, metadata, None)
    columns = [
        api_pb2.ColParams(hparam=info.name, include_in_result=True)
        for info in experiment.hparam_infos
    ]
    asked = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=100,
        aggregation_type=api_pb2.AGGREGATION_AVG,
        allowed_statuses=[0, 1, 2, 3],
        col_params=[
            *columns,
            *(api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos),
        ],
    )
    handler = list_session_groups.Handler(request, context, "", asked)
    return experiment, list(handler.run().session_groups)


def columns(**values: Any) -> list[Hyperparameter]:
    weights = ["uniform", [1, 1, 3]]
    return [
        Hyperparameter("learning_rate", values["learning_rate"]),
        Hyperparameter("momentum", values.get("momentum"), "momentum" in values),
        Hyperparameter("class_weights", values["class_weights"], options=weights),
        Hyperparameter("nesterov", values.get("nesterov"), "nesterov" in values, [True, False]),
    ]


def test_the_hparams_tab_shows_what_varies_and_the_score(tmp_path: Path) -> None:
    given: dict[str, dict[str, Any]] = {
        # the first run that TensorBoard reads has not all fields
        "0000": {"learning_rate": 0.01, "class_weights": "uniform"},
        "0001": {"learning_rate": 0.02, "class_weights": [1, 1, 3], "momentum": 0.9},
        # as the one before, and yet a row of its own
        "0002": {"learning_rate": 0.02, "class_weights": [1, 1, 3], "momentum": 0.9},
        "0003": {"learning_rate": 0.3, "class_weights": "uniform", "nesterov": False},
    }
    for name, values in given.items():
        run_of(tmp_path / name, max_epochs=2, hyperparameters=columns(**values)).fit()
    experiment, groups = hparams_tab(tmp_path)
    fields = {"learning_rate", "momentum", "class_weights", "nesterov"}
    assert {info.name for info in experiment.hparam_infos} == fields
    assert [info.name.tag for info in experiment.metric_infos] == ["best_val_dice"]
    assert len(groups) == len(given)
    for group in groups:
        name = group.sessions[0].name
        shown = dict(group.hparams)
        expected = given[name]
        assert shown["learning_rate"].number_value == expected["learning_rate"]
        for field in ("momentum", "nesterov"):
            assert (field in shown) == (field in expected)
        text = "[1, 1, 3]" if expected["class_weights"] != "uniform" else "uniform"
        assert shown["class_weights"].string_value == text
        scores = [value for _, value in scalars(tmp_path / name)["val_dice"]]
        assert group.metric_values[0].value == pytest.approx(max(scores))


def test_without_a_study_the_tab_has_neither_paths_nor_machine(tmp_path: Path) -> None:
    run_of(tmp_path / "one", max_epochs=1).fit()
    experiment, (group,) = hparams_tab(tmp_path)
    shown = {info.name for info in experiment.hparam_infos}
    assert {"learning_rate", "optimizer", "loss"} <= shown
    assert not shown & {"data_dir", "log_dir", "checkpoint_dir", "gpus", "num_workers", "debug"}
    assert group.metric_values[0].value > 0


class Clashing(SegmentationLightningModule):
    """A module of a user's own, who logs one more metric."""

    added = ""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log(self.added, torch.tensor(1.0), batch_size=1)


@pytest.mark.parametrize(
    ("added", "clashes"),
    [
        ("learning_rate", "the config has a field"),
        ("val_fraction", "the config has a field"),
        ("train_batch_size", "the config has a field"),
        ("lr", "logs something by that name"),
        ("best_val_dice", "logs something by that name"),
        ("val_volume_error", ""),
    ],
)
def test_a_metric_of_a_taken_name_is_refused_where_it_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, added: str, clashes: str
) -> None:
    monkeypatch.setattr(Clashing, "added", added)
    run = run_of(tmp_path, Clashing, max_epochs=1)
    if clashes:
        with pytest.raises(ValueError, match=f"'{added}' cannot be logged.*{clashes}"):
            run.fit()
    else:
        run.fit()
        assert added in scalars(tmp_path)


def test_a_history_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Its rows call the logged rate learning_rate."""
    gate = EpochGate(lambda row: None, tmp_path / "metrics.csv")
    old = {"epoch": 1, "seconds": 1.0, "val_dice": 0.5, "learning_rate": 1e-3}
    gate.load_state_dict({"history": [old, {**old, "epoch": 2}]})
    gate.on_train_start(None, None)  # type: ignore[arg-type]
    assert rates(tmp_path) == [1e-3, 1e-3]
