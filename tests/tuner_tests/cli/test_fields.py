from __future__ import annotations

import pytest

from tuner.cli.main import main
from tuner.spec.reference import all_fields


def test_all_fields_are_listed_with_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fields"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[0]: line for line in lines if line.startswith("  ") and line.split()}
    for row in all_fields():
        assert row.default[:20] in listed[row.key]


def test_one_field_is_shown_with_its_full_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fields", "class_weights"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "The presets are those of `training.class_weights`." in shown
    assert "default uniform" in shown
    assert "search class_weights: {choice:" in shown


def test_a_section_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fields", "checkpoints"]) == 0
    shown = capsys.readouterr().out
    assert "section checkpoints" in shown
    assert "checkpoints.disk_budget" in shown
    assert "learning_rate" not in shown


def test_a_wrong_name_is_a_mistake_of_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fields", "batch_size"]) == 2
    assert "did you mean 'train_batch_size' or 'val_batch_size'?" in capsys.readouterr().err
