"""What a study says about channels before it starts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from raw_data import SHAPE, boxes, make_data, save
from spec_text import parse

from tuner.cli.main import main
from tuner.study.data import check_data, prepare_data

MODEL = "model_name: unet3d, model_params: {channels: [4, 8], strides: [2]}, patch_size: [8, 8, 8]"
RATE = "learning_rate: {loguniform: [1e-4, 1e-2]}"
HINT = (
    "warning: cases may lack channels, but channel_dropout is 0: the network learns to do without "
    "one from the 1 of 6 cases that lack one, and from nothing else; set e.g. channel_dropout: "
    "0.2, or let it vary"
)


def text(folder: Path, more: str = "", space: str = RATE) -> str:
    return f"config: {{data_dir: {folder}, {MODEL}{more}}}\nspace: {{{space}}}\n"


@pytest.fixture
def two_channels(tmp_path: Path) -> Path:
    """Six cases of two channels, of which one lacks the second."""
    folder = tmp_path / "data"
    rng = np.random.default_rng(0)
    for case in range(6):
        save(folder / "labelsTr" / f"c{case}.nii.gz", boxes(1, 2))
        for channel in range(1 if case == 3 else 2):
            voxels = rng.normal(100, 10, size=SHAPE).astype(np.float32)
            save(folder / "imagesTr" / f"c{case}_{channel:04}.nii.gz", voxels)
    return make_data(folder, {}, channel_names={"0": "T1", "1": "T2"})


def test_allowed_missing_channels_without_dropout_are_hinted_at(two_channels: Path) -> None:
    spec = parse(text(two_channels, ", missing_channels: allowed"))
    told: list[str] = []
    found = prepare_data(spec, on_progress=told.append)
    assert HINT in told
    assert "warning: 1 of 6 cases lack channels, which are 0 for them: T2 in 1" in told
    assert found.spec.config["input_channels"] == 2
    _, lines = check_data(spec)
    assert HINT in lines
    for more, space in (
        (", missing_channels: allowed, channel_dropout: 0.1", RATE),
        (", missing_channels: allowed", "channel_dropout: {uniform: [0, 0.5]}"),
    ):
        _, lines = check_data(parse(text(two_channels, more, space)))
        assert not any("channel_dropout" in line for line in lines)


def test_the_command_names_what_is_missing_and_the_way_out(
    two_channels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(text(two_channels))
    assert main(["check", str(space)]) == 2
    error = capsys.readouterr().err
    assert "c3_0001.nii.gz is missing" in error
    assert "missing_channels: allowed" in error
    assert main(["check", str(space), "--set", "missing_channels=allowed"]) == 0
    assert HINT in capsys.readouterr().out


def test_dropout_of_the_only_channel_and_a_doubtful_name_are_told(tmp_path: Path) -> None:
    cases = {f"c{index}": boxes(1, 2) for index in range(6)}
    folder = make_data(tmp_path / "data", cases, modality="abdomen CT")
    _, lines = check_data(parse(text(folder, ", channel_dropout: 0.5")))
    said = "\n".join(lines)
    assert "channel_dropout has no effect: the data have one channel (abdomen CT)" in said
    assert "the channel 'abdomen CT' is normalised by z-score" in said
    _, lines = check_data(parse(text(folder, ", normalisation: {abdomen CT: CT}")))
    assert not any(line.startswith("warning") for line in lines)
