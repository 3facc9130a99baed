"""Whether a bundle may use code that is not of this package, and from where."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.config import ModelTrainingConfig
from training.errors import BundleError
from training.registry import code_file, is_plugin


@contextmanager
def path_without(folder: Path) -> Iterator[None]:
    """Let no module be imported from a folder, as when a command is typed in it."""
    before = list(sys.path)
    inside = [place for place in before if Path(place).resolve().is_relative_to(folder.resolve())]
    sys.path[:] = [place for place in before if place not in inside]
    try:
        yield
    finally:
        sys.path[:] = before


def check_code(folder: Path, config: ModelTrainingConfig, *, trust_code: bool) -> None:
    """Refuse a network of somebody's own where it is not allowed, or lies in the bundle.

    Raises:
        BundleError: if so, with what would be imported and called.
    """
    name = config.model_name
    if not is_plugin(name):
        return
    module = name.partition(":")[0]
    if not trust_code:
        raise BundleError(
            f"the exported model {folder} needs code that is not part of it: its network is "
            f"{name}, so the module {module} of this machine would be imported and run, and "
            f"{name.rpartition(':')[2]} called with model_params={config.model_params}; if you "
            "know and trust both, allow it with --trust-code (in Python: "
            "Bundle.load(folder, trust_code=True))"
        )
    found = code_file(name)
    if found is not None and found.absolute().resolve().is_relative_to(folder.resolve()):
        raise BundleError(
            f"the exported model {folder} needs the module {module}, which was found inside the "
            f"model's own folder ({found}): code of a bundle is never run; install the module, or "
            "put its folder on PYTHONPATH"
        )
