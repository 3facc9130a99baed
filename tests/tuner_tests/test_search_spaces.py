from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from training.models import build_model
from training.optimizers import get_optimizer
from tuner.spec import load_spec

FOLDER = Path(__file__).parents[2] / "search_spaces"
FILES = sorted(FOLDER.glob("*.yaml"))

VARIED = {
    "optimizer",
    "learning_rate",
    "weight_decay",
    "momentum",
    "scheduler",
    "class_weights",
    "loss",
}


def test_the_files_are_there() -> None:
    names = [path.name for path in FILES]
    assert names == ["dformer.yaml", "dformer_hippocampus.yaml", "dformer_liver.yaml"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_shipped_space_is_valid_and_covers_what_matters(path: Path) -> None:
    spec = load_spec(path)
    names = dict(spec.space.items())
    assert set(names) >= VARIED
    assert spec.rungs()
    assert spec.expected_epochs() < spec.search.num_trials * spec.max_epochs
    rng = random.Random(0)
    for _ in range(20):
        config = spec.trial_config(spec.space.sample(rng))
        with torch.device("meta"):
            model = build_model(config)
        get_optimizer(config, model)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_shipped_space_says_how_to_run_it(path: Path) -> None:
    assert f"tune run search_spaces/{path.name}" in path.read_text()
