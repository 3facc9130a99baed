"""The data path: preparation, memory of trials that share a cache, patches, waiting for batches.

    python tests/benchmarks/bench_data.py DATA_DIR [--only prepare memory patches wait]

DATA_DIR is a folder in Decathlon or nnU-Net layout, or `phantom`. `prepare` preprocesses into an
empty cache with 1 and with all threads, and in as many processes as there are cores. `memory`
starts 1 and 4 processes that map and read the whole cache and reads their share of it from
/proc/PID/smaps: proportional set size counts a page that four processes map as a quarter each.
`patches` is the time of one patch by augmentation. `wait` trains D-Former as
search_spaces/dformer_hippocampus.yaml says and compares the time spent waiting for batches with
the time of a step, by kind of loading, with one thread (as a trial has it when two run on two
cores) and with all.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from training.config import ModelTrainingConfig
from training.data import (
    AUGMENTATIONS,
    PreprocessedDataset,
    get_dataloader,
    get_dataloaders,
    prepare_dataset,
    read_layout,
    resolve_data_dir,
)
from training.data.prepared.case_files import store_case
from training.data.prepared.preprocessing import Preprocessing
from training.data.raw import case_threads
from training.data.raw.layouts import RawCase
from training.lightning_module import SegmentationLightningModule
from training.models import build_model

CORES = os.cpu_count() or 1
PATCH = (40, 56, 40)
MIB = 2**20

HIPPOCAMPUS: dict[str, Any] = {
    "model_params": {
        "embed_dim": 24,
        "depths": [2, 2, 2],
        "num_heads": [2, 4, 8],
        "patch_size": [2, 4, 4],
        "group_size": [4, 4, 4],
    },
    "patch_size": PATCH,
    "foreground_fraction": 0.5,
    "augmentation": "nnunet",
    "gpus": 0,
}
"""What search_spaces/dformer_hippocampus.yaml fixes, with the middle width and all changes."""


def bench_prepare(data_dir: Path, spacing: tuple[float, float, float] | None) -> list[Any]:
    """Seconds to preprocess: with one thread, with all, and in processes."""
    rows = []
    for name, threads in (("1 thread", 1), (f"{CORES} threads", CORES)):
        case_threads._cores = lambda threads=threads: threads  # type: ignore[misc]
        with tempfile.TemporaryDirectory() as cache:
            config = ModelTrainingConfig(target_spacing=spacing)
            start = time.perf_counter()
            split = prepare_dataset(data_dir, config, cache_dir=Path(cache))
            rows.append({"workers": name, "seconds": time.perf_counter() - start})
            settings = PreprocessedDataset.load(split).preprocessing
    cases = list(read_layout(data_dir).cases)
    with tempfile.TemporaryDirectory() as cache, ProcessPoolExecutor(CORES) as pool:
        arguments = ([settings] * len(cases), [Path(cache)] * len(cases))
        list(pool.map(store_case, cases[:CORES], *arguments))  # start them first
        start = time.perf_counter()
        list(pool.map(store_case, cases, *arguments))
        rows.append(
            {"workers": f"{CORES} processes, second pass", "seconds": time.perf_counter() - start}
        )
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        _store_in_threads(cases, settings, Path(cache))
        rows.append(
            {"workers": f"{CORES} threads, second pass", "seconds": time.perf_counter() - start}
        )
    return rows


def _store_in_threads(cases: list[RawCase], settings: Preprocessing, folder: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(lambda case: store_case(case, settings, folder), cases))


def read_whole_cache(split: Path) -> None:
    """Map and read every array, say so, and stay until told to go."""
    dataset = PreprocessedDataset.load(split)
    arrays = [
        array for case in dataset.cases for array in (dataset.image(case), dataset.label(case))
    ]
    total = sum(float(np.asarray(array).sum()) for array in arrays)
    print(f"read {total}", flush=True)
    sys.stdin.readline()


def bench_memory(split: Path) -> list[Any]:
    """Memory of 1 and 4 processes that have read the whole cache."""
    arrays = PreprocessedDataset.load(split).array_folder.resolve()
    size = sum(path.stat().st_size for path in arrays.glob("*.npy"))
    rows = []
    for number in (1, 4):
        command = [sys.executable, __file__, str(split), "--read-whole-cache"]
        processes = [
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ, text=True
            )
            for _ in range(number)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("read")
        shares = [_memory_of(process.pid, arrays) for process in processes]
        for process in processes:
            process.communicate("\n")
        rows.append(
            {
                "processes": number,
                "cache_mib": size / MIB,
                **{name: sum(share[name] for share in shares) / MIB for name in shares[0]},
            }
        )
    return rows


def _memory_of(pid: int, folder: Path) -> dict[str, int]:
    """Bytes of a process: all of it, and what it maps from a folder."""
    found = dict.fromkeys(("cache_rss", "cache_pss", "pss"), 0)
    mapped = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            mapped = str(folder) in line
        elif match := re.match(r"(Rss|Pss): +(\d+) kB", line):
            amount = 1024 * int(match[2])
            if match[1] == "Pss":
                found["pss"] += amount
            if mapped:
                found[f"cache_{match[1].lower()}"] += amount
    return found


def bench_patches(split: Path) -> list[Any]:
    """Milliseconds of one patch, and how much of a case it reads, by augmentation."""
    torch.set_num_threads(1)
    rows = []
    for name in AUGMENTATIONS:
        loader = get_dataloader(
            split, "train", 1, 0, True, patch_size=PATCH, steps_per_epoch=300, augmentation=name
        )
        patches, keys = loader.dataset, list(loader.sampler)
        for key in keys[:100]:
            patches[key]
        start = time.perf_counter()
        for key in keys:
            patches[key]
        rows.append({"augmentation": name, "ms": (time.perf_counter() - start) / 300 * 1e3})
    torch.set_num_threads(CORES)
    return rows


def bench_wait(split: Path, rounds: int, steps: int, counts: list[int]) -> list[Any]:
    """Waiting for batches as a share of a training step, kinds of loading taking turns."""
    rows = []
    for threads in counts:
        torch.set_num_threads(threads)
        measured: dict[str, list[tuple[float, float]]] = {}
        for _ in range(rounds):
            for name, batches in _kinds_of_loading(split, steps):
                measured.setdefault(name, []).append(_train(batches))
        plain = statistics.median(total for total, _ in measured["the same batch again"])
        for name, times in measured.items():
            total = statistics.median(total for total, _ in times)
            wait = statistics.median(wait for _, wait in times)
            rows.append(
                {
                    "threads": threads,
                    "loading": name,
                    "step_ms": total * 1e3,
                    "wait_ms": wait * 1e3,
                    "wait_share": statistics.median(wait / total for total, wait in times),
                    "longer": total / plain - 1,
                }
            )
    torch.set_num_threads(CORES)
    return rows


def _kinds_of_loading(split: Path, steps: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    def loader(workers: int) -> DataLoader[Any]:
        config = ModelTrainingConfig(
            data_dir=split, num_workers=workers, steps_per_epoch=steps, **HIPPOCAMPUS
        )
        return get_dataloaders(config)[0]

    def same() -> Iterator[Any]:
        batch = next(iter(loader(0)))
        return iter([batch] * steps)

    yield "the same batch again", same
    yield "in turn with the step", lambda: DataLoader.__iter__(loader(0))
    yield "in a thread (num_workers 0)", lambda: iter(loader(0))
    yield "num_workers 1", lambda: iter(loader(1))


def _train(start: Callable[[], Any]) -> tuple[float, float]:
    """Median seconds of a step with its batch, and of these the seconds of waiting."""
    torch.manual_seed(0)
    config = ModelTrainingConfig(**HIPPOCAMPUS)
    module = SegmentationLightningModule(build_model(config), config)
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3)
    batches = start()
    totals, waits = [], []
    while True:
        begin = time.perf_counter()
        batch = next(batches, None)
        got = time.perf_counter()
        if batch is None:
            # the first steps start threads and fill caches
            return statistics.mean(totals[3:]), statistics.mean(waits[3:])
        loss = module.training_loss([module(batch["image"])], batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(time.perf_counter() - begin)
        waits.append(got - begin)


def table(title: str, rows: list[Any]) -> Table:
    """Rows for people."""
    shown = Table(title=title)
    for heading in rows[0]:
        shown.add_column(heading, justify="left" if isinstance(rows[0][heading], str) else "right")
    for row in rows:
        shown.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    return shown


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data_dir", type=Path)
    parts = ("prepare", "memory", "patches", "wait")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--spacing", type=float, nargs=3, help="resample to this spacing (mm)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, CORES}))
    parser.add_argument("--json", type=Path, default=Path("bench_data.json"))
    parser.add_argument("--read-whole-cache", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.read_whole_cache:
        read_whole_cache(options.data_dir)
        return
    data_dir = resolve_data_dir(options.data_dir)
    results: dict[str, Any] = {}
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as cache:
        if "prepare" in options.only:
            results["prepare"] = bench_prepare(data_dir, options.spacing)
            console.print(table("Preprocessing", results["prepare"]))
        split = prepare_dataset(data_dir, ModelTrainingConfig(), cache_dir=Path(cache))
        if "memory" in options.only:
            results["memory"] = bench_memory(split)
            console.print(table("Memory in MiB, all processes together", results["memory"]))
        if "patches" in options.only:
            results["patches"] = bench_patches(split)
            console.print(table(f"One patch of {PATCH}, one thread", results["patches"]))
        if "wait" in options.only:
            results["wait"] = bench_wait(split, options.rounds, options.steps, options.threads)
            console.print(table("Waiting for batches, D-Former", results["wait"]))
    facts = {"data": str(options.data_dir), "cores": CORES, "torch": torch.__version__}
    options.json.write_text(json.dumps({"measured": facts, **results}, indent=2))
    print(f"written to {options.json}")


if __name__ == "__main__":
    main()
