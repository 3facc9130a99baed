"""Data at an address such as `s3://bucket/Task04`: fetched once into the cache of each machine."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from training.data.cache_folder import cache_errors, cache_root
from training.errors import AddressError, DatasetError
from training.storage import Store, StoreError, address_of, local_name

FOLDER = "fetched"
"""Where the cache has them."""


def fetch_data(address: Path | str) -> Path:
    """The files of an address, in a folder of this machine.

    Files that are there are compared by size and time, and those that changed are fetched again.
    One process fetches, others wait for it.

    Raises:
        DatasetError: if nothing is there, or it cannot be reached, or the cache cannot be written.
    """
    whole = address_of(address)
    root = cache_root() / FOLDER
    folder = root / local_name(whole)
    try:
        store = Store(whole)
        with cache_errors(cache_root()):
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f"{folder.name}.lock"):
                # of an address, not of the cache
                try:
                    _fetch(store, folder)
                except StoreError as error:
                    raise DatasetError(f"the data folder {error}") from error
    except AddressError as error:
        raise DatasetError(f"the data folder {error}") from error
    return folder


def _fetch(store: Store, folder: Path) -> None:
    found = {name: stored for name, stored in store.listing().items() if not _is_hidden(name)}
    if not found:
        raise DatasetError(f"the data folder {store.address} has no files, or is not there")
    for name, stored in found.items():
        store.bring(name, stored, folder / name)
    for path in folder.rglob("*"):
        # it was fetched before, and has gone there
        if path.is_file() and path.relative_to(folder).as_posix() not in found:
            path.unlink()


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
