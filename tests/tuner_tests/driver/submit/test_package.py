"""What is sent to a cluster with a study, and what is refused before."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tuner.cli.options import overrides_of
from tuner.cli.parser import build_parser
from tuner.driver.submit.package import Submission, pack_study, refuse_data_folder
from tuner.errors import SpecError, StudyError
from tuner.spec.load import load_spec
from tuner.spec.yaml_source import Override

SPACE = """\
config: {data_dir: phantom, loss: sent_losses:mine}
space: {learning_rate: {loguniform: [1e-5, 1e-2]}}
"""


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "liver.yaml").write_text(SPACE)
    (tmp_path / "sent_losses.py").write_text("import sent_parts\ndef mine(config): ...\n")
    (tmp_path / "sent_parts.py").write_text("WEIGHT = 2\n")
    (tmp_path / "patients.csv").write_text("names that must not leave the machine")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path / "liver.yaml"
    for name in ("sent_losses", "sent_parts"):
        sys.modules.pop(name, None)


def pack(space: Path, studies_dir: str = "/shared/studies", **options: object) -> Submission:
    overrides = options.pop("overrides", {})
    spec = load_spec(space, overrides)
    return pack_study(spec, "liver", studies_dir=studies_dir, overrides=overrides, **options)


def test_the_space_and_the_code_that_it_names_are_sent_and_nothing_else(
    space: Path, tmp_path: Path
) -> None:
    sent = pack(space)
    target = tmp_path / "sent"
    target.mkdir()
    sent.write(target)
    files = sorted(str(file.relative_to(target)) for file in target.rglob("*") if file.is_file())
    assert files == ["code/sent_losses.py", "code/sent_parts.py", "liver.yaml"]
    assert (target / "liver.yaml").read_text() == SPACE


def test_the_command_on_the_cluster_reads_as_the_command_here(space: Path) -> None:
    overrides = {
        "config.max_epochs": Override("7", "--max-epochs 7"),
        "search.warm_start": Override(["kidney", "lung"], "--warm-start kidney"),
        "config.optimizer": Override("sgd", "--set optimizer=sgd"),
    }
    sent = pack(space, overrides=overrides, export="/shared/it's here")
    words = shlex.split(sent.shown)[1:]
    options = build_parser().parse_args(words)
    there = load_spec(space, overrides_of(options))
    assert there == load_spec(space, overrides)
    assert (options.name, str(options.studies_dir)) == ("liver", "/shared/studies")
    assert str(options.export) == "/shared/it's here"
    assert sent.program[:2] == ["-m", "tuner"]


def test_a_driver_that_is_to_be_started_again_has_a_supervisor(space: Path) -> None:
    program = pack(space, resubmit=3).program
    assert program[:4] == ["-m", "tuner.driver.submit.supervise", "3", "run"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"studies_dir": "studies"}, "--studies-dir studies is a relative path"),
        ({"export": "s3://bucket"}, "--export s3://bucket is an address"),
        ({"export": "bundle"}, "--export bundle is a relative path"),
        (
            {
                "overrides": {
                    "config.splits_file": Override("splits.json", "--set"),
                    "config.fold": Override("0", "--set"),
                }
            },
            "splits_file splits.json is a relative path",
        ),
        (
            {"overrides": {"config.data_dir": Override("Task03", "--data-dir Task03")}},
            "data_dir Task03 is a relative path.*--set data_dir=/shared/Task03",
        ),
    ],
)
def test_a_path_that_means_nothing_there_is_refused(
    space: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(StudyError, match=message):
        pack(space, **options)


def test_code_that_is_not_found_is_told_with_its_line(space: Path) -> None:
    space.write_text(SPACE.replace("sent_losses:mine", "sent_losses:yours"))
    with pytest.raises(SpecError, match=re.escape(f"{space}:1:") + ".*sent_losses"):
        pack(space)


def test_data_are_not_sent(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is data, and a study is sent with a search space"):
        refuse_data_folder(tmp_path)
