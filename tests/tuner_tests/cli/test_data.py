"""The commands `tune data ...`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from raw_data import SHAPE, boxes, make_data, save

import tuner
from tuner.cli.main import main


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve cases without foreground, and one of another class."""
    empty = np.zeros(SHAPE, np.uint8)
    labels = {f"case_{number:02}": empty for number in range(12)}
    folder = make_data(tmp_path / "data", labels | {"case_12": boxes(1, 2)})
    rng = np.random.default_rng(1)
    for case in (*labels, "case_12"):
        save(folder / "imagesTr" / f"{case}.nii.gz", rng.normal(size=SHAPE).astype(np.float32))
    return folder


def test_a_check_prints_kinds_files_and_ways_out(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", str(data)]) == 0
    shown = capsys.readouterr().out
    assert "warning: cases whose label map is all background (12)" in shown
    assert f"{data}/labelsTr/case_00.nii.gz: every voxel is background" in shown
    assert "case_11.nii.gz" not in shown
    assert "... and 2 more: --all shows them" in shown
    assert "leave out those that nobody labelled" in shown
    assert "13 cases, channels MRI, labels background, organ, lesion" in shown
    assert main(["data", "check", str(data), "--all"]) == 0
    assert "case_11.nii.gz" in capsys.readouterr().out


def test_an_error_ends_with_code_1_and_a_document_says_all(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(data / "labelsTr" / "case_03.nii.gz", np.full(SHAPE, 9, np.uint8))
    assert main(["data", "check", str(data)]) == 1
    shown = capsys.readouterr().out
    assert "error: label maps whose values cannot be used (1)" in shown
    assert main(["data", "check", str(data), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert [each["case"] for each in document["findings"] if each["severity"] == "error"] == [
        "case_03"
    ]
    assert len(document["cases"]) == 13
    # without voxels nothing is known of labels
    assert main(["data", "check", str(data), "--headers-only"]) == 0


def test_a_folder_that_is_not_there_is_a_mistake_of_the_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", str(tmp_path / "nowhere")]) == 2
    assert "error: there is no data folder" in capsys.readouterr().err


@pytest.fixture
def table(data: Path) -> Path:
    """A CSV of the cases, with names of its own."""
    rows = ["image,label,case"]
    rows += [
        f"data/imagesTr/case_{number:02}.nii.gz,data/labelsTr/case_{number:02}.nii.gz,p{number}"
        for number in (3, 12)
    ]
    path = data.parent / "cases.csv"
    path.write_text("\n".join(rows))
    return path


def test_a_conversion_can_be_checked_next(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = table.parent / "converted data"
    words = ["data", "convert", str(table), "-o", str(output), "--channels", "T1"]
    assert main([*words, "--labels", "organ=1,lesion=2", "--link"]) == 0
    shown = capsys.readouterr().out
    assert "2 cases, channels T1, labels background, organ, lesion" in shown
    next_line = next(line for line in shown.splitlines() if line.startswith("next"))
    command = shlex.split(next_line)[2:]
    assert command == ["data", "check", str(output)]
    assert main(command) == 0
    # a study reads it too
    assert tuner.check_data(output, progress=False).dataset is not None


def test_mistakes_of_a_conversion_are_said(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "convert", str(table), "-o", str(tmp_path / "out")]
    assert main(words) == 2
    assert "does not name its channels (1)" in capsys.readouterr().err
    for labels, problem in (
        ("organ", "write NAME=VALUE"),
        ("organ=one", "write NAME=VALUE"),
        ("organ=1,organ=2", "comes twice"),
        ("organ=1,lesion=1", "comes twice"),
    ):
        assert main([*words, "--channels", "T1", "--labels", labels]) == 2
        assert problem in capsys.readouterr().err
    assert main([*words, "--channels", "T1,"]) == 2
    assert "empty name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    assert main([*words[:-1], str(tmp_path / "file" / "out"), "--channels", "T1"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_group_of_commands_says_what_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["data", "--help"])
    assert end.value.code == 0
    assert "list all that is wrong or doubtful about data" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["data"])
    assert end.value.code == 2


def test_python_has_the_same_findings(data: Path) -> None:
    found = tuner.check_data(data, progress=False)
    assert found.ok
    assert {finding.kind for finding in found.warnings} >= {"no foreground", "rare class"}
