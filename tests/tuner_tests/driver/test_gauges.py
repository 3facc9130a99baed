"""Numbers of a study for Prometheus, and the dashboard that shows them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from trial_messages import epoch_result, ray_trial

from tuner.driver import gauges
from tuner.driver.gauges import STUDY_GAUGES, TRIAL_GAUGES, StudyGauges
from tuner.spec.load import parse_spec
from tuner.study.record import StudyRecord
from tuner.study.study import Study
from tuner.study.trial_entry import Placement, TrialState

BOARD = Path(__file__).parents[3] / "docker/grafana/segtune.json"

SPACE = (
    "space: {learning_rate: {loguniform: [1e-5, 1e-1]}}\nsearch: {num_trials: 5}\npolicy: none\n"
)

Values = dict[tuple[str, str], dict[str, float]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Values:
    """What the gauges have now, by name and by the tags beside the study."""
    values: Values = {}

    class Kept:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self.name, self.tag_keys = name, tag_keys

        def set(self, value: float, tags: dict[str, str]) -> None:
            # Ray refuses others
            assert set(tags) == set(self.tag_keys)
            more = " ".join(tags[key] for key in self.tag_keys if key != "study")
            values.setdefault((tags["study"], self.name), {})[more] = value

    monkeypatch.setattr(gauges, "Gauge", Kept)
    return values


def test_gauges_say_what_the_record_says(tmp_path: Path, seen: Values) -> None:
    spec = parse_spec(SPACE, source="s.yaml")
    folder = tmp_path / "liver"
    folder.mkdir()
    record = StudyRecord(folder, spec.space, spec.mode)
    watcher = StudyGauges(Study(folder, spec, record))
    for number, score in enumerate((0.5, 0.7)):
        record.propose({"learning_rate": 0.01}, "test")
        record.place(number, Placement(f"node-{number}", ("0",)))
        record.report(number, 1, score, {}, 2.0)
        result: dict[str, Any] = epoch_result(1, score, seconds=2.0)
        watcher.on_trial_result(0, [], ray_trial(number), result)
    watcher.on_step_end(0, [])
    assert seen["liver", "segtune_trials"]["running"] == 2
    assert seen["liver", "segtune_trials"]["to come"] == 3
    assert set(seen["liver", "segtune_trials"]) == {*map(str, TrialState), "to come"}
    assert seen["liver", "segtune_best_score"] == {"": 0.7}
    assert seen["liver", "segtune_epochs"] == {"": 2}
    assert seen["liver", "segtune_trial_score"] == {"0 node-0": 0.5, "1 node-1": 0.7}
    assert seen["liver", "segtune_trial_epoch_seconds"] == {"0 node-0": 2.0, "1 node-1": 2.0}
    record.finish(0, TrialState.COMPLETED, "done")
    watcher.on_trial_complete(1, [], ray_trial(0))
    watcher.on_experiment_end([])
    assert seen["liver", "segtune_trials"]["completed"] == 1
    for name in TRIAL_GAUGES:
        # a line that ends, where the other one goes on
        assert math.isnan(seen["liver", name]["0 node-0"])
    assert seen["liver", "segtune_trial_score"]["1 node-1"] == 0.7


def test_a_trial_that_moves_leaves_no_line_behind(tmp_path: Path, seen: Values) -> None:
    spec = parse_spec(SPACE, source="s.yaml")
    record = StudyRecord(tmp_path, spec.space, spec.mode)
    watcher = StudyGauges(Study(tmp_path, spec, record))
    record.propose({"learning_rate": 0.01}, "test")
    for epoch, node in enumerate(("node-a", "node-b"), start=1):
        record.place(0, Placement(node))
        watcher.on_trial_result(0, [], ray_trial(0), epoch_result(epoch, 0.5))
    shown = seen[tmp_path.name, "segtune_trial_epoch"]
    assert math.isnan(shown["0 node-a"])
    assert shown["0 node-b"] == 2


def test_the_dashboard_shows_every_gauge_and_no_other() -> None:
    text = BOARD.read_text()
    assert set(re.findall(r"ray_(segtune_\w+)", text)) == {*STUDY_GAUGES, *TRIAL_GAUGES}
    board = json.loads(text)
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {"prometheus"}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
