"""What is left of paths in what an exported model tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from training.bundle.portable import portable_config, without_paths
from training.config import ModelTrainingConfig


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/jane doe/my data/Task04", "Task04"),
        ("~/studies/liver/", "liver"),
        (r"C:\Users\jane\data", "data"),
        ("--data-dir=/home/jane/x", "--data-dir=x"),
        ("read /home/jane/a.nii.gz, then (/home/jane/b.nii.gz)", "read a.nii.gz, then (b.nii.gz)"),
        ("warm_start=[/home/jane/a, /home/jane/b]", "warm_start=[a, b]"),
        # no paths
        ("lesions: CT/MR, 5 training cases; labels tumour/oedema", None),
        ("val 0.5 / 0.7", None),
        ("Linux-6.1-x86_64-with-glibc2.36", None),
        ("https://example.org/x", None),
        (3, None),
        (None, None),
    ],
)
def test_a_path_is_its_last_part(value: Any, expected: Any) -> None:
    expected = value if expected is None else expected
    assert without_paths(value) == expected
    assert without_paths({"a": [value, {"b": value}]}) == {"a": [expected, {"b": expected}]}


def test_a_config_leaves_its_folders_behind() -> None:
    config = ModelTrainingConfig(data_dir=Path("/home/jane/data"), learning_rate=0.5)
    kept = portable_config(config)
    assert set(config.flat()) - set(kept) == {"data_dir", "log_dir", "checkpoint_dir"}
    assert ModelTrainingConfig(**kept).learning_rate == 0.5
