"""What a study loses when its driver, workers or disk fail at random moments.

    python tests/benchmarks/bench_faults.py [--kills 30]
    python tests/benchmarks/bench_faults.py --cluster [--only cut-30s gcs ...] [--partition 300]

Studies are run by the real driver on real Ray clusters with toy trials (end_to_end/toy.py): one
worker, promotion ASHA, random search. After all faults, their decisions and scores are compared
with those of a study that was left alone. Filling a disk needs root, to mount a small one.

With `--cluster`, it is hosts that fail, or the network between them (faults/cluster.py); that needs
root too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "faults"))
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import cluster
import hosts
import yaml
from outcomes import Outcome, trace
from outcomes import table as table_of_hosts
from rich.console import Console
from rich.table import Table
from watched import ROOT, TOY

from tuner.study.open import open_study

SPACE = """\
config:
  data_dir: phantom
  num_classes: 3
  model_params: {embed_dim: 4, depths: [1, 1], num_heads: [1, 2], patch_size: [2, 4, 4]}
  patch_size: [8, 32, 32]
  max_epochs: 8
space:
  learning_rate: {loguniform: [1e-4, 1e-1]}
search: {num_trials: 8, searcher: random, seed: 2}
policy: {name: asha, grace_period: 1, reduction_factor: 2, promotion: true}
resources: {max_concurrent: 1, cpu: 1, gpu: 0}
failures: {max_failures: 1000}
"""
PACE = 0.2
"""Seconds of an epoch."""

CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={
    "num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 * 2**20})
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@dataclass
class Row:
    """What one kind of fault did.

    Attributes:
        fault: What was done.
        times: How often it hit a running study.
        studies: In how many studies.
        cut_off: Epochs that had begun and were not saved when a fault came.
        repeated: Epochs trained again although a checkpoint of them was there.
        retrained: Trials that trained again after they had ended.
        same_decisions: Studies with the decisions of the undisturbed one, in its order.
        same_scores: Studies with the scores of the undisturbed one.
    """

    fault: str
    times: int = 0
    studies: int = 0
    cut_off: int = 0
    repeated: int = 0
    retrained: int = 0
    same_decisions: int = 0
    same_scores: int = 0


class Bench:
    """Runs studies and compares them.

    Args:
        folder: Where everything is written.
        seed: Seed of the moments at which faults come.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._rng = random.Random(seed)
        self.address: str | None = None
        (folder / "space.yaml").write_text(SPACE)
        begun = time.monotonic()
        self.calm = self.study("calm")
        self._finish(self.calm)
        self._seconds = time.monotonic() - begun

    def study(self, name: str, parent: Path | None = None) -> Path:
        """Folder of a new study."""
        folder = (parent or self._folder) / name
        folder.with_name(f"{name}.pace.txt").write_text(str(PACE))
        return folder

    def start(self, study: Path) -> subprocess.Popen[str]:
        """A driver that runs or resumes a study."""
        known = (study / "spec.resolved.yaml").is_file()
        words = (
            ["resume", study.name]
            if known
            else ["run", str(self._folder / "space.yaml"), "--name", study.name]
        )
        words += ["--studies-dir", str(study.parent)]
        words += ["--address", self.address] if self.address else []
        return subprocess.Popen(
            [sys.executable, str(TOY), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": ""},
        )

    def _finish(self, study: Path) -> None:
        driver = self.start(study)
        output = driver.communicate()[0]
        if driver.returncode:
            raise RuntimeError(f"{study} could not be finished:\n{output}")

    def cut_driver(
        self, row: Row, times: int, cut: Callable[[subprocess.Popen[str], Path], None]
    ) -> Row:
        """Cut drivers off at random moments, and resume, until it was done so often."""
        while row.times < times:
            study = self.study(f"{row.fault} {row.studies}".translate({32: 95, 44: None, 39: None}))
            row.studies += 1
            while row.times < times:
                driver = self.start(study)
                moment = self._rng.uniform(0, self._seconds)
                try:
                    driver.communicate(timeout=moment)
                except subprocess.TimeoutExpired:
                    row.times += 1
                    cut(driver, study)
                    driver.communicate()
                else:
                    break
            self._finish(study)
            self._compare(row, study)
        return row

    def kill_workers(self, row: Row, times: int) -> Row:
        """Kill the process of the trial that runs, again and again."""
        while row.times < times:
            study = self.study(f"workers_{row.studies}")
            row.studies += 1
            driver = self.start(study)
            while driver.poll() is None and row.times < times:
                time.sleep(self._rng.uniform(0.3, 4.0))
                for pid in trainers(study):
                    os.kill(pid, signal.SIGKILL)
                    row.times += 1
            driver.communicate()
            self._finish(study)
            self._compare(row, study)
        return row

    def fill_disk(self, row: Row, times: int) -> Row:
        """Fill the disk of a study at random moments, and make room again."""
        with small_disk(self._folder / "disk") as disk:
            while row.times < times:
                study = self.study(f"full_{row.studies}", disk)
                row.studies += 1
                while row.times < times:
                    driver = self.start(study)
                    try:
                        driver.communicate(timeout=self._rng.uniform(0, self._seconds))
                    except subprocess.TimeoutExpired:
                        fill(disk / "filler")
                        output = driver.communicate()[0]
                        (disk / "filler").unlink()
                        row.times += 1
                        if "space left" not in output and "is full" not in output:
                            Console().print(f"no word of the disk in:\n{output[-1500:]}")
                    else:
                        break
                self._finish(study)
                self._compare(row, study)
        return row

    def _compare(self, row: Row, study: Path) -> None:
        found = open_study(study.parent, study.name).record
        calm = open_study(self.calm.parent, self.calm.name).record
        row.same_decisions += trace(found) == trace(calm)
        row.same_scores += {n: e.scores for n, e in found.entries.items()} == {
            n: e.scores for n, e in calm.entries.items()
        }
        for log in study.glob("trials/*/trained.log"):
            begun, saved = 0, 0
            again = False
            for line in log.read_text().splitlines():
                what, number, _ = line.split()
                if what == "saved":
                    saved = int(number)
                    continue
                row.cut_off += begun == int(number)
                row.repeated += int(number) <= saved
                again = again or saved == 8
                begun = int(number)
            row.retrained += again


def trainers(study: Path) -> list[int]:
    """Processes that train a trial of a study now."""
    found = set()
    for placement in study.glob("trials/*/placement.yaml"):
        pid = yaml.safe_load(placement.read_text())["pid"]
        command = Path(f"/proc/{pid}/cmdline")
        if command.is_file() and b"Trainable" in command.read_bytes():
            found.add(pid)
    return list(found)


def kill(driver: subprocess.Popen[str], study: Path) -> None:
    """Kill -9 the driver."""
    driver.kill()


def kill_and_spoil(driver: subprocess.Popen[str], study: Path) -> None:
    """Kill -9 the driver, and spoil what Ray has written."""
    driver.kill()
    driver.wait()
    for path in (study / "ray").rglob("*"):
        if path.is_file():
            os.truncate(path, random.choice((0, path.stat().st_size // 2)))


def interrupt(driver: subprocess.Popen[str], study: Path) -> None:
    """Press Ctrl-C."""
    driver.send_signal(signal.SIGINT)


def interrupt_twice(driver: subprocess.Popen[str], study: Path) -> None:
    """Press Ctrl-C twice."""
    driver.send_signal(signal.SIGINT)
    time.sleep(0.05)
    driver.send_signal(signal.SIGINT)


def terminate(driver: subprocess.Popen[str], study: Path) -> None:
    """Send SIGTERM."""
    driver.terminate()


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of 8 MB."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    try:
        with path.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 512)
    except OSError:
        return


def table(rows: list[Row]) -> Table:
    """The faults, for people."""
    shown = Table()
    for heading in (
        *("fault", "times", "studies", "epochs cut off", "saved epochs repeated"),
        *("trials retrained", "same decisions", "same scores"),
    ):
        shown.add_column(heading, justify="left" if heading == "fault" else "right")
    for row in rows:
        shown.add_row(
            row.fault,
            *map(str, (row.times, row.studies, row.cut_off, row.repeated, row.retrained)),
            *(f"{same} of {row.studies}" for same in (row.same_decisions, row.same_scores)),
        )
    return shown


def main() -> None:
    """Do it all, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=30, help="faults of the most frequent kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("bench_faults.json"))
    parser.add_argument("--cluster", action="store_true", help="let hosts of a cluster fail")
    parser.add_argument("--only", nargs="+", default=[], help="these faults of hosts alone")
    parser.add_argument("--partition", type=float, default=300, help="seconds of the long cut")
    options = parser.parse_args()
    if options.cluster:
        fail_hosts(options.only, options.partition, options.json)
    else:
        fail_one_machine(options.kills, options.seed, options.json)
    Console().print(f"written to {options.json}")


def fail_hosts(only: list[str], partition: float, path: Path) -> None:
    """Let hosts of a cluster fail, and write what that did."""
    missing = hosts.missing()
    if missing:
        sys.exit(missing)

    def done(outcomes: list[Outcome]) -> None:
        Console(width=180).print(table_of_hosts(outcomes))
        path.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2))

    try:
        cluster.run_faults(only, partition, done)
    except ValueError as error:
        sys.exit(str(error))


def fail_one_machine(kills: int, seed: int, path: Path) -> None:
    """Let driver, workers and disk of one machine fail, and write what that did."""
    folder = Path(tempfile.mkdtemp(prefix="bench_faults-"))
    os.environ["SEGTUNE_CACHE"] = str(folder / "cache")
    nodes = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert nodes.stdout is not None
    some = max(1, kills // 5)
    rows: list[Row] = []

    def done(row: Row) -> None:
        rows.append(row)
        Console(width=150).print(table(rows))
        path.write_text(json.dumps([asdict(row) for row in rows], indent=2))

    try:
        bench = Bench(folder, seed)
        done(bench.cut_driver(Row("kill -9 of the driver, own cluster"), some, kill))
        bench.address = nodes.stdout.readline().strip()
        done(bench.cut_driver(Row("kill -9 of the driver"), kills, kill))
        spoiled = Row("kill -9 of the driver, Ray's files spoiled")
        done(bench.cut_driver(spoiled, some, kill_and_spoil))
        done(bench.cut_driver(Row("SIGINT"), some, interrupt))
        done(bench.cut_driver(Row("SIGINT twice"), some, interrupt_twice))
        done(bench.cut_driver(Row("SIGTERM"), some, terminate))
        done(bench.kill_workers(Row("kill -9 of the worker"), kills))
        if os.geteuid() == 0:
            done(bench.fill_disk(Row("disk full"), some))
    finally:
        nodes.communicate("")
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
