"""A bundle's network alone, as a file for a pipeline without this library.

Three formats, by suffix: `.pt2` (`torch.export`), `.ts` (TorchScript) and `.onnx`. Each takes
preprocessed patches (batch, channels, depth, height, width) and gives logits of the same size.
Those of an ensemble are the logarithms of the weighted mean of its networks' probabilities: their
softmax is that mean; with regions, their sigmoid is. Mirroring and postprocessing are no part of a
file.
The batch is free; the patch size is the one that was asked for, since D-Former cuts its token
grid into groups by the size it sees, and each format refuses another size by itself. No file
contains folder names of the machine that wrote it.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import math
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from training.bundle.bundle import Bundle
from training.bundle.member import Member
from training.durable_write import check_writable
from training.errors import BundleError
from training.local_path import is_url, url_refusal

Network = Callable[[Tensor], Tensor]

PARITY = 1e-4
"""How far logits may be from the network's own, as a part of the largest (at least 1)."""

PARTIAL = ".segtune-convert-"
"""Prefix of the hidden folder in which a file is written."""

ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def check_target(path: Path, *, overwrite: bool = False) -> None:
    """Check that a network can be written to a file, before any work.

    Args:
        path: The file; its suffix is the format.
        overwrite: Whether a file that is there may be replaced.

    Raises:
        BundleError: for an unknown suffix, a file that is there, or one that cannot be written.
    """
    if is_url(path):
        raise BundleError(url_refusal(path))
    if path.suffix not in FORMATS:
        raise BundleError(
            f"{path}: the suffix names the format, and {path.suffix or 'none'!r} is not one of "
            f"{', '.join(FORMATS)}"
        )
    try:
        if os.path.lexists(path) and not (overwrite and path.is_file()):
            kind = "exists already" if path.is_file() else "exists and is not a file"
            raise BundleError(
                f"{path} {kind}: nothing was changed; choose another with -o"
                + (", or replace it with --overwrite" if path.is_file() else "")
            )
        check_writable(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error


def export_network(
    bundle: Bundle,
    path: Path,
    size: Sequence[int] | None = None,
    *,
    member: int | None = None,
    overwrite: bool = False,
) -> float:
    """Write a bundle's network, or the mean of its networks, and check the file against it.

    Args:
        bundle: The exported model.
        path: File to write; its suffix is the format: .pt2, .ts or .onnx.
        size: Depth, height and width of a patch; the config's `patch_size` by default.
        member: Which network of an ensemble, from 0; the mean of all by default.
        overwrite: Whether a file that is there is replaced.

    Returns:
        Largest difference of logits between the file, read back, and the network, over random
        inputs of two batch sizes.

    Raises:
        BundleError: for what `check_target` refuses, a network that the bundle does not have,
            networks of different patch sizes without a `size`, a size below one voxel, packages
            that are not installed, a network that the format cannot hold, or a file whose logits
            differ by more than `PARITY`. Nothing is left or changed then.
    """
    check_target(path, overwrite=overwrite)
    members = chosen_members(bundle, member)
    size = tuple(size or shared_patch_size(members))
    if len(size) != 3 or min(size) < 1:
        raise BundleError(f"the size {list(size)} needs three voxel counts of at least 1")
    made = [parent for parent in path.absolute().parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=path.parent) as folder:
            partial = Path(folder, path.name)
            difference = _write_checked(members, partial, size)
            _place(partial, path, overwrite=overwrite)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        for parent in made:
            # not empty if all went well
            with suppress(OSError):
                parent.rmdir()
    return difference


def chosen_members(bundle: Bundle, member: int | None) -> list[Member]:
    """The network of a bundle that is wanted; all of them by default.

    Raises:
        BundleError: if there is no such network.
    """
    if member is None:
        return list(bundle.members)
    if not 0 <= member < len(bundle.members):
        raise BundleError(
            f"the exported model {bundle.folder} has no network {member}: they are 0 to "
            f"{len(bundle.members) - 1}"
        )
    return [bundle.members[member]]


def shared_patch_size(members: Sequence[Member]) -> tuple[int, ...]:
    """The patch size that networks were trained with.

    Raises:
        BundleError: if they have several.
    """
    sizes = sorted({tuple(member.config.known_patch_size) for member in members})
    if len(sizes) > 1:
        shown = " and ".join(str(list(size)) for size in sizes)
        raise BundleError(
            f"the networks of this ensemble were trained with patches of {shown}: choose one size "
            "for the file with --size, or one network with --member"
        )
    return sizes[0]


class _Mean(nn.Module):
    """Logits whose softmax, with regions whose sigmoid, is the mean of the probabilities."""

    def __init__(self, members: Sequence[Member]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(member.module.model for member in members)
        self.target = members[0].config.target_class
        self.regions = members[0].module.regions is not None
        self.weights = [math.log(member.weight) for member in members]

    def forward(self, image: Tensor) -> Tensor:
        """Logarithms of the mean probabilities, with regions their logits."""
        parts, others = [], []
        for network, weight in zip(self.networks, self.weights, strict=True):
            logits = network(image)
            if self.regions:
                parts.append(nn.functional.logsigmoid(logits) + weight)
                others.append(nn.functional.logsigmoid(-logits) + weight)
                continue
            if self.target is not None:
                logits = logits[:, [0, self.target]]
            parts.append(torch.log_softmax(logits, dim=1) + weight)
        mean = torch.logsumexp(torch.stack(parts), dim=0)
        return mean - torch.logsumexp(torch.stack(others), dim=0) if self.regions else mean


def _write_checked(members: Sequence[Member], path: Path, size: Sequence[int]) -> float:
    """Write networks to a new file; the largest difference of its logits."""
    write, read = FORMATS[path.suffix]
    config, device = members[0].config, members[0].module.device
    network: nn.Module = members[0].module.model if len(members) == 1 else _Mean(members)
    network.eval()
    image = torch.randn(2, config.input_channels, *size, device=device)
    with _quiet(), torch.no_grad():
        try:
            write(network, image, path)
        except (BundleError, OSError):
            raise
        except Exception as error:
            raise BundleError(
                f"{_names(members)} cannot be written as {path.suffix} for patches "
                f"of {list(size)}: {str(error).strip().splitlines()[0]}"
            ) from error
        return _difference(network, read(path), image)


def _names(members: Sequence[Member]) -> str:
    return ", ".join(dict.fromkeys(member.config.model_name for member in members))


def _place(partial: Path, path: Path, *, overwrite: bool) -> None:
    """Rename a finished file; an existing file is replaced only if that is asked for."""
    if overwrite:
        partial.replace(path)
        return
    try:
        path.hardlink_to(partial)
    except FileExistsError:
        check_target(path)
    except OSError:  # a file system that knows no links
        check_target(path)
        partial.replace(path)


def _unwritable(path: Path, error: OSError) -> BundleError:
    return BundleError(
        f"{path} cannot be written ({error.strerror or error}): choose another with -o"
    )


def _difference(network: nn.Module, exported: Network, image: Tensor) -> float:
    worst = 0.0
    for batch in (torch.randn_like(image[:1]), torch.randn_like(image.repeat(2, 1, 1, 1, 1)[:3])):
        expected = network(batch)
        difference = float((exported(batch) - expected).abs().max())
        if not difference <= PARITY * max(1.0, float(expected.abs().max())):
            raise BundleError(
                f"the exported network does not predict what the model predicts: logits differ "
                f"by {difference:.3g}"
            )
        worst = max(worst, difference)
    return worst


def _write_export(network: nn.Module, image: Tensor, path: Path) -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(network, (image,), dynamic_shapes=({0: batch},))
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                # where in this machine's files each operation was written
                node.meta.pop("stack_trace", None)
    # a file name with another suffix is refused
    with path.open("wb") as file:
        torch.export.save(program, file)


def _read_export(path: Path) -> Network:
    with path.open("rb") as file:
        return torch.export.load(file).module()


class _OneSize(nn.Module):
    """Refuses any size but one: a trace would take it and compute something else."""

    def __init__(self, network: nn.Module, size: list[int]) -> None:
        super().__init__()
        self.network = network
        self.size = size

    def forward(self, image: Tensor) -> Tensor:
        """Logits of patches of the traced size."""
        size: list[int] = image.shape[1:]  # type: ignore[assignment]
        if size != self.size:
            raise ValueError(f"the network was exported for patches {self.size}, not {size}")
        logits: Tensor = self.network(image)
        return logits


def _write_torchscript(network: nn.Module, image: Tensor, path: Path) -> None:
    traced = torch.jit.trace(network, image)  # type: ignore[no-untyped-call]
    scripted = torch.jit.script(_OneSize(traced, list(image.shape[1:])))
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    # debug files hold the path on this machine of each line of code
    with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(path, "w") as kept:
        for member in whole.infolist():
            if not member.filename.endswith(".debug_pkl"):
                kept.writestr(member.filename, whole.read(member))


def _read_torchscript(path: Path) -> Network:
    loaded: Network = torch.jit.load(path)  # type: ignore[no-untyped-call]
    return loaded


def _write_onnx(network: nn.Module, image: Tensor, path: Path) -> None:
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise BundleError(
            f"ONNX needs {', '.join(missing)}: install with `pip install 'segtune[onnx]'`"
        )
    program = torch.onnx.export(
        network,
        (image,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["image"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    for node in program.model.graph.all_nodes():
        # where in this machine's files each operation was written
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
    program.save(path, external_data=False)


def _read_onnx(path: Path) -> Network:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> Tensor:
        (logits,) = session.run(None, {"image": image.cpu().numpy()})
        return torch.from_numpy(logits).to(image.device)

    return run


Writer = Callable[[nn.Module, Tensor, Path], None]
Reader = Callable[[Path], Network]

FORMATS: dict[str, tuple[Writer, Reader]] = {
    ".pt2": (_write_export, _read_export),
    ".ts": (_write_torchscript, _read_torchscript),
    ".onnx": (_write_onnx, _read_onnx),
}
"""How each format is written and read back, by suffix."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' own log lines and warnings."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
