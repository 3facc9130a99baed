"""Where studies at an address are worked on: a folder in the cache of each machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from training.data.cache_folder import cache_errors, cache_root
from training.durable_write import write_durably
from training.errors import AddressError
from training.local_path import is_url
from training.storage import Store, address_of, local_name
from tuner.errors import StudyError

MARKER = ".segtune-address.json"
"""In the folder of the studies of an address: that address."""

FOLDER = "studies"
"""Where the cache has them."""


def local_studies_dir(studies_dir: Path | str) -> Path:
    """The folder in which studies are worked on: that itself, or for an address one in the cache.

    Raises:
        StudyError: if nothing here reaches such an address.
        training.errors.DatasetError: if the cache cannot be written.
    """
    if not is_url(studies_dir):
        return Path(studies_dir)
    address = address_of(studies_dir)
    try:
        _store(address)
    except AddressError as error:
        raise StudyError(f"--studies-dir {error}") from error
    root = cache_root()
    folder = root / FOLDER / local_name(address)
    marker = folder / MARKER
    if not marker.is_file():
        with cache_errors(root):
            folder.mkdir(parents=True, exist_ok=True)
            write_durably(marker, json.dumps({"address": address}))
    return folder


def shown_studies_dir(studies_dir: Path) -> str:
    """What a user calls the folder of the studies: its path, or the address that it is of."""
    address = _address(studies_dir)
    return str(studies_dir) if address is None else address


@dataclass(frozen=True)
class RemotePlace:
    """Where the storage has a folder that is worked on here.

    Attributes:
        store: The storage, from the folder of the studies on.
        prefix: Name of the folder there.
        root: The folder of the studies here.
    """

    store: Store
    prefix: str
    root: Path

    @property
    def study(self) -> str:
        """Name of the study that it is of, or in."""
        return self.prefix.partition("/")[0]


def remote_place(folder: Path) -> RemotePlace | None:
    """Where the storage has the folder of a study, or one in it; None for one that is here only."""
    folder = folder.absolute()
    for root in folder.parents:
        address = _address(root)
        if address is not None:
            return RemotePlace(_store(address), folder.relative_to(root).as_posix(), root)
    return None


def _address(folder: Path) -> str | None:
    try:
        content = json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return None
    address = content.get("address") if isinstance(content, dict) else None
    return address if isinstance(address, str) else None


@cache
def _store(address: str) -> Store:
    """The store of an address; its connections are kept."""
    return Store(address)
