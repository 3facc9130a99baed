"""What a search leaves a user with, beside what they would train instead, in the same time.

    python tests/benchmarks/bench_worth.py DATA [--minutes 5] [--seeds 3] [--leave-one-out]
        [--space FILE] [--rows search random ...] [--nnunet PYTHON] [--before CHECKOUT]
        [--keep FOLDER] [--json FILE]

A share of the cases of DATA (`phantom`, or a folder in Decathlon layout) is set aside before
anything else (with --leave-one-out a single case, another with each seed), and every row gets the
others as its whole data set, to split as it likes: nothing
is chosen by the cases that all rows are judged on, in the grid of their label files. A row has the
same wall-clock time on the same cores, preparation and export included, but not
the prediction of those cases; run it on a machine with
nothing else to do. Rows:

- nnunet: nnU-Net's 3d_fullres with a schedule that ends in the time, its mirroring, on all cases;
  --nnunet names the interpreter of an environment with nnunetv2 (worth/nnunet_driver.py).
- default: the space's default config alone, trained for all of the time.
- random: random search over the space, without early stopping.
- before: the search of an earlier version, a checkout with its own --space (--before).
- search: the search, and of its winner the network as it is; + mirroring and postprocessing,
  and + ensemble are further exports of the same study.

A finished run of a row is in the log beside the file of --json (.jsonl) and is not run again, so
the benchmark may be cut off and gone on with.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from training.data.raw.phantom import resolve_data_dir
from training.metrics.surface import surface_scores_of_labels
from tuner.study.statistics import compare

ROOT = Path(__file__).parents[2]
DRIVER = Path(__file__).parent / "worth" / "nnunet_driver.py"
PHANTOM_SPACE = ROOT / "search_spaces" / "dformer.yaml"
TEST_SHARE = 0.25
TOLERANCE = 1.0
"""Tolerance of the normalised surface Dice, in mm."""

EXPORT_SHARE = 0.1
"""Share of the time that is kept for preparation, start and export of a study."""

PLAIN, REFINED, ENSEMBLE = "search", "+ mirroring, postprocessing", "+ ensemble"
EXPORTS: dict[str, list[str]] = {
    PLAIN: ["--ensemble", "1", "--no-mirroring", "--no-postprocessing"],
    REFINED: ["--ensemble", "1"],
    ENSEMBLE: [],
}
ROWS = ("nnunet", "default", "random", "before", "search")


def set_aside(
    data: Path, folder: Path, seed: int, one: bool = False
) -> tuple[Path, dict[str, tuple[Path, Path]]]:
    """A data set of the cases to learn from, and images and labels of those to be judged by.

    Args:
        data: Folder in Decathlon layout.
        folder: Where the data set is made, of links.
        seed: Which cases are set aside.
        one: Set a single case aside, the one with the number of the seed.
    """
    content = json.loads((data / "dataset.json").read_text())
    listed = sorted(content["training"], key=lambda pair: pair["image"])
    chosen = np.random.default_rng(seed).permutation(len(listed))
    tested = set(chosen[: max(1, round(TEST_SHARE * len(listed)))].tolist())
    if one:
        tested = {seed % len(listed)}
    kept = folder / "Task99_Worth"
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (kept / name).mkdir(parents=True)
    cases = {}
    pairs = []
    for index, pair in enumerate(listed):
        image, label = ((data / pair[kind]).resolve() for kind in ("image", "label"))
        if index in tested:
            cases[image.name.split(".")[0]] = (image, label)
            (kept / "imagesTs" / image.name).symlink_to(image)
        else:
            (kept / "imagesTr" / image.name).symlink_to(image)
            (kept / "labelsTr" / label.name).symlink_to(label)
            pairs.append({"image": f"./imagesTr/{image.name}", "label": f"./labelsTr/{label.name}"})
    described = {**content, "training": pairs, "numTraining": len(pairs), "test": []}
    (kept / "dataset.json").write_text(json.dumps(described))
    return kept, cases


def scores(
    cases: dict[str, tuple[Path, Path]], predictions: Path, labels: int
) -> dict[str, list[list[float]]]:
    """Dice, NSD and HD95 of each case by class; a case that was not written counts as empty."""
    found: dict[str, list[list[float]]] = {}
    for name, (_, label) in sorted(cases.items()):
        file: Any = nib.load(label)
        target = np.asarray(file.dataobj).astype(np.uint8)
        path = predictions / f"{name}.nii.gz"
        predicted = np.zeros_like(target)
        if path.is_file():
            predicted = np.asarray(nib.load(path).dataobj).astype(np.uint8)
        spacing = tuple(float(size) for size in file.header.get_zooms()[:3])
        surface = surface_scores_of_labels(
            predicted[None], target[None], labels, tolerance=TOLERANCE, spacing=spacing
        )
        found[name] = [
            [
                _dice(predicted == k, target == k),
                float(surface.nsd[0, k - 1]),
                float(surface.hd95[0, k - 1]),
            ]
            for k in range(1, labels)
        ]
    return found


def _dice(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    both = int(one.sum() + other.sum())
    return 2.0 * int((one & other).sum()) / both if both else math.nan


def tune(checkout: Path, *arguments: str | Path) -> None:
    """Run a command of `tune` of a checkout.

    Raises:
        RuntimeError: with the end of its output, if it fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-m", "tuner", *map(str, arguments)]
    ran = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")


def space_of(row: str, options: argparse.Namespace, data: Path, folder: Path) -> Path:
    """The space that a row of ours searches, as a file."""
    given = options.space or (PHANTOM_SPACE if str(options.data) == "phantom" else None)
    written = folder / "space.yaml"
    if given is None:
        tune(ROOT, "init", data, "-o", written, "--hours", f"{options.minutes / 60:.4f}")
        given = written
    space = yaml.safe_load(Path(given).read_text())
    space["config"] |= {"data_dir": str(data), "test_fraction": 0.0}
    seconds = 60 * options.minutes * (1 - EXPORT_SHARE)
    search = space.setdefault("search", {})
    search |= {"time_budget": f"{seconds:.0f}s", "seed": options.seed}
    if row == "random":
        search["searcher"] = "random"
        space.pop("policy", None)
        space["policy"] = "none"
    if row == "default":
        epochs = _epochs_in(space, seconds, folder)
        search["num_trials"] = 1
        space["config"]["max_epochs"] = epochs
        space["policy"] = "none"
    written.write_text(yaml.safe_dump(space, sort_keys=False))
    return written


def _epochs_in(space: dict[str, Any], seconds: float, folder: Path) -> int:
    """Epochs of the default config that fit, by a short training of it."""
    epochs = 3
    short = {**space, "config": {**space["config"], "max_epochs": epochs, "warmup_epochs": 0}}
    # a warm-up may be longer than this training
    short["space"] = {k: v for k, v in space["space"].items() if k != "warmup_epochs"}
    short["search"] = {**space["search"], "num_trials": 1}
    short["policy"] = "none"
    (folder / "short.yaml").write_text(yaml.safe_dump(short, sort_keys=False))
    tune(ROOT, "run", folder / "short.yaml", "--name", "short", "--studies-dir", folder / "studies")
    listed = (folder / "studies" / "short" / "trials" / "0000" / "metrics.csv").read_text()
    header, *lines = listed.splitlines()
    at = header.split(",").index("seconds")
    # the first epoch warms the machine up
    each = float(np.mean([float(line.split(",")[at]) for line in lines[1:]]))
    return max(1, int(seconds / each))


def run_row(row: str, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Run a row with a seed; scores of its test cases and its time, by what is exported."""
    data = resolve_data_dir(options.data)
    with contextlib.ExitStack() as stack:
        if options.keep:
            folder = Path(tempfile.mkdtemp(prefix=f"{row}-{options.seed}-", dir=options.keep))
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="worth-")))
        kept, cases = set_aside(data, folder, options.seed, options.leave_one_out)
        labels = len(json.loads((kept / "dataset.json").read_text())["labels"])
        images = kept / "imagesTs"
        found: dict[str, dict[str, Any]] = {}
        started = time.monotonic()
        if row == "nnunet":
            predicted = folder / "nnunet"
            told = _nnunet(options, kept, predicted)
            return {row: {"scores": scores(cases, predicted, labels), **told}}
        checkout = options.before if row == "before" else ROOT
        space = space_of(row, options, kept, folder)
        studies = folder / "studies"
        tune(checkout, "run", space, "--name", "worth", "--studies-dir", studies)
        exports = {row: []} if row == "before" else {row: EXPORTS[PLAIN]}
        if row == "search":
            exports = EXPORTS
        for name, arguments in exports.items():
            bundle, predicted = folder / f"bundle-{len(found)}", folder / f"out-{len(found)}"
            at = time.monotonic()
            tune(checkout, "export", "worth", "--studies-dir", studies, "-o", bundle, *arguments)
            exported = time.monotonic()
            tune(checkout, "predict", bundle, images, "-o", predicted)
            found[name] = {
                "seconds": exported - started,
                "export_seconds": exported - at,
                "predict_seconds": time.monotonic() - exported,
                "scores": scores(cases, predicted, labels),
            }
        return found


def _nnunet(options: argparse.Namespace, data: Path, out: Path) -> dict[str, Any]:
    folder = data.parent / "nnunet-data"
    raw = folder / "raw" / "Dataset099_Worth"
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (raw / name).mkdir(parents=True)
    content = json.loads((data / "dataset.json").read_text())
    channels = content["modality"]
    for part in ("imagesTr", "imagesTs"):
        for image in sorted((data / part).iterdir()):
            _split_channels(image, raw / part, len(channels))
    for label in sorted((data / "labelsTr").iterdir()):
        (raw / "labelsTr" / label.name).symlink_to(label.resolve())
    described = {
        "channel_names": channels,
        "labels": {name: int(value) for value, name in content["labels"].items()},
        "numTraining": content["numTraining"],
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(described))
    out.mkdir()
    threads = str(len(os.sched_getaffinity(0)))
    environment = {
        **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        "nnUNet_raw": str(folder / "raw"),
        "nnUNet_preprocessed": str(folder / "preprocessed"),
        "nnUNet_results": str(folder / "results"),
        "nnUNet_n_proc_DA": threads,
        "nnUNet_compile": "f",
    }
    seconds = str(60 * options.minutes)
    command = [
        options.nnunet,
        str(DRIVER),
        "99",
        seconds,
        str(raw / "imagesTs"),
        str(out),
        "--threads",
        threads,
    ]
    command += ["--seed", str(options.seed)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    told: dict[str, Any] = json.loads((out / "told.json").read_text())
    return told


def _split_channels(image: Path, folder: Path, channels: int) -> None:
    """An image as nnU-Net has it: a file a channel."""
    name = image.name.split(".")[0]
    if channels == 1:
        (folder / f"{name}_0000.nii.gz").symlink_to(image.resolve())
        return
    volume: Any = nib.load(image)
    for index in range(channels):
        channel = np.asarray(volume.dataobj)[..., index]
        single = nib.Nifti1Image(channel, volume.affine)
        nib.save(single, folder / f"{name}_{index:04d}.nii.gz")


def means(runs: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    """Mean over the cases of all runs by class, of those that have it: Dice, NSD, HD95."""
    cases = np.array([case for run in runs for case in run["scores"].values()])
    with warnings.catch_warnings():
        # a class may be in no case
        warnings.filterwarnings("ignore", "Mean of empty slice")
        result: np.ndarray[Any, Any] = np.nanmean(cases, axis=0)
    return result


def case_dice(runs: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    """Mean Dice over classes of each case; the runs' cases one after the other."""
    return np.concatenate(
        [np.nanmean(np.array(list(run["scores"].values()))[..., 0], axis=1) for run in runs]
    )


def show(log: list[dict[str, Any]], console: Console) -> list[dict[str, Any]]:
    """Print the table; its rows as data."""
    by_row: dict[str, list[dict[str, Any]]] = {}
    for run in log:
        by_row.setdefault(run["row"], []).append(run)
    table = Table("row", "seeds", "minutes", "Dice", "NSD", "HD95 mm", "mean Dice", "vs default")
    rows = []
    for row, runs in by_row.items():
        mean = means(runs)
        against = _against(runs, by_row.get("default", []))
        versus = "" if against is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*against)
        minutes = float(np.mean([run["seconds"] for run in runs])) / 60
        columns = (" ".join(f"{value:.3f}" for value in mean[:, i]) for i in range(3))
        table.add_row(
            row, str(len(runs)), f"{minutes:.1f}", *columns, f"{np.nanmean(mean[:, 0]):.4f}", versus
        )
        rows.append(
            {"row": row, "seeds": len(runs), "minutes": minutes, "dice": mean[:, 0].tolist(),
             "nsd": mean[:, 1].tolist(), "hd95": mean[:, 2].tolist(),
             "mean_dice": float(np.nanmean(mean[:, 0])), "against_default": against}
        )  # fmt: skip
    console.print(table)
    return rows


def _against(
    runs: list[dict[str, Any]], others: list[dict[str, Any]]
) -> tuple[float, float, float] | None:
    """Mean paired difference by case to another row with the same seeds, and its interval."""
    other = {run["seed"]: run for run in others}
    pairs = [(run, other[run["seed"]]) for run in runs if run["seed"] in other]
    if not pairs or runs[0]["row"] == others[0]["row"]:
        return None
    # each seed has set other cases aside, so that its cases are further cases
    one, two = (case_dice([pair[index] for pair in pairs]) for index in (0, 1))
    difference = compare(np.stack([one, one]), np.stack([two, two])).difference
    return difference.mean, difference.low, difference.high


def main() -> None:
    """Run the rows that the log lacks, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("data", nargs="?", default="phantom")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--leave-one-out", action="store_true")
    parser.add_argument("--space", type=Path)
    parser.add_argument("--rows", nargs="+", choices=ROWS)
    parser.add_argument("--nnunet", default=os.environ.get("NNUNET_PYTHON"))
    parser.add_argument("--before", type=Path)
    parser.add_argument("--keep", type=Path, help="an existing folder for studies and predictions")
    parser.add_argument("--json", type=Path, default=Path("bench_worth.json"))
    options = parser.parse_args()
    there = {"nnunet": options.nnunet, "before": options.before}
    rows = options.rows or [row for row in ROWS if there.get(row, True)]
    for row in rows:
        if not there.get(row, True):
            parser.error(f"the row {row} needs --{row}")
    column = f"{Path(options.data).name}, {options.minutes:g} min"
    if options.leave_one_out:
        column += ", leave one out"
    path = options.json.with_suffix(".jsonl")
    log = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    console = Console()
    for seed in range(options.seeds):
        options.seed = seed
        for row in rows:
            done = any(
                (run["column"], run["seed"], run["row"]) == (column, seed, row) for run in log
            )
            if done:
                continue
            for name, run in run_row(row, options).items():
                log.append({"column": column, "seed": seed, "row": name, **run})
                with path.open("a") as file:
                    file.write(json.dumps(log[-1]) + "\n")
                mean = np.nanmean(means([run])[:, 0])
                console.print(f"{column}, seed {seed}, {name}: {mean:.4f}", markup=False)
    table = show([run for run in log if run["column"] == column], console)
    options.json.write_text(json.dumps({"column": column, "rows": table}, indent=2))


if __name__ == "__main__":
    main()
