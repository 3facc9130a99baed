"""Every command and example of the README works as printed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tuner.cli.main import main
from tuner.errors import SpecError
from tuner.spec.load import parse_spec

ROOT = Path(__file__).parents[2]
SETTINGS = (
    *("steps_per_epoch=1", "warmup_epochs=0", "policy=none"),
    "resources.logical_gpus=true",
)
SHORTER = {
    "run": [
        *("--num-trials", "2", "--max-epochs", "1"),
        *(word for setting in SETTINGS for word in ("--set", setting)),
    ]
}
"""What the test adds to a command, so that it ends soon."""


def blocks(language: str, document: str = "README.md") -> list[str]:
    text = (ROOT / document).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(program: str, document: str = "README.md") -> list[list[str]]:
    lines = "\n".join(blocks("bash", document)).splitlines()
    parsed = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in parsed if words and words[0] == program]


def test_make_targets_exist() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert [words[0] for words in commands("make")] == ["run", "test"]
    assert {"run", "test"} <= set(targets)


def test_own_data_in_five_lines(
    cluster: str, shared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Task04_Hippocampus").symlink_to(shared_dir / "data" / "Task04_Hippocampus")
    (tmp_path / "search_spaces").symlink_to(ROOT / "search_spaces")
    monkeypatch.chdir(tmp_path)
    own_data = [words for words in commands("tune") if "search_spaces/dformer.yaml" not in words]
    assert [words[0] for words in own_data] == ["check", "run", "status", "export", "predict"]
    (convert,) = (
        words
        for words in commands("tune", "docs/how-to/export-and-predict.md")
        if words[0] == "convert"
    )
    own_data += [["list"], ["resume", "hippocampus"], convert]
    for words in own_data:
        assert main([*words, *SHORTER.get(words[0], [])]) == 0, words
    assert (tmp_path / "predictions" / "hippocampus_001.nii.gz").is_file()
    assert (tmp_path / "network.onnx").is_file()


def test_the_space_in_the_readme_is_valid() -> None:
    (text,) = blocks("yaml")
    assert parse_spec(text, source="README.md").rungs() == (4, 12, 36)
    goals, budgets, confirm = (
        "\n".join(blocks("yaml", f"docs/how-to/{page}.md"))
        for page in ("several-metrics", "budgets", "confirm")
    )
    together = yaml.safe_load(text) | yaml.safe_load(confirm)
    for part in (goals, budgets):
        together |= yaml.safe_load(part)
    spec = parse_spec(yaml.safe_dump(together), source="README.md")
    assert len(spec.objectives) == 2
    assert spec.search.epoch_budget == 2000
    assert spec.confirm is not None


def test_a_population_cannot_vary_what_changes_the_network() -> None:
    (population,) = blocks("yaml", "docs/how-to/population-training.md")
    assert parse_spec(population, source="population.yaml").population == 8
    varied = yaml.safe_load(population)
    varied["space"]["patch_size"] = {"choice": {"small": [16, 32, 32], "large": [32, 32, 32]}}
    with pytest.raises(SpecError, match="patch_size"):
        parse_spec(yaml.safe_dump(varied), source="population.yaml")


def test_the_python_example_runs(tmp_path: Path) -> None:
    (code,) = blocks("python", "docs/how-to/training-library.md")
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert 0 <= float(result.stdout.split()[-1]) <= 1


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
