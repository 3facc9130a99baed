"""The code of a user's own in a study's folder: what is copied, and what is not touched."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from foreign_package import importable

from tuner.errors import SpecError, StudyError
from tuner.spec.load import parse_spec
from tuner.spec.plugins import import_plugins
from tuner.spec.study_spec import StudySpec
from tuner.study.code import code_folder, edited_code, keep_code, remove_code, study_code
from tuner.study.create import create_study

SPACE = """\
space:
  model_name: {choice: [liver_lab.nets:build_tiny, dynunet]}
  learning_rate: {loguniform: [1e-4, 1e-1]}
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Path]:
    with importable(tmp_path / "lab") as folder:
        yield folder


def spec_of(text: str = SPACE) -> StudySpec:
    return parse_spec(text, source="space.yaml")


def test_a_module_is_kept_with_what_it_imports(tmp_path: Path, lab: Path) -> None:
    (lab / "not_imported.py").write_text("")
    study = tmp_path / "study"
    study.mkdir()
    keep_code(study, spec_of())
    kept = set(json.loads((study / "code.json").read_text()))
    # the whole package, and the module beside it that one of its functions imports
    assert kept == {
        "lab_blocks.py",
        *(f"liver_lab/{path.name}" for path in (lab / "liver_lab").glob("*.py")),
    }
    for name in kept:
        assert (study / "code" / name).read_bytes() == (lab / name).read_bytes()
    assert code_folder(study) == study / "code"
    assert code_folder(study / "confirm") == study / "code"


def test_what_is_installed_is_not_kept(tmp_path: Path) -> None:
    names = SPACE.replace("liver_lab.nets:build_tiny", "monai.networks.nets:UNet")
    keep_code(tmp_path, spec_of(names))
    keep_code(tmp_path, spec_of(SPACE.replace("liver_lab.nets:build_tiny", "unetr")))
    assert list(tmp_path.iterdir()) == []
    assert code_folder(tmp_path) is None


def test_files_of_the_user_are_neither_replaced_nor_removed(tmp_path: Path, lab: Path) -> None:
    mine = tmp_path / "study" / "code" / "liver_lab" / "nets.py"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(StudyError, match="is in the way: the study would keep its code there"):
        keep_code(tmp_path / "study", spec_of())
    assert mine.read_text() == "mine"
    mine.rename(mine.with_name("notes.txt"))
    keep_code(tmp_path / "study", spec_of())
    # given again, as with another spec: its own files alone are replaced
    keep_code(tmp_path / "study", spec_of())
    remove_code(tmp_path / "study")
    left = [path for path in (tmp_path / "study").rglob("*") if path.is_file()]
    assert left == [mine.with_name("notes.txt")]


def test_a_study_that_cannot_start_leaves_no_code(tmp_path: Path, lab: Path) -> None:
    study = create_study(spec_of(), tmp_path / "studies", "lab")
    assert (study.folder / "code" / "liver_lab" / "nets.py").is_file()
    assert study.before is not None
    study.record.close()
    study.before.restore()
    assert not (tmp_path / "studies").exists()


def test_a_wrong_path_makes_no_study(tmp_path: Path, lab: Path) -> None:
    wrong = spec_of(SPACE.replace("build_tiny", "build_tinny"))
    place = r"space.yaml:2:25: model_name: .*did you mean 'build_tiny'"
    with pytest.raises(SpecError, match=place):
        create_study(wrong, tmp_path / "studies", "lab")
    assert not (tmp_path / "studies").exists()


def test_the_copy_of_a_study_goes_before_what_lies_beside_it(tmp_path: Path, lab: Path) -> None:
    before = list(sys.path)
    study = create_study(spec_of(), tmp_path / "studies", "lab")
    study.record.close()
    for name in [name for name in sys.modules if name.startswith(("liver_lab", "lab_blocks"))]:
        del sys.modules[name]
    try:
        opened = parse_spec(SPACE, source=study.folder / "spec.resolved.yaml")
        found = import_plugins(opened)["liver_lab.nets:build_tiny"]
        file = sys.modules[found.__module__].__file__
        assert file == str(study.folder / "code" / "liver_lab" / "nets.py")
    finally:
        sys.path[:] = before


def test_a_package_is_kept_with_its_data(tmp_path: Path, lab: Path) -> None:
    package = lab / "liver_lab"
    (package / "settings.json").write_text("{}")
    # not imported: a template, a study that lies in the package, what tools leave
    (package / "template.py").write_text("class {{ name }}:\n")
    for name in ("studies/one/spec.resolved.yaml", "studies/one/code/liver_lab/a.py", ".git/b.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("")
    study = tmp_path / "study"
    study.mkdir()
    keep_code(study, spec_of())
    kept = set(json.loads((study / "code.json").read_text()))
    assert {"liver_lab/settings.json", "liver_lab/template.py"} <= kept
    assert not [name for name in kept if "studies" in name or ".git" in name]


def test_of_a_folder_that_is_no_package_python_files_are_kept(tmp_path: Path, lab: Path) -> None:
    (lab / "liver_lab" / "__init__.py").unlink()
    (lab / "liver_lab" / "scan.bin").write_bytes(bytes(8))
    study = tmp_path / "study"
    study.mkdir()
    keep_code(study, spec_of())
    kept = json.loads((study / "code.json").read_text())
    assert "liver_lab/nets.py" in kept
    assert "liver_lab/scan.bin" not in kept


def test_a_large_package_is_refused(
    tmp_path: Path, lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.study.code.MOST_BYTES", 2**20)
    (lab / "liver_lab" / "scans.bin").write_bytes(bytes(2**20))
    with pytest.raises(StudyError, match=r"largest .*scans\.bin.*keep data outside"):
        create_study(spec_of(), tmp_path / "studies", "lab")
    assert not (tmp_path / "studies").exists()


def test_a_study_imports_its_own_copy_whatever_was_imported_before(
    tmp_path: Path, lab: Path
) -> None:
    study = create_study(spec_of(), tmp_path / "studies", "lab")
    study.record.close()
    before, path = sys.modules["liver_lab.nets"], list(sys.path)
    assert edited_code(study.folder) == []
    with (lab / "liver_lab" / "nets.py").open("a") as file:
        file.write("NUMBER = 4\n")
    assert edited_code(study.folder) == ["liver_lab/nets.py"]
    with study_code(study.folder):
        found = import_plugins(study.spec)["liver_lab.nets:build_tiny"]
        file = sys.modules[found.__module__].__file__
        assert file == str(study.folder / "code" / "liver_lab" / "nets.py")
    assert sys.modules["liver_lab.nets"] is before
    assert str(study.folder / "code") not in sys.path
    assert sys.path[: len(path)] == path
    # so a later study takes what lies beside it
    other = create_study(spec_of(), tmp_path / "studies", "other")
    other.record.close()
    assert "NUMBER = 4" in (other.folder / "code" / "liver_lab" / "nets.py").read_text()
