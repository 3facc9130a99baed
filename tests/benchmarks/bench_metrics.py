"""Metrics beside MONAI's and surface-distance's: time of a case, and share of a validation.

    python tests/benchmarks/bench_metrics.py [--rounds 9] [--size 128] [--threads 1] [--json FILE]

Peers and ours take turns; times are medians. One thread is the default: with more threads than
free cores, torch's small operations wait for each other, and the peers look far slower. The
peers get one-hot masks that are ready made, ours starts from the logits. The shares are those of
real validation epochs of the networks of `search_spaces/`, untrained and after two epochs: all
that is done for metrics (label maps from logits, updates, the final mean) as a share of the epoch.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_surface_dice,
)
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import ndimage
from torch import Tensor
from torch.utils.data import DataLoader

from training import lightning_module
from training.config import ModelTrainingConfig
from training.data import get_dataloaders, prepare_dataset, resolve_data_dir
from training.lightning_module import SegmentationLightningModule
from training.metrics import (
    SegmentationMetrics,
    boundary_f1_score,
    dice_coefficient,
    predict_labels,
    surface_scores,
)
from training.models import build_model
from training.trainer import SegmentationTrainer
from tuner.spec.load import load_spec

warnings.filterwarnings("ignore")
from surface_distance import metrics as surface_distance  # noqa: E402

SPACES = Path(__file__).resolve().parents[2] / "search_spaces"
CLASSES = 3
SPACING = (2.0, 0.8, 0.8)
CASES = 6
EPOCHS = 2


def organ(shape: tuple[int, int, int], seed: int, roughness: float = 1.0) -> NDArray[np.int64]:
    """An uneven organ (1) with a lesion (2) inside, of realistic share of the volume."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij"))
    rng = np.random.default_rng(seed)
    depth = 0.62 - np.sqrt((grid**2).sum(axis=0))
    for sigma, weight in ((6, 0.06), (3, 0.03 * roughness)):
        field = ndimage.gaussian_filter(rng.normal(size=shape), sigma)
        depth += weight * field / field.std()
    label = np.zeros(shape, dtype=np.int64)
    label[depth > 0] = 1
    label[depth > 0.35] = 2
    return label


def one_hot(labels: Tensor) -> Tensor:
    """`(1, CLASSES, *spatial)` of a label map `(1, *spatial)`."""
    return torch.nn.functional.one_hot(labels, CLASSES).movedim(-1, 1).float()


def with_surface_distance(prediction: NDArray[np.int64], target: NDArray[np.int64]) -> None:
    """NSD, HD95 and ASSD of the foreground classes by surface-distance."""
    for label in range(1, CLASSES):
        found = surface_distance.compute_surface_distances(
            target == label, prediction == label, SPACING
        )
        surface_distance.compute_surface_dice_at_tolerance(found, 1.0)
        surface_distance.compute_robust_hausdorff(found, 95)
        surface_distance.compute_average_surface_distance(found)


def with_monai(prediction: Tensor, target: Tensor) -> None:
    """The same by MONAI, whose distances count boundary voxels."""
    options: dict[str, Any] = {"include_background": False, "spacing": SPACING}
    thresholds = [1.0] * (CLASSES - 1)
    compute_surface_dice(prediction, target, thresholds, use_subvoxels=True, **options)
    compute_hausdorff_distance(prediction, target, percentile=95, **options)
    compute_average_surface_distance(prediction, target, symmetric=True, **options)


def speed(size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of a case, ours and peers', and how many times as fast ours is."""
    shape = (size, size, size)
    prediction, target = (torch.from_numpy(organ(shape, seed))[None] for seed in (0, 1))
    masks, truth = one_hot(prediction), one_hot(target)
    # logits as a network gives them: no two are equal
    logits = masks * 4 + torch.randn(masks.shape, generator=torch.Generator().manual_seed(0)) / 3
    assert torch.equal(logits.argmax(dim=1), prediction)
    one, other = prediction[0].numpy(), target[0].numpy()
    runs: dict[str, dict[str, Callable[[], object]]] = {
        "boundary F1": {
            "ours": lambda: boundary_f1_score(logits, target, CLASSES),
            "MONAI surface Dice": lambda: compute_surface_dice(masks, truth, [1.0, 1.0]),
        },
        "all of validation": {
            "ours": lambda: SegmentationMetrics(CLASSES).update(predict_labels(logits), target),
            "MONAI surface Dice": lambda: compute_surface_dice(masks, truth, [1.0, 1.0]),
        },
        "NSD, HD95, ASSD": {
            "ours": lambda: surface_scores(logits, target, CLASSES, spacing=SPACING),
            "surface-distance": lambda: with_surface_distance(one, other),
            "MONAI": lambda: with_monai(masks, truth),
        },
        "Dice": {
            "ours": lambda: dice_coefficient(logits, target, CLASSES),
            "MONAI": lambda: compute_dice(masks, truth, include_background=False),
        },
    }
    results = {}
    for name, sides in runs.items():
        times: dict[str, list[float]] = {side: [] for side in sides}
        for round_ in range(rounds + 1):
            for side, run in sides.items():
                start = time.perf_counter()
                run()
                if round_:  # the first warms up
                    times[side].append(time.perf_counter() - start)
        medians = {side: statistics.median(measured) for side, measured in times.items()}
        results[name] = medians | {
            f"ratio to {side}": medians[side] / medians["ours"] for side in sides if side != "ours"
        }
    return results


class Phases(pl.Callback):
    """Seconds of the last training, validation or test epoch."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = 0.0

    def _begin(self, *_: Any) -> None:
        self._start = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self._start

    on_validation_epoch_start = on_test_epoch_start = _begin
    on_validation_end = on_test_end = _end


class MetricsClock:
    """Seconds spent in everything that a module does for metrics."""

    def __init__(self, module: SegmentationLightningModule) -> None:
        self.seconds = 0.0
        for metric in (*module.metrics.values(), *module.surface_metrics.values()):
            for name in ("update", "compute"):
                setattr(metric, name, self.timed(getattr(metric, name)))

    def timed(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work`, its time counted."""

        def counted(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = work(*arguments)
            self.seconds += time.perf_counter() - start
            return result

        return counted

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the label maps too, which a module takes from the logits."""
        plain = lightning_module.predict_labels
        lightning_module.predict_labels = self.timed(plain)
        try:
            yield
        finally:
            lightning_module.predict_labels = plain


def base_config(name: str, folder: Path) -> ModelTrainingConfig:
    """The fixed part of a search space, which logs into `folder`."""
    config = load_spec(SPACES / f"{name}.yaml").base_config()
    config.log_dir = config.checkpoint_dir = folder
    config.max_epochs = EPOCHS
    config.gpus = 0
    config.learning_rate = 3e-3
    config.loss = "dice_ce"
    return config


def hippocampus_like(folder: Path) -> tuple[ModelTrainingConfig, Any, Any]:
    """Cases of Hippocampus' size and the D-Former of its search space."""
    config = base_config("dformer_hippocampus", folder)
    config.model_params = {**config.model_params, "embed_dim": 24}
    cases = []
    for seed in range(CASES):
        label = torch.from_numpy(organ((40, 56, 40), seed, 0.5))
        noise = torch.randn(label.shape, generator=torch.Generator().manual_seed(seed))
        cases.append({"image": (label + 0.5 * noise)[None].float(), "label": label})
    steps = config.steps_per_epoch or 1
    batches = [cases[step % CASES] for step in range(steps * config.train_batch_size)]
    train = DataLoader(batches, batch_size=config.train_batch_size)
    return config, train, DataLoader(cases, batch_size=1)


def phantom(folder: Path) -> tuple[ModelTrainingConfig, Any, Any]:
    """The embedded phantom and its search space, as `make run` searches it."""
    config = base_config("dformer", folder)
    config.data_dir = prepare_dataset(resolve_data_dir("phantom"), config)
    train, val, _ = get_dataloaders(config)
    return config, train, val


def shares(rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of an evaluation epoch, of its metrics, and their share."""
    results = {}
    for name, setting in (("Hippocampus-like", hippocampus_like), ("phantom", phantom)):
        with tempfile.TemporaryDirectory() as folder:
            config, train, cases = setting(Path(folder))
            pl.seed_everything(0, verbose=False)
            module = SegmentationLightningModule(build_model(config), config, spacing=SPACING)
            phases, clock = Phases(), MetricsClock(module)
            trainer = SegmentationTrainer(
                config, module, train, cases, cases, callbacks=[phases], progress_bar=False
            )
            for state in ("untrained", f"after {EPOCHS} epochs"):
                if state != "untrained":
                    trainer.fit()
                for kind, monitor, evaluate in (
                    ("validation", "val_dice", trainer.lightning.validate),
                    ("validation with val_nsd", "val_nsd", trainer.lightning.validate),
                    ("test", "val_dice", trainer.lightning.test),
                ):
                    config.monitor = monitor
                    measured = []
                    for round_ in range(rounds + 1):
                        clock.seconds = 0.0
                        with clock.running():
                            evaluate(module, cases, verbose=False)
                        if round_:
                            measured.append((clock.seconds, phases.seconds))
                    metrics, epoch = (
                        statistics.median(column) for column in zip(*measured, strict=True)
                    )
                    results[f"{name}, {state}: {kind}"] = {
                        "metrics_s": metrics,
                        "epoch_s": epoch,
                        "share": statistics.median(part / whole for part, whole in measured),
                    }
                config.monitor = "val_dice"
    return results


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("bench_metrics.json"))
    options = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    facts = {"size": options.size, "classes": CLASSES, "rounds": options.rounds}
    facts |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    fast, share = speed(options.size, options.rounds), shares(options.rounds)
    console = Console(width=120)
    title = f"one case of {options.size}³, {CLASSES} classes, {torch.get_num_threads()} thread(s)"
    table = Table("scores", "by", "seconds", "ours is times as fast", title=title)
    for name, row in fast.items():
        for side in (side for side in row if not side.startswith("ratio")):
            ratio = row.get(f"ratio to {side}")
            table.add_row(name, side, f"{row[side]:.4f}", "" if ratio is None else f"{ratio:.1f}")
    console.print(table)
    table = Table("epoch", "metrics s", "epoch s", "share", title="share of the metrics")
    for name, row in share.items():
        times = f"{row['metrics_s']:.3f}", f"{row['epoch_s']:.3f}", f"{row['share']:.1%}"
        table.add_row(name, *times)
    console.print(table)
    options.json.write_text(
        json.dumps({"measured": facts, "speed": fast, "share": share}, indent=2)
    )
    print(f"written to {options.json}")


if __name__ == "__main__":
    main()
