"""Whole scans: preparation, cache and first batch, beside nnU-Net's on the same files.

    python tests/benchmarks/bench_scans.py [--shape 512 512 600] [--cases 2] [--organs 14]
        [--workers 1] [--nnunet PYTHON] [--predict 512 512 800] [--folder DIR]

Synthetic scans of that size are written first. Each row prepares all of them into an empty folder,
in processes of its own, which are measured together: seconds, CPU seconds and peak memory (PSS) of
all, bytes on disk a case. For our rows also the seconds from a prepared cache to the first batch,
as the first epoch of a trial has it, and the time of a patch. --nnunet names the interpreter of an
environment with nnunetv2. --predict is the size of a scan that an exported network of 4 filters
segments, whose own work is little. What a case takes does not depend on their number.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scans.process_cost import Cost, cost_of
from scans.volumes import draw_scan, write_scans

from training.bundle.bundle import write_bundle
from training.bundle.manifest import Manifest
from training.bundle.member import Member
from training.config import ModelTrainingConfig
from training.data import PreprocessedDataset, get_dataloaders, prepare_dataset
from training.data.prepared import preparation
from training.lightning_module import SegmentationLightningModule
from training.models import build_model

GIB = 2**30
DATASET = 901
NNUNET = Path(__file__).parent / "scans" / "nnunet_prepare.py"


def config_of(organs: int, *, compressed: bool) -> ModelTrainingConfig:
    """A training on patches of 128 x 128 x 128, as nnU-Net plans it for such scans."""
    return ModelTrainingConfig(
        model_name="dynunet",
        model_params={"filters": [4] * 6},
        num_classes=organs + 1,
        patch_size=(128, 128, 128),
        compress_cache=compressed,
        test_fraction=0,
        val_fraction=0.5,
        num_workers=0,
        augmentation="nnunet",
    )


def prepare(folder: Path, cache: Path, organs: int, workers: int, *, compressed: bool) -> None:
    """Prepare the scans, in this process, and print what the first batch takes."""
    torch.set_num_threads(1)
    preparation._cores = lambda: workers
    config = config_of(organs, compressed=compressed)
    start = time.perf_counter()
    split = prepare_dataset(folder, config, cache_dir=cache)
    prepared = time.perf_counter()
    config.data_dir = split
    train, _, _ = get_dataloaders(config)
    next(iter(train))
    first = time.perf_counter()
    patches = train.dataset
    for index in range(4):
        patches[1, index]
    print(
        json.dumps(
            {
                "prepared": prepared - start,
                "first batch": first - prepared,
                "patch": (time.perf_counter() - first) / 4,
            }
        )
    )


def row(name: str, cost: Cost, cases: int, folder: Path, told: dict[str, float]) -> dict[str, Any]:
    """Figures of a preparation, by case."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "preparation": name,
        "s a case": cost.seconds / cases,
        "CPU s a case": cost.cpu_seconds / cases,
        "peak GiB": cost.peak / GIB,
        "GiB a case": size / cases / GIB,
        "first batch s": told.get("first batch", float("nan")),
        "patch s": told.get("patch", float("nan")),
    }


def ours(options: argparse.Namespace, raw: Path, work: Path) -> list[dict[str, Any]]:
    """Our rows: the cache as it is, and compressed."""
    rows = []
    for name in ("ours", "ours, compressed"):
        cache = work / name.replace(", ", "-")
        command = [sys.executable, __file__, "--prepare", str(raw), "--cache", str(cache)]
        command += ["--organs", str(options.organs), "--workers", str(options.workers)]
        command += ["--compressed"] if "compressed" in name else []
        cost = cost_of(command, {**os.environ, "OMP_NUM_THREADS": "1"})
        told = json.loads(cost.output.strip().splitlines()[-1])
        rows.append(row(name, cost, options.cases, cache, told))
    return rows


def nnunet(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """nnU-Net's row."""
    prepared = work / "nnunet"
    environment = {
        **os.environ,
        "nnUNet_raw": str(work),
        "nnUNet_preprocessed": str(prepared),
        "nnUNet_results": str(work / "results"),
        "OMP_NUM_THREADS": "1",
    }
    for folder in (prepared, work / "results"):
        folder.mkdir()
    command = [options.nnunet, str(NNUNET), str(DATASET), str(options.workers)]
    return row("nnU-Net", cost_of(command, environment), options.cases, prepared, {})


def write_network(raw: Path, work: Path, organs: int) -> Path:
    """An exported network of 4 filters that nobody trained."""
    config = config_of(organs, compressed=False)
    split = prepare_dataset(raw, config, cache_dir=work / "ours")
    dataset = PreprocessedDataset.load(split)
    manifest = Manifest(
        labels=dataset.labels,
        channels=dataset.channels,
        metrics={},
        provenance={"fingerprint": dataset.fingerprint},
    )
    member = Member(config, SegmentationLightningModule(build_model(config), config).eval())
    write_bundle(
        work / "bundle",
        members=[member],
        preprocessing=dataset.preprocessing,
        manifest=manifest,
    )
    return work / "bundle"


def predict(options: argparse.Namespace, raw: Path, work: Path) -> dict[str, Any]:
    """Segment one scan with the command that a user has."""
    bundle = write_network(raw, work, options.organs)
    voxels, _ = draw_scan(np.random.default_rng(7), tuple(options.predict), options.organs)
    scan = work / "whole.nii.gz"
    nib.save(nib.Nifti1Image(voxels, np.diag([-0.8, -0.8, 1, 1])), scan)
    del voxels
    command = [sys.executable, "-m", "tuner", "predict", str(bundle), str(scan)]
    command += ["-o", str(work / "predicted"), "--device", "cpu", "--no-mirroring"]
    cost = cost_of(command, os.environ)
    return {
        "prediction": " x ".join(str(size) for size in options.predict),
        "s": cost.seconds,
        "CPU s": cost.cpu_seconds,
        "peak GiB": cost.peak / GIB,
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """Rows for people."""
    shown = Table()
    for heading, value in rows[0].items():
        shown.add_column(heading, justify="left" if isinstance(value, str) else "right")
    for values in rows:
        shown.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in values.values()))
    return shown


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 600))
    parser.add_argument("--cases", type=int, default=2)
    parser.add_argument("--organs", type=int, default=14)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--nnunet", default=os.environ.get("NNUNET_PYTHON"))
    parser.add_argument("--predict", type=int, nargs=3)
    parser.add_argument("--folder", type=Path, help="where the files go; removed afterwards")
    parser.add_argument("--json", type=Path, default=Path("bench_scans.json"))
    for hidden in ("--prepare", "--cache"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--compressed", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        prepare(
            options.prepare,
            options.cache,
            options.organs,
            options.workers,
            compressed=options.compressed,
        )
        return
    console = Console(width=110)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        work = Path(folder)
        raw = work / f"Dataset{DATASET}_Scans"
        write_scans(raw, options.cases, tuple(options.shape), options.organs)
        results: dict[str, Any] = {"preparation": ours(options, raw, work)}
        if options.nnunet:
            results["preparation"].append(nnunet(options, work))
        console.print(table(results["preparation"]))
        if options.predict:
            results["prediction"] = [predict(options, raw, work)]
            console.print(table(results["prediction"]))
    facts = {"cores": os.cpu_count(), "torch": torch.__version__, "workers": options.workers}
    facts |= {"shape": list(options.shape), "cases": options.cases, "organs": options.organs}
    options.json.write_text(json.dumps({"measured": facts, **results}, indent=2))
    print(f"written to {options.json}")


if __name__ == "__main__":
    main()
