from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage
from rich.console import Console
from s3_server import s3_server

from training.storage import Store
from tuner.driver.checkpoint_keeper import CheckpointKeeper
from tuner.spec.load import parse_spec
from tuner.spec.settings import CheckpointSettings, ExportSettings
from tuner.spec.study_spec import StudySpec
from tuner.study.files import CHECKPOINT_FILES, trial_folder
from tuner.study.record import StudyRecord
from tuner.study.remote.place import local_studies_dir
from tuner.study.study import Study
from tuner.study.trial_entry import TrialState
from tuner.trial.messages import TrialRequest

SPACE = "space: {learning_rate: {uniform: [0.1, 1]}, model_name: {choice: [unet3d, dformer3d]}}"
SPEC = parse_spec(f"{SPACE}\nexport: {{ensemble: 1}}", source="s.yaml")
SIZE = 1000


def trial(
    folder: Path,
    record: StudyRecord,
    score: float | None,
    state: TrialState = TrialState.COMPLETED,
    network: str = "unet3d",
) -> int:
    """A trial with both checkpoints that ended in a state."""
    number = record.propose({"learning_rate": 0.5, "model_name": network}, "test").number
    if score is not None:
        record.report(number, 1, score, {}, 1.0)
    if state is TrialState.PAUSED:
        record.pause(number, "")
    elif state is TrialState.INTERRUPTED:
        record.interrupt(number, "")
    elif state is not TrialState.RUNNING:
        record.finish(number, state, "")
    where = trial_folder(folder, number)
    where.mkdir(parents=True)
    for name in CHECKPOINT_FILES:
        (where / name).write_bytes(b"x" * SIZE)
    (where / "metrics.csv").write_text("kept")
    return number


def kept(folder: Path) -> dict[int, set[str]]:
    return {
        int(where.name): {path.name.partition(".")[0] for path in where.glob("*.ckpt*")}
        for where in (folder / "trials").iterdir()
    }


def in_memory() -> StudyRecord:
    return StudyRecord(Path("memory"), SPEC.space, "max", InMemoryStorage())


def keeper_of(
    folder: Path,
    record: StudyRecord,
    checkpoints: CheckpointSettings,
    console: Console | None = None,
    ensemble: int = 1,
) -> CheckpointKeeper:
    export = ExportSettings(ensemble=ensemble)
    spec = SPEC.model_copy(update={"checkpoints": checkpoints, "export": export})
    return CheckpointKeeper(Study(folder, spec, record), console)


def test_trials_that_lost_keep_no_checkpoint(tmp_path: Path) -> None:
    record = in_memory()
    both = {"best", "last"}
    expected = {
        trial(tmp_path, record, 0.5, TrialState.STOPPED): set(),
        trial(tmp_path, record, 0.9): both,
        trial(tmp_path, record, 0.7, TrialState.STOPPED): both,
        trial(tmp_path, record, 0.1, TrialState.PAUSED): both,
        trial(tmp_path, record, 0.1, TrialState.RUNNING): both,
        trial(tmp_path, record, None, TrialState.RUNNING): both,
        trial(tmp_path, record, 0.1, TrialState.INTERRUPTED): both,
        trial(tmp_path, record, 1.0, TrialState.FAILED): set(),
        trial(tmp_path, record, 1.0, TrialState.DIVERGED): set(),
        trial(tmp_path, record, 0.6): set(),
    }
    (trial_folder(tmp_path, 0) / "last.ckpt.partial").write_bytes(b"cut off")
    (trial_folder(tmp_path, 0) / "last.ckpt.damaged").write_bytes(b"damaged")
    keeper_of(tmp_path, record, CheckpointSettings(keep=2)).prune()
    assert kept(tmp_path) == expected
    assert all((where / "metrics.csv").is_file() for where in (tmp_path / "trials").iterdir())


def test_an_ensemble_keeps_the_best_checkpoints_it_may_want(tmp_path: Path) -> None:
    record = in_memory()
    both, best = {"best", "last"}, {"best"}
    expected = {
        trial(tmp_path, record, 0.5, network="dformer3d"): best,
        trial(tmp_path, record, 0.6): set(),
        trial(tmp_path, record, 0.7): best,
        trial(tmp_path, record, 0.8): best,
        trial(tmp_path, record, 0.9): both,
        trial(tmp_path, record, 0.4, network="dformer3d"): set(),
    }
    keeper = keeper_of(tmp_path, record, CheckpointSettings(keep=1), ensemble=3)
    keeper.prune()
    assert kept(tmp_path) == expected
    better = trial(tmp_path, record, 0.85, network="dformer3d")
    keeper.prune()
    # 0.5 is not the best of its network any more, and 0.7 is the fourth
    assert {n for n, names in kept(tmp_path).items() if names} == {3, 4, better}


def test_the_default_config_keeps_its_best_checkpoint(tmp_path: Path) -> None:
    record = in_memory()
    number = record.propose(SPEC.default_point(), "test").number
    record.report(number, 1, 0.1, {}, 1.0)
    record.finish(number, TrialState.COMPLETED, "")
    where = trial_folder(tmp_path, number)
    where.mkdir(parents=True)
    for name in CHECKPOINT_FILES:
        (where / name).write_bytes(b"x")
    trial(tmp_path, record, 0.8)
    trial(tmp_path, record, 0.7)
    trial(tmp_path, record, 0.9, network="dformer3d")
    keeper_of(tmp_path, record, CheckpointSettings(keep=1)).prune()
    names = kept(tmp_path)
    assert names[number] == {"best"}
    assert names[2] == set()


ENDINGS = st.tuples(
    st.floats(0, 1), st.sampled_from([TrialState.COMPLETED, TrialState.STOPPED, TrialState.FAILED])
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(endings=st.lists(ENDINGS, min_size=1, max_size=12), keep=st.integers(1, 4))
def test_the_winner_at_the_end_was_kept_all_along(
    tmp_path_factory: pytest.TempPathFactory, endings: list[tuple[float, TrialState]], keep: int
) -> None:
    folder = tmp_path_factory.mktemp("study")
    record = in_memory()
    keeper = keeper_of(folder, record, CheckpointSettings(keep=keep))
    for score, state in endings:
        trial(folder, record, score, state)
        keeper.prune()
    usable = [entry for entry in record.entries.values() if entry.state.usable]
    ranked = sorted(usable, key=lambda entry: (-entry.scores[1], entry.number))
    left = {number for number, names in kept(folder).items() if names}
    assert left == {entry.number for entry in ranked[:keep]}
    winner = record.best()
    assert winner is None or winner.number in left


def test_the_disk_budget_spares_the_winner_and_what_may_go_on(tmp_path: Path) -> None:
    record = in_memory()
    for score in (0.9, 0.8, 0.7):
        trial(tmp_path, record, score)
    trial(tmp_path, record, 0.1, TrialState.PAUSED)
    said = io.StringIO()

    def within(budget: int) -> dict[int, set[str]]:
        limits = CheckpointSettings(disk_budget=budget)  # type: ignore[arg-type]
        keeper_of(tmp_path, record, limits, Console(file=said)).prune()
        return kept(tmp_path)

    both = {"best", "last"}
    assert within(8 * SIZE) == {0: both, 1: both, 2: both, 3: both}
    # the last checkpoints of the worst go first
    assert within(7 * SIZE) == {0: both, 1: both, 2: {"best"}, 3: both}
    assert within(5 * SIZE) == {0: both, 1: {"best"}, 2: set(), 3: both}
    assert said.getvalue() == ""
    assert within(3 * SIZE) == {0: both, 1: set(), 2: set(), 3: both}
    assert "above the disk budget" in said.getvalue()


@pytest.mark.parametrize("state", [TrialState.RUNNING, TrialState.PAUSED, TrialState.INTERRUPTED])
def test_the_disk_budget_spares_the_best_that_has_ended(tmp_path: Path, state: TrialState) -> None:
    """A better one that may go on may fail yet."""
    record = in_memory()
    for score in (0.7, 0.8):
        trial(tmp_path, record, score)
    trial(tmp_path, record, 0.9, state)
    limits = CheckpointSettings(disk_budget=SIZE)  # type: ignore[arg-type]
    keeper_of(tmp_path, record, limits, Console(file=io.StringIO())).prune()
    both = {"best", "last"}
    assert kept(tmp_path) == {0: set(), 1: both, 2: both}


def population_of(trials: int) -> StudySpec:
    return parse_spec(
        "space: {learning_rate: {uniform: [0.1, 1]}}\npolicy: pbt\n"
        f"search: {{num_trials: {trials}}}\n",
        source="s.yaml",
    )


def test_snapshots_stay_until_every_trial_has_come_further(tmp_path: Path) -> None:
    record = in_memory()
    keeper = CheckpointKeeper(Study(tmp_path, population_of(3), record))
    for _ in range(2):
        number = trial(tmp_path, record, 0.5, TrialState.RUNNING)
        for epoch in (2, 3, 4):
            record.report(number, epoch, 0.5, {}, 1.0)
        for epoch in (2, 4):
            (trial_folder(tmp_path, number) / f"epoch-{epoch:05d}.ckpt").write_bytes(b"x")

    def left() -> set[str]:
        keeper.prune()
        return {path.name for path in tmp_path.glob("trials/*/epoch-*.ckpt")}

    # the third trial is still to come
    assert left() == {"epoch-00002.ckpt", "epoch-00004.ckpt"}
    late = trial(tmp_path, record, 0.5, TrialState.RUNNING)
    record.report(late, 2, 0.5, {}, 1.0)
    # it may have been told to take one over, and not have done so yet
    assert left() == {"epoch-00002.ckpt", "epoch-00004.ckpt"}
    record.report(late, 3, 0.5, {}, 1.0)
    assert left() == {"epoch-00004.ckpt"}
    for number in range(3):
        record.finish(number, TrialState.COMPLETED, "")
    assert left() == set()


def test_checkpoints_of_the_user_stay(tmp_path: Path) -> None:
    """Names that look like the program's, and folders that are no trial's."""
    record = in_memory()
    number = trial(tmp_path, record, 0.1)
    where = trial_folder(tmp_path, number)
    mine = [
        *(where / name for name in ("best.ckpt.mine", "last.ckpt.bak", "my-best.ckpt")),
        *(where / name for name in ("epoch-mine.ckpt", "epoch-1.ckpt", "epoch-00001.ckpt.bak")),
        *(tmp_path / "trials" / "mine" / name for name in ("best.ckpt", "epoch-00001.ckpt")),
    ]
    ours = [where / f"{name}{end}" for name in CHECKPOINT_FILES for end in (".damaged", ".partial")]
    for path in [*mine, *ours, where / "epoch-00001.ckpt"]:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * SIZE)
    trial(tmp_path, record, 0.9)
    limits = CheckpointSettings(keep=1, disk_budget=3 * SIZE)
    spec = population_of(2).model_copy(update={"checkpoints": limits})
    shown = io.StringIO()
    keeper = CheckpointKeeper(Study(tmp_path, spec, record), Console(file=shown))
    keeper.prune()
    assert {
        path for path in (tmp_path / "trials").rglob("*.ckpt*") if "0001" not in path.parts
    } == {*mine}
    # nor are they counted among those of the study: the snapshot goes after the count
    assert shown.getvalue() == ""


def test_in_a_bucket_what_a_node_sends_late_of_a_loser_is_removed_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGTUNE_CACHE", str(tmp_path))
    with s3_server(monkeypatch) as server:
        store = Store(server.address)
        folder = local_studies_dir(server.address) / "s"
        record = in_memory()
        spec = SPEC.model_copy(update={"checkpoints": CheckpointSettings(keep=1)})
        keeper = CheckpointKeeper(Study(folder, spec, record))
        ended = []
        for score in (0.5, 0.9, 0.8):
            number = record.propose({"learning_rate": 0.5, "model_name": "unet3d"}, "test").number
            record.report(number, 1, score, {}, 1.0)
            record.finish(number, TrialState.COMPLETED, "")
            request = TrialRequest(number, {}).to_ray()
            ended.append(SimpleNamespace(config=request))
        names = [
            f"s/trials/{number:04d}/{name}" for number in range(3) for name in CHECKPOINT_FILES
        ]
        for name in names:
            store.write(name, b"x")
        for trial in ended[:2]:
            keeper.on_trial_complete(0, [], trial)  # type: ignore[arg-type]
        assert sorted(store.listing()) == names[2:]
        store.write(names[0], b"late")
        keeper.on_trial_complete(0, [], ended[2])  # type: ignore[arg-type]
        assert sorted(store.listing()) == names[2:4]
