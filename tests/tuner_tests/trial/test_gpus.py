from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch

from training.data import DataSource
from tuner.driver import gpus
from tuner.driver.gpus import check_own_gpus
from tuner.errors import ResourceError
from tuner.spec.load import parse_spec
from tuner.spec.settings import ResourceSettings
from tuner.study.trial_entry import TrialState
from tuner.trial.context import StudyContext
from tuner.trial.failures import classify
from tuner.trial.gpus import CONTEXT_BYTES, check_trial_gpu, gpu_use, keep_to_share
from tuner.trial.memory import GpuUse
from tuner.trial.node_faults import GpuMissingError


def machine(monkeypatch: pytest.MonkeyPatch, *, ray: int, torch_sees: int) -> None:
    monkeypatch.setattr(gpus, "gpus_of_this_machine", lambda: ray)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: torch_sees > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: torch_sees)


def settings(**values: Any) -> ResourceSettings:
    return ResourceSettings(**values)


@pytest.mark.parametrize(
    ("ray", "torch_sees", "gpu"), [(0, 0, "auto"), (0, 0, 0), (1, 1, 1), (2, 2, "auto"), (1, 0, 0)]
)
def test_a_machine_that_has_what_is_asked_for_is_fine(
    monkeypatch: pytest.MonkeyPatch, ray: int, torch_sees: int, gpu: Any
) -> None:
    machine(monkeypatch, ray=ray, torch_sees=torch_sees)
    assert check_own_gpus(settings(gpu=gpu)) is None


def test_a_gpu_that_the_machine_has_not_got_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, ray=0, torch_sees=0)
    with pytest.raises(ResourceError, match=r"resources.gpu=0.5 .* Ray sees 0 GPUs .* --address"):
        check_own_gpus(settings(gpu=0.5))


@pytest.mark.parametrize("gpu", ["auto", 1])
def test_gpus_that_torch_cannot_use_are_refused(monkeypatch: pytest.MonkeyPatch, gpu: Any) -> None:
    machine(monkeypatch, ray=1, torch_sees=0)
    with pytest.raises(ResourceError, match=r"can use none: .*--gpus-per-trial 0"):
        check_own_gpus(settings(gpu=gpu))


def test_gpus_that_ray_does_not_see_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, ray=0, torch_sees=2)
    note = check_own_gpus(settings(gpu="auto"))
    assert note is not None
    assert "trials train on the CPU" in note
    assert "--num-gpus=2" in note


def test_gpus_that_are_not_visible_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.gpus_of_this_machine() == 0


def test_a_trial_that_booked_a_gpu_and_has_none_halts_the_study(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine(monkeypatch, ray=1, torch_sees=0)
    check_trial_gpu(0)
    with pytest.raises(GpuMissingError, match=r"booked 0.5 GPU on node .*") as error:
        check_trial_gpu(0.5)
    assert classify(error.value).state is TrialState.INTERRUPTED
    machine(monkeypatch, ray=1, torch_sees=1)
    check_trial_gpu(0.5)


@pytest.mark.parametrize(
    ("gpus", "torch_sees", "gib", "kept"),
    [
        # half of it, without what CUDA itself takes
        (0.5, 1, 24, 0.5 - CONTEXT_BYTES / (24 * 2**30)),
        # a small one: at least half of the share
        (0.25, 1, 2, 0.125),
        (1, 1, 24, None),
        (2, 2, 24, None),
        (0, 1, 24, None),
        (0.5, 0, 0, None),
    ],
)
def test_a_trial_on_a_shared_gpu_is_kept_to_its_part(
    monkeypatch: pytest.MonkeyPatch, gpus: float, torch_sees: int, gib: int, kept: float | None
) -> None:
    machine(monkeypatch, ray=1, torch_sees=torch_sees)
    limits: list[tuple[float, int]] = []
    device = SimpleNamespace(total_memory=gib * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: device)
    monkeypatch.setattr(
        torch.cuda,
        "set_per_process_memory_fraction",
        lambda part, number: limits.append((part, number)),
    )
    keep_to_share(gpus)
    assert limits == ([] if kept is None else [(pytest.approx(kept), 0)])


@pytest.mark.parametrize(("logical", "expected"), [("false", 1), ("true", 0)])
def test_logical_gpus_are_none_to_the_training(tmp_path: Path, logical: str, expected: int) -> None:
    text = f"space: {{momentum: {{uniform: [0.1, 0.9]}}}}\nresources: {{logical_gpus: {logical}}}"
    spec = parse_spec(text, source="s.yaml")
    context = StudyContext(tmp_path, spec, (DataSource(tmp_path, tmp_path, ""),), gpus=0.5)
    assert context.trial_config(spec, 0, {"momentum": 0.5}).gpus == expected


def unknown_to_nvml(device: int) -> int:
    raise pynvml.NVMLError_NotSupported


def no_driver(device: int) -> int:
    raise RuntimeError("cuda driver can't be loaded, is cuda enabled?")


@pytest.mark.parametrize(
    ("tells", "busy"), [(lambda device: 35, 0.35), (unknown_to_nvml, None), (no_driver, None)]
)
def test_what_a_trial_takes_of_a_gpu_is_measured(
    monkeypatch: pytest.MonkeyPatch, tells: Callable[[int], int], busy: float | None
) -> None:
    # of a machine without one: nothing is known
    assert gpu_use() is None
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 2 * 2**30)
    device = SimpleNamespace(total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: device)
    monkeypatch.setattr(torch.cuda, "utilization", tells)
    assert gpu_use() == GpuUse(2 * 2**30 + CONTEXT_BYTES, 24 * 2**30, busy)


def test_a_process_that_has_not_loaded_torch_takes_nothing_of_a_gpu() -> None:
    program = (
        "import sys; from tuner.trial.gpus import gpu_use; print(gpu_use(), 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout.split() == ["None", "False"], ran.stderr
