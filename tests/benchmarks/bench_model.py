"""D-Former beside the published code and MONAI's networks: size, time and memory of a step.

    python tests/benchmarks/bench_model.py [--rounds 7] [--size 64 128 128]

The published code is measured where the environment variable PUBLISHED_DFORMER names its
`model.py` (it wants einops, and timm or nothing). Each network takes turns with D-Former in a
process of the two alone, and times are medians; memory is the growth of the process (of the
allocator on a GPU) in the first step of a fresh process. On a GPU, bf16 autocast and a batch of
2 are used, and D-Former is measured with torch.compile as well.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import UNETR, DynUNet, SegResNet, SwinUNETR
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from training.models.dformer.network import SegNetwork

OURS = "D-Former"
BF16 = "D-Former, bf16 autocast"
CLASSES = 14
PUBLISHED = "PUBLISHED_DFORMER"
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
BATCH = 2 if CUDA else 1


def published_dformer() -> nn.Module:
    """The published network, from the file that the environment names."""
    if importlib.util.find_spec("timm") is None:
        # all it takes of timm, which would pull in torchvision
        layers: Any = types.ModuleType("timm.models.layers")
        layers.DropPath = nn.Identity
        layers.to_3tuple = lambda value: (value,) * 3
        layers.trunc_normal_ = nn.init.trunc_normal_
        sys.modules |= {name: types.ModuleType(name) for name in ("timm", "timm.models")}
        sys.modules["timm.models.layers"] = layers
    spec = importlib.util.spec_from_file_location("published_dformer", os.environ[PUBLISHED])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: nn.Module = module.SegNetwork(CLASSES, 1, deep_supervision=False)
    return network


def networks(size: tuple[int, int, int]) -> dict[str, Callable[[], nn.Module]]:
    """Builders of what is measured, the peer first."""
    kernels, strides = [[3, 3, 3]] * 6, [[1, 1, 1], *[[2, 2, 2]] * 5]
    found: dict[str, Callable[[], nn.Module]] = {
        "D-Former (published code)": published_dformer,
        OURS: lambda: SegNetwork(CLASSES, 1),
        BF16: lambda: SegNetwork(CLASSES, 1),
        "D-Former, checkpointing": lambda: SegNetwork(CLASSES, 1, gradient_checkpointing=True),
        "D-Former, compiled": lambda: _compiled(SegNetwork(CLASSES, 1)),
        "SwinUNETR (feature_size 48)": lambda: SwinUNETR(1, CLASSES, feature_size=48),
        "UNETR": lambda: UNETR(1, CLASSES, size),
        "SegResNet (init_filters 32)": lambda: SegResNet(
            init_filters=32, in_channels=1, out_channels=CLASSES
        ),
        "DynUNet (nnU-Net's plan)": lambda: DynUNet(
            3, 1, CLASSES, kernels, strides, strides[1:], filters=[32, 64, 128, 256, 320, 320]
        ),
    }
    # on a CPU compilation takes minutes and gives nothing; on a GPU all use bf16
    del found[BF16 if CUDA else "D-Former, compiled"]
    if not os.environ.get(PUBLISHED):
        del found["D-Former (published code)"]
    return found


def _compiled(network: nn.Module) -> nn.Module:
    network.compile(fullgraph=True)
    return network


class Step:
    """One network's forward and backward pass."""

    def __init__(self, name: str, size: tuple[int, int, int]) -> None:
        torch.manual_seed(0)
        self.network = networks(size)[name]().train().to(DEVICE)
        self.bf16 = CUDA or name == BF16
        self.image = torch.randn(BATCH, 1, *size, device=DEVICE)
        self.gradient = torch.randn(BATCH, CLASSES, *size, device=DEVICE)

    def __call__(self) -> tuple[float, float]:
        """Seconds of the forward pass, and of both."""
        self.network.zero_grad(set_to_none=True)
        start = _now()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=self.bf16):
            logits: Tensor = self.network(self.image)
        forward = _now()
        logits.backward(self.gradient.to(logits.dtype))
        return forward - start, _now() - start


def _now() -> float:
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def size_of(name: str, size: tuple[int, int, int]) -> dict[str, float]:
    """Parameters and FLOPs of a network, and memory of its first step, in this process."""
    step = Step(name, size)
    parameters = sum(p.numel() for p in step.network.parameters())
    before = _memory(reset=True)
    step()
    peak = _memory(reset=False) - before
    gc.collect()
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        step.network.eval()(step.image)
    return {
        "parameters": parameters,
        "gflops_forward": flops.get_total_flops() / 1e9,
        "peak_gb": peak / 1e9,
    }


def _memory(*, reset: bool) -> int:
    """Memory in use where `reset`, else the most since then, in bytes."""
    if CUDA:
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    field = "VmRSS" if reset else "VmHWM"
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(s.split()[1]) for s in status.splitlines() if s.startswith(field))


def turns_of(name: str, size: tuple[int, int, int], rounds: int) -> dict[str, float]:
    """Median times of a network and of D-Former, which take turns in this process."""
    steps = {key: Step(key, size) for key in dict.fromkeys((OURS, name))}
    times: dict[str, list[tuple[float, float]]] = {key: [] for key in steps}
    for turn in range(rounds + 2):
        for key, step in steps.items():
            measured = step()
            if turn >= 2:  # the first two warm up
                times[key].append(measured)
    (forward, total), ours = (
        [statistics.median(column) for column in zip(*times[key], strict=True)]
        for key in (name, OURS)
    )
    return {
        "forward_s": forward,
        "step_s": total,
        "dformer_forward_s": ours[0],
        "dformer_step_s": ours[1],
        "dformer_times_as_fast": total / ours[1],
    }


def in_a_fresh_process(what: str, name: str, options: argparse.Namespace) -> dict[str, float]:
    """`size_of` or `turns_of` of one network, where nothing was allocated before."""
    command = [sys.executable, __file__, "--rounds", str(options.rounds), what, name]
    command += ["--size", *map(str, options.size)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    measured: dict[str, float] = json.loads(output.splitlines()[-1])
    return measured


def measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """All figures of all networks."""
    results = {
        name: in_a_fresh_process("--size-of", name, options)
        | in_a_fresh_process("--turns-of", name, options)
        for name in networks(options.size)
    }
    for result in results.values():
        result["dformer_memory"] = results[OURS]["peak_gb"] / result["peak_gb"]
    return results


def table(results: dict[str, dict[str, float]], title: str) -> Table:
    """The figures for people."""
    caption = "beside each network, in the same process: how many times as fast D-Former is, and"
    shown = Table(title=title, caption=f"{caption} its memory as a share of the network's")
    headings = ("network", "M param.", "GFLOP forward", "forward s", "step s", "peak GB",
                "D-Former: step s", "times as fast", "memory")  # fmt: skip
    for heading in headings:
        shown.add_column(heading, justify="left" if heading == "network" else "right")
    for name, r in results.items():
        shown.add_row(
            name, f"{r['parameters'] / 1e6:.2f}", f"{r['gflops_forward']:.0f}",
            f"{r['forward_s']:.2f}", f"{r['step_s']:.2f}", f"{r['peak_gb']:.2f}",
            f"{r['dformer_step_s']:.2f}", f"{r['dformer_times_as_fast']:.2f}",
            f"{r['dformer_memory']:.2f}",
        )  # fmt: skip
    return shown


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, nargs=3, default=(64, 128, 128))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, default=Path("bench_model.json"))
    parser.add_argument("--size-of", help="print size and memory of this network as JSON")
    parser.add_argument("--turns-of", help="print times of this network and D-Former as JSON")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    depth, height, width = options.size
    size = (depth, height, width)
    if options.size_of:
        print(json.dumps(size_of(options.size_of, size)))
        return
    if options.turns_of:
        print(json.dumps(turns_of(options.turns_of, size, options.rounds)))
        return
    results = measure(options)
    device = torch.cuda.get_device_name() if CUDA else f"CPU, {torch.get_num_threads()} threads"
    precision = "bf16" if CUDA else "fp32"
    title = f"{BATCH}×1×{depth}×{height}×{width}, {CLASSES} classes, {precision}, {device}"
    Console(width=130).print(table(results, title))
    facts = {"size": size, "batch": BATCH, "device": device, "precision": precision}
    facts |= {"torch": torch.__version__, "rounds": options.rounds}
    options.json.write_text(json.dumps({"measured": facts, "networks": results}, indent=2))
    print(f"written to {options.json}")


if __name__ == "__main__":
    main()
