"""Files of a user beside and inside every folder that a command writes: none is lost or changed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tuner.cli.main import main
from tuner.spec.load import load_spec
from tuner.study.create import create_study
from tuner.study.folder import driver_lock
from tuner.study.open import open_study

NEVER_SPENT = ["--gpu-hours", "1", "--gpus-per-trial", "0"]
"""A budget that trials without a GPU never spend, so that the study cannot start."""


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory, space_file: Path) -> Path:
    """A space for three toy trials, two of which lose their checkpoints."""
    head, _, _ = space_file.read_text().partition("space:\n")
    path = tmp_path_factory.mktemp("foreign") / "toy.yaml"
    path.write_text(
        head.replace("max_epochs: 4", "max_epochs: 2")
        + "space:\n  learning_rate: {loguniform: [1e-4, 1e-1]}\n"
        + "search: {num_trials: 3, searcher: random, seed: 2, default_first: false}\n"
        + "policy: none\ncheckpoints: {keep: 1}\nexport: {ensemble: 1}\n"
        + "resources: {max_concurrent: 1, cpu: 1, gpu: 0}\n"
    )
    return path


def contents(folder: Path) -> dict[str, str]:
    """Everything in a folder: digests of files, and folders."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }


def put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"mine: {name}")


def user_data(studies: Path, space: Path) -> None:
    put(studies / "s", "imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "notes.txt")


def names_of_ours(studies: Path, space: Path) -> None:
    """Files that bear the names of a study's, but no lock is among them."""
    put(studies / "s", "spec.yaml", "spec.resolved.yaml", "provenance.json", "results.csv")


def record_of_another(studies: Path, space: Path) -> None:
    put(studies / "s", "optuna.db", "driver.lock")


def a_file(studies: Path, space: Path) -> None:
    put(studies, "s")


def empty(studies: Path, space: Path) -> None:
    (studies / "s").mkdir()


def absent(studies: Path, space: Path) -> None:
    """Nothing bears the name."""


def not_begun(studies: Path, space: Path) -> None:
    create_study(load_spec(space), studies, "s").record.close()
    put(studies / "s", "notes.txt", "trials/0000/best.ckpt.mine", "ray/mine.txt", "export/mine.txt")


def commands(space: Path, target: Path) -> list[list[str]]:
    """Every command on a study; those that would run it cannot."""
    other = ["--seed", "9"]
    return [
        ["run", str(space), "--name", "s", *NEVER_SPENT],
        ["run", str(space), "--name", "s", *other, *NEVER_SPENT],
        ["run", str(space), "--name", "s", *NEVER_SPENT, "--export", str(target)],
        ["list"],
        ["status", "s"],
        ["export", "s"],
        ["export", "s", "-o", str(target)],
    ]


REFUSED = [user_data, names_of_ours, record_of_another, a_file, empty, absent]


@pytest.mark.parametrize("state", REFUSED)
def test_a_study_that_cannot_start_changes_nothing(
    cluster: str,
    space: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    state: Callable[[Path, Path], None],
) -> None:
    studies, target = tmp_path / "studies", tmp_path / "target"
    put(studies, "notes.txt", "Task04/imagesTr/a.nii.gz", "s.txt", ".s.partial/mine.txt")
    put(target, "predictions/a.nii.gz")
    state(studies, space)
    before = contents(tmp_path)
    for words in commands(space, target):
        code = main([*words, "--studies-dir", str(studies)])
        error = capsys.readouterr().err
        assert code == (2 if words[0] != "list" or "cannot be read" in error else code), words
        assert "Traceback" not in error
        assert contents(tmp_path) == before, words


def test_a_refusal_names_what_is_there(
    space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    user_data(tmp_path, space)
    assert main(["run", str(space), "--name", "s", "--studies-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "holds files that are not a study's (imagesTr, labelsTr, notes.txt)" in error
    assert "choose another --name or another --studies-dir" in error


def test_folders_that_a_false_start_made_go_with_it(
    cluster: str, space: Path, tmp_path: Path
) -> None:
    studies = tmp_path / "made" / "studies"
    words = ["run", str(space), "--name", "s", *NEVER_SPENT, "--studies-dir", str(studies)]
    assert main(words) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_study_that_has_not_begun_may_be_given_again(
    cluster: str, space: Path, tmp_path: Path
) -> None:
    not_begun(tmp_path, space)
    mine = {name: digest for name, digest in contents(tmp_path).items() if "mine" in name}
    for words in commands(space, tmp_path / "target"):
        main([*words, "--studies-dir", str(tmp_path)])
        now = contents(tmp_path)
        assert {name: now.get(name) for name in mine} == mine, words
    # files in the folder of a trial that never was: neither used nor lost
    assert open_study(tmp_path, "s").spec.search.seed == 2
    (tmp_path / "s" / "trials" / "0000" / "best.ckpt.mine").rename(tmp_path / "s" / "mine.txt")
    (tmp_path / "s" / "trials" / "0000").rmdir()
    words = ["run", str(space), "--name", "s", "--seed", "9", *NEVER_SPENT]
    assert main([*words, "--studies-dir", str(tmp_path)]) == 2
    assert open_study(tmp_path, "s").spec.search.seed == 9
    assert (tmp_path / "s" / "notes.txt").is_file()
    assert (tmp_path / "s" / "ray" / "mine.txt").is_file()


def test_a_start_that_was_killed_is_no_obstacle(cluster: str, space: Path, tmp_path: Path) -> None:
    put(tmp_path / "s", "driver.lock", "spec.yaml", "spec.resolved.yaml.partial")
    assert create_study(load_spec(space), tmp_path, "s").spec.search.seed == 2


def test_a_study_that_runs_is_not_touched(
    space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another spec of the same name, or the same again, while a driver is starting."""
    create_study(load_spec(space), tmp_path, "s").record.close()
    put(tmp_path / "s", "notes.txt")
    with driver_lock(tmp_path / "s"):
        before = contents(tmp_path)
        for words in (
            ["run", str(space), "--name", "s"],
            ["run", str(space), "--name", "s", "--seed", "9"],
            ["run", str(space), "--name", "s", "--num-trials", "9"],
            ["resume", "s"],
            ["resume", "s", "--num-trials", "9"],
        ):
            assert main([*words, "--studies-dir", str(tmp_path)]) == 2
            assert "another process runs the study 's' already" in capsys.readouterr().err
            assert contents(tmp_path) == before, words


def test_files_put_into_a_study_stay_there(
    cluster: str, space: Path, tmp_path: Path, toy: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """While it runs, when it has finished, and through resumes, prunes and exports."""
    studies = tmp_path / "studies"
    cache = Path(os.environ["SEGTUNE_CACHE"])
    put(studies, "notes.txt", "another/data.txt")
    put(cache, "mine.txt", "fingerprints.json.mine")
    prepared = [path for path in cache.iterdir() if path.is_dir()]
    for folder in prepared:
        put(folder, "mine.txt")
    faults = {1: {"epoch": 1, "what": "the user's files", "times": 1}}
    toy.beside(studies / "s", toy.FAULTS).write_text(json.dumps(faults))
    where = ["--studies-dir", str(studies)]
    assert main(["run", str(space), "--name", "s", *where]) == 0, capsys.readouterr().err
    study = studies / "s"
    # those that were put there by a trial; they are whole
    before = contents(tmp_path)
    mine = [path for path in toy.put_files(study) if path.is_file()]
    assert contents(tmp_path) == before
    kept = {*study.glob("trials/*/best.ckpt")}
    assert len(kept & {study / "trials" / f"000{number}" / "best.ckpt" for number in range(3)}) == 1

    refused = [
        ["run", str(space), "--name", "s", "--seed", "9"],
        ["run", str(space), "--name", "s", "--num-trials", "4"],
        ["run", str(space), "--name", "s", "--export", str(study)],
        ["export", "s"],
        ["export", "s", "-o", str(study)],
        ["export", "s", "-o", str(studies)],
    ]
    for words in refused:
        assert main([*words, *where]) == 2, words
        assert contents(tmp_path) == before, words
    for words in (["list"], ["status", "s"], ["run", str(space), "--name", "s"], ["resume", "s"]):
        assert main([*words, *where]) == 0, words
        assert contents(tmp_path) == before, words

    assert main(["resume", "s", "--num-trials", "5", *where]) == 0
    after = contents(tmp_path)
    for path in mine:
        name = str(path.relative_to(tmp_path))
        assert after.get(name) == before[name], name
    assert (studies / "another" / "data.txt").is_file()
    assert (cache / "mine.txt").is_file()
    assert all((path / "mine.txt").is_file() for path in prepared)


def test_a_folder_of_the_users_in_the_way_of_the_confirmation(
    cluster: str, space: Path, tmp_path: Path, toy: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    text = space.read_text() + "confirm: {top: 1, seeds: 2}\n"
    confirmed = tmp_path / "confirmed.yaml"
    confirmed.write_text(text)
    create_study(load_spec(confirmed), tmp_path / "studies", "s").record.close()
    put(tmp_path / "studies" / "s" / "confirm", "mine.txt")
    before = contents(tmp_path)
    where = ["--studies-dir", str(tmp_path / "studies")]
    assert main(["status", "s", *where]) == 0
    capsys.readouterr()
    assert main(["run", str(confirmed), "--name", "s", *where]) == 2
    assert "confirm holds files that are not a confirmation's (mine.txt)" in capsys.readouterr().err
    assert contents(tmp_path) == before
