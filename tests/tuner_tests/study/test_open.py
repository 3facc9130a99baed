"""Opening and showing studies takes none of the libraries that trials need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tuner.spec.load import parse_spec
from tuner.study.create import create_study

SPACE = "space: {learning_rate: {loguniform: [1e-4, 1e-1]}}\n"

SCRIPT = """
import sys
from tuner.cli.main import main
assert main(sys.argv[1:]) == 0
loaded = {"torch", "ray", "pytorch_lightning", "monai"} & sys.modules.keys()
assert not loaded, loaded
"""


@pytest.mark.parametrize("words", [["list"], ["status", "s"]])
def test_a_study_is_shown_without_torch_or_ray(tmp_path: Path, words: list[str]) -> None:
    study = create_study(parse_spec(SPACE, source="s.yaml"), tmp_path, "s")
    study.record.propose({"learning_rate": 1e-3}, "test")
    study.record.close()
    command = [sys.executable, "-c", SCRIPT, *words, "--studies-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 interrupted" in done.stdout
