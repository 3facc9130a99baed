"""Memory of a process and of those that it has started, against what they are known to hold."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tuner.study.trial_entry import Placement
from tuner.trial import memory
from tuner.trial.memory import GpuUse, MemoryMeter, MemoryUse, own_memory, processes_of
from tuner.trial.messages import EpochReport, TrialStart

MIB = 2**20
HOLDS = "import sys; held = b'x' * (int(sys.argv[1]) * 2**20); print(flush=True); input()"
STARTS_ONE = (
    "import subprocess, sys\n"
    "child = subprocess.Popen([sys.executable, '-c', sys.argv[2], sys.argv[1]],"
    " stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
    "child.stdout.readline(); print(child.pid, flush=True); input(); child.communicate(b'\\n')"
)


@contextmanager
def program(code: str, *arguments: str) -> Iterator[tuple[int, str]]:
    """A process that runs a program, and the line that it has written."""
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process.pid, process.stdout.readline().decode().strip()
        process.communicate(b"\n")


@pytest.fixture
def meter() -> Iterator[MemoryMeter]:
    """The meter of this process, on a node where 60 of 100 bytes are used."""
    made = MemoryMeter("node-a", lambda: (60.0, 100.0))
    yield made
    made.close()


def test_processes_are_found_that_a_child_has_started() -> None:
    with program(STARTS_ONE, "1", HOLDS) as (child, grandchild):
        assert list(processes_of(child)) == [child, int(grandchild)]
        assert {child, int(grandchild)} < set(processes_of(os.getpid()))


def test_memory_is_that_of_the_process_and_not_of_files_that_it_maps(tmp_path: Path) -> None:
    with program(HOLDS, "100") as (one, _), program(HOLDS, "1") as (other, _):
        assert 95 * MIB < own_memory(one) - own_memory(other) < 105 * MIB
    path = tmp_path / "volume.bin"
    path.write_bytes(b"x" * 100 * MIB)
    before = own_memory(os.getpid())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert np.frombuffer(mapped, dtype=np.uint8)[:: mmap.PAGESIZE].sum() > 0
        assert own_memory(os.getpid()) - before < 20 * MIB


def test_a_process_that_has_ended_holds_nothing() -> None:
    with program(HOLDS, "1") as (process, _):
        assert own_memory(process)
    assert own_memory(process) == 0
    assert list(processes_of(process)) == [process]


def test_the_peak_is_kept_until_the_next_trial_begins(meter: MemoryMeter) -> None:
    before = meter.report()
    with program(HOLDS, "200"):
        during = meter.report()
    after = meter.report()
    assert before is not None
    assert during is not None
    assert after is not None
    assert during.peak - before.peak > 190 * MIB
    # with nothing but a look at the end, mean and what is there now are the same
    assert after.peak == during.peak
    assert after.mean < during.peak - 100 * MIB
    meter.begin()
    anew = meter.report()
    assert anew is not None
    assert anew.peak < during.peak - 100 * MIB
    assert (anew.node, anew.used, anew.limit) == ("node-a", 60.0, 100.0)


def test_it_looks_between_two_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was held only in the middle of an epoch is seen."""
    monkeypatch.setattr(memory, "SAMPLE_SECONDS", 0.001)
    looks: list[int] = []
    meter = MemoryMeter("node-a", lambda: (float(looks.append(1) or 1), 1.0))
    while len(looks) < 3:
        assert meter._thread.is_alive()
    meter.close()
    assert not meter._thread.is_alive()


def test_where_there_is_no_proc_nothing_is_measured(
    meter: MemoryMeter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "PROC", tmp_path)
    assert meter.report() is None


def test_what_a_trial_takes_of_its_gpu_is_the_mean_of_what_was_seen() -> None:
    looks = [GpuUse(1e9, 8e9, 0.2), GpuUse(3e9, 8e9, 0.6), GpuUse(3e9, 8e9, 0.7)]
    meter = MemoryMeter("node-a", lambda: (60.0, 100.0), lambda: looks.pop(0))
    meter._ended.set()
    meter._thread.join()
    while len(looks) > 1:
        meter._look()
    use = meter.report()
    assert use is not None
    assert use.gpu == GpuUse(3e9, 8e9, pytest.approx(0.5))
    meter.close()


@pytest.mark.parametrize("gpu", [None, GpuUse(3e9, 8e9), GpuUse(3e9, 8e9, 0.25)])
def test_what_is_measured_reaches_the_driver_as_it_was(gpu: GpuUse | None) -> None:
    use = MemoryUse("node-a", 4.0, 3.0, 60.0, 100.0, gpu)
    report = EpochReport(1, 0.5, {}, 10.0, memory=use)
    assert EpochReport.from_ray(report.to_ray()) == report
    start = TrialStart(Placement("host-a", ("0",)), use)
    assert TrialStart.from_ray(start.to_ray()) == start
