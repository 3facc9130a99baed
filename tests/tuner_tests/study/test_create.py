"""Making, refusing, opening and listing studies; nothing here starts Ray."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from tuner.cli.main import main
from tuner.errors import StudyError
from tuner.spec.load import parse_spec
from tuner.spec.study_spec import StudySpec
from tuner.study.create import create_study
from tuner.study.folder import FolderBefore, driver_lock, remove_ray_files
from tuner.study.open import open_study, study_folders
from tuner.study.record import StudyRecord

SPACE = """\
metric: val_dice
config: {max_epochs: 9, model_params: {embed_dim: 12}}
space: {learning_rate: {loguniform: [1e-5, 1e-2]}}
search: {num_trials: 6}
"""


def spec_of(text: str = SPACE) -> StudySpec:
    return parse_spec(text, source="s.yaml")


def with_a_trial(studies: Path, name: str = "s") -> None:
    study = create_study(spec_of(), studies, name)
    study.record.propose({"learning_rate": 1e-3}, "a test")
    study.record.close()


def test_the_same_study_is_opened_and_nothing_is_written(tmp_path: Path) -> None:
    with_a_trial(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").iterdir()}
    assert len(create_study(spec_of(), tmp_path, "s").record.entries) == 1
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s").iterdir()} == before


def test_another_space_is_refused_by_what_differs(tmp_path: Path) -> None:
    with_a_trial(tmp_path)
    other = (
        SPACE.replace("embed_dim: 12", "embed_dim: 24")
        .replace("1e-5, 1e-2", "1e-4, 1e-2")
        .replace("num_trials: 6", "num_trials: 8, seed: 3")
        .replace("max_epochs: 9, ", "")
    )
    with pytest.raises(StudyError) as refused:
        create_study(spec_of(other), tmp_path, "s")
    assert str(refused.value).splitlines() == [
        f"the study 's' exists in {tmp_path} with another search space:",
        "  config.max_epochs: 9 -> not given",
        "  config.model_params.embed_dim: 12 -> 24",
        '  space.learning_rate: {"loguniform": [1e-05, 0.01]} -> {"loguniform": [0.0001, 0.01]}',
        "  search.num_trials: 6 -> 8",
        "  search.seed: 0 -> 3",
        "choose another --name, or go on with it as it is by "
        f"`tune resume s --studies-dir {tmp_path}` (of these, it takes --num-trials)",
    ]


def test_other_budgets_are_given_to_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_a_trial(tmp_path)
    other = SPACE.replace("num_trials: 6", "num_trials: 8, time_budget: 2h")
    with pytest.raises(StudyError, match=r"exists in .* with other budgets:") as refused:
        create_study(spec_of(other), tmp_path, "s")
    resume = f"tune resume s --studies-dir {tmp_path} --num-trials 8 --time-budget 7200.0"
    assert f"go on with it by `{resume}`" in str(refused.value)


@pytest.mark.parametrize("metric", ["val_dice", "val_loss"])
def test_a_study_without_trials_may_be_given_again(tmp_path: Path, metric: str) -> None:
    create_study(spec_of(), tmp_path, "s").record.close()
    (tmp_path / "s" / "provenance.json").write_text("{}")
    again = spec_of(SPACE.replace("val_dice", metric).replace("num_trials: 6", "num_trials: 9"))
    study = create_study(again, tmp_path, "s")
    entry = study.record.propose({"learning_rate": 1e-3}, "a test")
    study.record.report(entry.number, 1, 0.5, {}, 1.0)
    study.record.close()
    opened = open_study(tmp_path, "s")
    assert opened.spec.search.num_trials == 9
    assert opened.record.mode == ("min" if metric == "val_loss" else "max")
    assert len(opened.record.entries) == 1
    assert not (tmp_path / "s" / "provenance.json").exists()


def open_files(folder: Path) -> set[str]:
    """Names of the files in a folder that this process has open."""
    opened = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            target = Path(os.readlink(descriptor))
            if target.is_relative_to(folder):
                opened.add(target.name)
    return opened


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="there is no /proc")
def test_a_study_that_is_looked_at_has_no_file_open(tmp_path: Path) -> None:
    """SQLite removes a log by its name when one who reads lets go: that of a study made anew."""
    create_study(spec_of(), tmp_path, "s").record.close()
    looked_at = open_study(tmp_path, "s")
    assert open_files(tmp_path) == set()
    looked_at.record.propose({"learning_rate": 1e-3}, "a test")
    assert "optuna.db" in open_files(tmp_path)
    looked_at.record.close()
    assert len(open_study(tmp_path, "s").record.entries) == 1


@pytest.mark.parametrize("fault", ["spec.resolved.yaml", "optuna.db"])
def test_a_start_that_the_disk_ends_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    if fault == "optuna.db":
        monkeypatch.setattr("tuner.study.create.StudyRecord", full)
    else:
        monkeypatch.setattr("tuner.study.create.write_durably", full)
    with pytest.raises(StudyError, match=r"cannot be written \(No space left on device\)"):
        create_study(spec_of(), tmp_path / "studies", "s")
    assert list(tmp_path.iterdir()) == []


def test_of_two_who_make_a_study_the_second_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with driver_lock(tmp_path / "s"), pytest.raises(StudyError, match="runs the study 's' already"):
        create_study(spec_of(), tmp_path, "s")
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["driver.lock"]


def test_restoring_removes_what_came_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "studies" / "s"
    before = FolderBefore.of(folder)
    create_study(spec_of(), tmp_path / "studies", "s").record.close()
    (folder / "ray" / "ToyTrainable_1").mkdir(parents=True)
    (folder / "ray" / "tuner.pkl").touch()
    (folder / "trials").mkdir()
    before.restore()
    assert list(tmp_path.iterdir()) == []
    create_study(spec_of(), tmp_path / "studies", "s").record.close()
    (folder / "ray").mkdir()
    for name in ("ray/mine.pkl", "notes.txt"):
        (folder / name).touch()
    before.restore()
    left = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert left == {"ray", "ray/mine.pkl", "notes.txt"}


def test_rays_files_are_told_from_the_users(tmp_path: Path) -> None:
    for name in (
        *(".validate_storage_marker", "tuner.pkl", "experiment_state-2026-01-01_10-00-00.json"),
        *("search_gen_state-1.json", "mine.json", "tuner.pkl.mine", "trial/mine.txt", "tuner/x"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "ToyTrainable_2").mkdir()
    remove_ray_files(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"mine.json", "tuner.pkl.mine", "trial/mine.txt", "tuner/x"}
    assert not (tmp_path / "ToyTrainable_2").exists()


def test_opening_makes_no_record(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "spec.resolved.yaml").write_text(SPACE)
    with pytest.raises(StudyError):
        open_study(tmp_path, "s")
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["spec.resolved.yaml"]


def spoil(studies: Path) -> None:
    """Studies that cannot be read, each for another reason."""
    for name in ("yaml", "record", "norecord", "link", "folder"):
        with_a_trial(studies, name)
    (studies / "yaml" / "spec.resolved.yaml").write_text("metric: [")
    (studies / "record" / "optuna.db").write_bytes(b"SQLite format 3\0" + bytes(5000))
    (studies / "norecord" / "optuna.db").unlink()
    for name in ("link", "folder"):
        (studies / name / "spec.resolved.yaml").unlink()
    (studies / "link" / "spec.resolved.yaml").symlink_to(studies / "nowhere")
    (studies / "folder" / "spec.resolved.yaml").mkdir()


def test_damaged_studies_do_not_hide_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(tmp_path)
    assert main(["list", "--studies-dir", str(tmp_path)]) == 1
    with_a_trial(tmp_path, "good")
    with_a_trial(tmp_path, "renamed")
    odd = os.fsdecode(b"[red]odd \xff\n(1)")
    (tmp_path / "renamed").rename(tmp_path / odd)
    capsys.readouterr()
    assert main(["list", "--studies-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    lines = {line.split(" cannot be read: ")[0]: line for line in shown.splitlines()}
    assert "not valid YAML" in lines["yaml"]
    assert "optuna.db" in lines["record"]
    assert "it is not there" in lines["norecord"]
    assert "is not a file, or is a broken link" in lines["link"]
    assert "is not a file, or is a broken link" in lines["folder"]
    # nobody runs them
    assert any(line.startswith("good ") and "1 interrupted" in line for line in lines)
    assert any(line.startswith("[red]odd") and "1 interrupted" in line for line in lines)
    assert any(line.startswith("good was cut off: no process runs the study") for line in lines)
    # a folder with a long name goes on in a line that begins with spaces
    assert len([line for line in shown.splitlines() if not line.startswith(" ")]) == 10


def test_a_studies_dir_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for words in (["list"], ["status", "s"]):
        assert main([*words, "--studies-dir", str(tmp_path / "file")]) == 2
        assert "is a file, not a folder" in capsys.readouterr().err
    assert study_folders(tmp_path / "nowhere") == []


def test_a_record_of_another_mode_is_not_mixed_up(tmp_path: Path) -> None:
    """The direction is kept in the record: a study given again has one of its own."""
    create_study(spec_of(), tmp_path, "s").record.close()
    create_study(spec_of(SPACE.replace("val_dice", "val_loss")), tmp_path, "s").record.close()
    record = StudyRecord(tmp_path / "s", spec_of().space, "min")
    (study,) = record._storage.get_all_studies()
    assert study.directions[0].name == "MINIMIZE"


@pytest.mark.parametrize("stem", ["my space (2)", "Ü", "x" * 240, ".hidden"])
def test_a_study_without_a_name_has_a_usable_one(tmp_path: Path, stem: str) -> None:
    study = create_study(parse_spec(SPACE, source=f"{stem}.yaml"), tmp_path, None)
    assert open_study(tmp_path, study.name).spec.metric == "val_dice"


def test_a_study_that_has_not_begun_has_no_provenance(tmp_path: Path) -> None:
    study = create_study(spec_of(), tmp_path, "s")
    with pytest.raises(StudyError, match="the study 's' has not begun"):
        study.provenance()
    (study.folder / "provenance.json").write_text("{")
    with pytest.raises(StudyError, match=r"provenance\.json cannot be read"):
        study.provenance()


def test_a_study_that_lost_its_record_is_not_begun_anew(tmp_path: Path) -> None:
    with_a_trial(tmp_path)
    (tmp_path / "s" / "trials" / "0000").mkdir(parents=True)
    (tmp_path / "s" / "optuna.db").unlink()
    (tmp_path / "s" / "driver.lock").touch()
    with pytest.raises(StudyError, match=r"optuna\.db cannot be read: it is gone or empty"):
        create_study(spec_of(), tmp_path, "s")
    assert (tmp_path / "s" / "trials" / "0000").is_dir()
