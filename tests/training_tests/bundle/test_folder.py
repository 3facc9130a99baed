"""What an export leaves alone, and that it replaces a bundle whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from training.bundle.folder import (
    BUNDLE_FILES,
    STAGING,
    check_bundle_folder,
    member_folder,
    replaced_bundle,
)
from training.errors import BundleError

ROOT = Path(__file__).parents[3]


ONE = BUNDLE_FILES
TWO = (
    *(f"{member_folder(n)}/{name}" for n in range(2) for name in ("weights.pt", "config.yaml")),
    *("preprocessing.json", "bundle.json"),
)
"""Files of a bundle of one network, and of one of two."""


def write(folder: Path, version: str, files: Sequence[str] = ONE) -> None:
    with replaced_bundle(folder) as new:
        fill(new, version, files)


def fill(new: Path, version: str, files: Sequence[str] = ONE) -> None:
    for name in files:
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        (new / name).write_text(f'{{"format_version": "{version} {name}"}}')


def is_whole(folder: Path, version: str, files: Sequence[str] = ONE) -> bool:
    found = {
        path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else ""
        for path in folder.rglob("*")
        if path.is_file() or not any(path.iterdir())
    }
    return found == {name: f'{{"format_version": "{version} {name}"}}' for name in files}


def test_a_bundle_is_made_and_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "bundle"
    write(folder, "old")
    assert is_whole(folder, "old")
    write(folder, "new")
    assert is_whole(folder, "new")
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize(("old", "new"), [(ONE, TWO), (TWO, ONE), (TWO, (*TWO[:2], *TWO[4:]))])
def test_no_network_of_an_older_bundle_is_left(
    tmp_path: Path, old: Sequence[str], new: Sequence[str]
) -> None:
    write(tmp_path, "old", old)
    assert is_whole(tmp_path, "old", old)
    write(tmp_path, "new", new)
    assert is_whole(tmp_path, "new", new)


@pytest.mark.parametrize("mine", ["members/notes.txt", "members/0/notes.txt", "members/best/a"])
def test_files_among_the_members_are_the_users(tmp_path: Path, mine: str) -> None:
    write(tmp_path, "old", TWO)
    (tmp_path / mine).parent.mkdir(exist_ok=True)
    (tmp_path / mine).write_text("mine")
    with pytest.raises(BundleError, match=r"holds files that are not .* \(members\)"):
        write(tmp_path, "new")
    (tmp_path / mine).unlink()
    if mine == "members/best/a":
        (tmp_path / "members" / "best").rmdir()
    assert is_whole(tmp_path, "old", TWO)


def test_an_empty_folder_is_filled_and_stays_the_same_one(tmp_path: Path) -> None:
    """It may be a mount point, which cannot be renamed."""
    before = tmp_path.stat().st_ino
    write(tmp_path, "new")
    assert tmp_path.stat().st_ino == before
    assert is_whole(tmp_path, "new")


@pytest.mark.parametrize(
    "foreign",
    ["predictions/a.nii.gz", "notes.txt", ".hidden", f"{STAGING}x/mine.txt", f"{STAGING}y/new/a"],
)
def test_a_bundle_beside_foreign_files_is_not_replaced(tmp_path: Path, foreign: str) -> None:
    write(tmp_path, "old")
    path = tmp_path / foreign
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    with pytest.raises(BundleError, match=r"holds files that are not an exported model's \("):
        write(tmp_path, "new")
    assert path.read_text() == "mine"
    assert "old" in (tmp_path / "bundle.json").read_text()


@pytest.mark.parametrize(
    ("name", "content"), [("config.yaml", "a: 1"), ("weights.pt", ""), ("bundle.json", "{}")]
)
def test_a_file_of_that_name_alone_is_the_users(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(BundleError, match=rf"model's \({name}\)"):
        write(tmp_path, "new")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == content


def test_a_folder_of_a_bundle_files_name_is_the_users(tmp_path: Path) -> None:
    write(tmp_path, "old")
    (tmp_path / "weights.pt").unlink()
    (tmp_path / "weights.pt").mkdir()
    (tmp_path / "weights.pt" / "mine").touch()
    with pytest.raises(BundleError, match=r"\(weights\.pt"):
        write(tmp_path, "new")
    assert (tmp_path / "weights.pt" / "mine").is_file()


def test_what_fails_before_the_end_leaves_the_old_bundle(tmp_path: Path) -> None:
    write(tmp_path / "bundle", "old")

    def fail(folder: Path) -> None:
        with replaced_bundle(folder) as new:
            fill(new, "new")
            raise BundleError("it predicts something else")

    with pytest.raises(BundleError, match="something else"):
        fail(tmp_path / "bundle")
    assert is_whole(tmp_path / "bundle", "old")
    with pytest.raises(BundleError, match="something else"):
        fail(tmp_path / "parent" / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


LAYOUTS = [(ONE, ONE), (ONE, TWO), (TWO, ONE), (TWO, TWO), ((), ONE), ((), TWO)]
"""Files of the old bundle, which may not be there, and of the new one."""


def moves_of(files: Sequence[str]) -> int:
    return len({Path(name).parts[0] for name in files})


@pytest.mark.parametrize(
    ("old", "new", "moves"),
    [(old, new, n) for old, new in LAYOUTS for n in range(moves_of(old) + moves_of(new) + 2)],
)
def test_a_replacement_that_is_cut_off_is_undone(
    tmp_path: Path, old: Sequence[str], new: Sequence[str], moves: int
) -> None:
    """It fails, or its process dies, after so many moves.

    The old entries are moved out, the folder with them is renamed, and the new ones are moved in.
    """
    finished = moves == moves_of(old) + moves_of(new) + 1
    folder = tmp_path / "failed"
    if old:
        write(folder, "old", old)
    done = cut_off(folder, new, moves, "raise OSError(28, 'No space left on device')")
    if finished:
        assert is_whole(folder, "new", new)
    else:
        assert "No space left" in done.stdout, done
        assert is_whole(folder, "old", old) if old else not folder.exists()
    folder = tmp_path / "killed"
    if old:
        write(folder, "old", old)
    done = cut_off(folder, new, moves, "os.kill(os.getpid(), signal.SIGKILL)")
    if not finished:
        assert done.returncode == -signal.SIGKILL
        # never a mixture that would be taken for a bundle
        manifest = folder / "bundle.json"
        if manifest.is_file():
            assert "old" in manifest.read_text()
            assert all("old" in (folder / name).read_text() for name in old)
    write(folder, "next")
    assert is_whole(folder, "next")


def cut_off(
    folder: Path, files: Sequence[str], moves: int, end: str
) -> subprocess.CompletedProcess[str]:
    """Replace a bundle in a process of its own that ends after so many moves."""
    program = f"""
import os, signal, sys
from pathlib import Path
from training.bundle.folder import replaced_bundle
from training.errors import BundleError
moves, rename = 0, Path.rename
def cut_off(path, target):
    global moves
    if moves == {moves}:
        {end}
    moves += 1
    return rename(path, target)
Path.rename = cut_off
try:
    with replaced_bundle(Path(sys.argv[1])) as new:
        for name in {tuple(files)!r}:
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_text('{{"format_version": "new ' + name + '"}}')
except BundleError as error:
    print(error)
"""
    return subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_a_cut_off_replacement_comes_back_when_the_next_one_fails(tmp_path: Path) -> None:
    """The old files lie in the hidden folder of the export that was killed."""
    write(tmp_path, "old")
    hidden = tmp_path / f"{STAGING}killed"
    (hidden / "new").mkdir(parents=True)
    (hidden / "old").mkdir()
    for name in ("bundle.json", "preprocessing.json"):
        (tmp_path / name).rename(hidden / "old" / name)
    for name in BUNDLE_FILES:
        (hidden / "new" / name).write_text("half")
    with pytest.raises(RuntimeError), replaced_bundle(tmp_path):
        raise RuntimeError
    assert is_whole(tmp_path, "old")


def test_two_exports_at_once(tmp_path: Path) -> None:
    with replaced_bundle(tmp_path) as new:
        fill(new, "first")
        with pytest.raises(BundleError, match="another process exports to"):
            write(tmp_path, "second")
    assert is_whole(tmp_path, "first")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("file", "is not a folder"),
        ("file/bundle", "cannot be written"),
        ("x" * 300, "cannot be written"),
        ("s3://bucket/model", "is an address"),
    ],
)
def test_a_target_that_cannot_be_written_is_known_before(
    tmp_path: Path, target: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BundleError, match=message):
        check_bundle_folder(Path(target))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    check_bundle_folder(Path("new/bundle"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_bundle_is_readable_by_others_as_other_files_are(tmp_path: Path) -> None:
    write(tmp_path / "bundle", "new")
    (tmp_path / "usual").mkdir()
    (tmp_path / "usual.txt").touch()
    assert (tmp_path / "bundle").stat().st_mode == (tmp_path / "usual").stat().st_mode
    for path in (tmp_path / "bundle").iterdir():
        assert path.stat().st_mode == (tmp_path / "usual.txt").stat().st_mode
