"""A trial takes over another's weights: what is the other's then, and what stays its own."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import nn

from training.config import ModelTrainingConfig
from training.trainer import SegmentationTrainer
from tuner.config_files import config_file, set_aside_config
from tuner.epoch_gate import EpochGate
from tuner.inheritance import keep_snapshot, snapshot_file, take_over
from tuner.trial import METRICS_FILE

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
]


def trainer(folder: Path, epochs: int, rate: float, seed: int) -> SegmentationTrainer:
    """A run of one convolution on noise; it keeps a snapshot of each second epoch."""
    torch.manual_seed(seed)
    config = ModelTrainingConfig(
        num_classes=2,
        patch_size=(4, 4, 4),
        max_epochs=epochs,
        learning_rate=rate,
        optimizer="sgd",
        gpus=0,
        log_dir=folder,
        checkpoint_dir=folder,
    )
    data = torch.Generator().manual_seed(0)
    cases = [
        {
            "image": torch.randn(1, 4, 4, 4, generator=data),
            "label": torch.randint(0, 2, (4, 4, 4), generator=data),
        }
        for _ in range(4)
    ]
    loader = torch.utils.data.DataLoader(cases, batch_size=2)
    gate = EpochGate(
        lambda row: None,
        folder / METRICS_FILE,
        lambda epoch: None if epoch % 2 else keep_snapshot(folder, epoch),
    )
    network = nn.Conv3d(1, 2, 3, padding=1)
    return SegmentationTrainer(
        config, network, loader, loader, callbacks=[gate], progress_bar=False
    )


def trained(folder: Path, epochs: int, rate: float, seed: int) -> Path:
    trainer(folder, epochs, rate, seed).fit()
    return folder


def load(path: Path) -> dict:  # type: ignore[type-arg]
    return torch.load(path, weights_only=True)  # type: ignore[no-any-return]


@pytest.fixture
def donor(tmp_path: Path) -> Path:
    return trained(tmp_path / "0000", 3, 0.1, 1)


@pytest.fixture
def recipient(tmp_path: Path) -> Path:
    return trained(tmp_path / "0001", 2, 1e-4, 2)


def test_weights_are_the_others_and_the_past_its_own(donor: Path, recipient: Path) -> None:
    own = load(recipient / "last.ckpt")
    best = (recipient / "best.ckpt").read_bytes()
    assert take_over(recipient, donor, 2, recipient / METRICS_FILE) == ""
    merged, source = load(recipient / "last.ckpt"), load(snapshot_file(donor, 2))
    assert merged["epoch"] == source["epoch"] == 2
    for name, weight in source["state_dict"].items():
        assert torch.equal(merged["state_dict"][name], weight)
        assert not torch.equal(own["state_dict"][name], weight)
    assert merged["callbacks"]["EpochGate"] == own["callbacks"]["EpochGate"]
    (checkpoint,) = (key for key in own["callbacks"] if key.startswith("EpochCheckpoint"))
    assert merged["callbacks"][checkpoint] == own["callbacks"][checkpoint]
    assert (recipient / "best.ckpt").read_bytes() == best
    # once more is as good as once
    take_over(recipient, donor, 2, recipient / METRICS_FILE)
    again = load(recipient / "last.ckpt")
    assert again["callbacks"]["EpochGate"] == merged["callbacks"]["EpochGate"]


def test_it_goes_on_as_the_other_would_have_with_its_values(donor: Path, recipient: Path) -> None:
    """The epoch after it is the donor's own third epoch, bit for bit, at the same rate."""
    take_over(recipient, donor, 2, recipient / METRICS_FILE)
    run = trainer(recipient, 3, 0.1, 3)
    run.fit(resume=True)
    expected = load(donor / "last.ckpt")["state_dict"]
    for name, weight in load(recipient / "last.ckpt")["state_dict"].items():
        assert torch.equal(weight, expected[name])
    with (recipient / METRICS_FILE).open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    # the first two as this trial reported them, not as the donor did
    assert [float(row["lr"]) for row in rows] == [1e-4, 1e-4, 0.1]


def test_a_snapshot_stays_what_its_score_is_of(donor: Path, recipient: Path) -> None:
    own = snapshot_file(recipient, 2).read_bytes()
    take_over(recipient, donor, 2, recipient / METRICS_FILE)
    trainer(recipient, 3, 0.1, 3).fit(resume=True)
    assert snapshot_file(recipient, 2).read_bytes() == own


def test_a_trial_that_went_on_is_left_alone(donor: Path, recipient: Path) -> None:
    trainer(recipient, 3, 0.1, 3).fit(resume=True)
    before = (recipient / "last.ckpt").read_bytes()
    assert take_over(recipient, donor, 2, recipient / METRICS_FILE) == ""
    assert (recipient / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_without_a_good_snapshot_it_goes_on_with_its_own(
    donor: Path, recipient: Path, how: str
) -> None:
    snapshot = snapshot_file(donor, 2)
    if how == "missing":
        snapshot.unlink()
    else:
        content = bytearray(snapshot.read_bytes())
        content[len(content) // 2] ^= 0xFF
        snapshot.write_bytes(bytes(content))
    before = (recipient / "last.ckpt").read_bytes()
    note = take_over(recipient, donor, 2, recipient / METRICS_FILE)
    assert "trial 0000 at epoch 2 cannot be taken over" in note
    assert (recipient / "last.ckpt").read_bytes() == before


def test_without_checkpoints_of_its_own_it_never_touches_those_of_the_other(
    donor: Path, recipient: Path
) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        (recipient / name).unlink()
    best = (donor / "best.ckpt").read_bytes()
    take_over(recipient, donor, 2, recipient / METRICS_FILE)
    trainer(recipient, 4, 0.1, 3).fit(resume=True)
    assert (donor / "best.ckpt").read_bytes() == best
    assert (recipient / "best.ckpt").is_file()


def test_the_config_of_each_epoch_is_kept(tmp_path: Path) -> None:
    for text, until in (("a", 4), ("b", 8), ("c", None)):
        (tmp_path / "config.yaml").write_text(text)
        if until is not None:
            set_aside_config(tmp_path, until)
            (tmp_path / "config.yaml").write_text("of the next")
            # a process that starts once more changes nothing
            set_aside_config(tmp_path, until)
    told = [config_file(tmp_path, epoch).read_text() for epoch in (1, 4, 5, 8, 9, 100)]
    assert told == ["a", "a", "b", "b", "c", "c"]
