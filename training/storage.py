"""Files on storage that is reached by an address: S3, Google Cloud, Azure, HDFS or what fsspec has.

pyarrow reaches the first four by itself; for others the package that fsspec names is installed.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from training.durable_write import PARTIAL, durable_file
from training.errors import AddressError
from training.local_path import url_refusal

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

WHOLE_OR_NOTHING = ("s3", "gcs", "abfs")
"""Storage where a file is seen when all of it has arrived, as pyarrow names it."""

SECOND = 10**9

CHUNK = 4 * 2**20
"""Bytes that are sent or read at once."""

READINGS = 10
"""How often a file is read that is replaced meanwhile."""

SHOWN = 300
"""Characters of a message of the storage that are shown."""


class StoreError(OSError):
    """Storage does not answer, or refuses; the message names its address."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EIO, message)

    def __str__(self) -> str:
        return str(self.strerror)


class _ReplacedError(Exception):
    """A file was replaced while it was read."""


@dataclass(frozen=True)
class Stored:
    """A file as the storage has it.

    Attributes:
        size: Its bytes.
        written: When it was written, in nanoseconds since 1970 by the storage's clock, to the
            second: S3 tells no more of a single file.
    """

    size: int
    written: int

    @classmethod
    def of(cls, info: FileInfo) -> Stored:
        """Of what pyarrow tells of a file."""
        return cls(info.size, (info.mtime_ns or 0) // SECOND * SECOND)

    def is_like(self, path: Path) -> bool:
        """Whether a local file is the same, by its size and the time that it was given."""
        try:
            here = path.stat()
        except OSError:
            return False
        return (here.st_size, here.st_mtime_ns) == (self.size, self.written)


def address_of(path: Path | str) -> str:
    """The address that a user gave, which `Path` has spoiled, without a slash at its end.

    Example:
        >>> address_of(Path("s3://bucket/studies"))
        's3://bucket/studies'
    """
    scheme, _, rest = str(path).partition(":")
    return f"{scheme.lower()}://{rest.strip('/')}"


def local_name(address: str) -> str:
    """The name of a folder of this machine for what an address has: one for each address."""
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", address.partition("?")[0]).strip("-")
    return f"{slug[:80]}-{hashlib.sha256(address.encode()).hexdigest()[:10]}"


class Store:
    """A folder on storage that is reached by an address.

    Args:
        address: The address, such as `s3://bucket/studies`; what pyarrow understands after a `?`
            (`region`, `scheme`, `endpoint_override`) is part of it.

    Raises:
        AddressError: if nothing here knows how to reach such storage.
    """

    def __init__(self, address: str) -> None:
        self.address = address_of(address)
        self._files, self._root = _reached(self.address)
        self._direct = self._files.type_name in WHOLE_OR_NOTHING

    def listing(self, folder: str = "") -> dict[str, Stored]:
        """All files below a folder, by name from the root of this store; none if it is not there.

        Raises:
            StoreError: if the storage does not answer.
        """
        from pyarrow.fs import FileSelector, FileType

        selector = FileSelector(self._path(folder), recursive=True, allow_not_found=True)
        with self._explained("be listed"):
            found = self._files.get_file_info(selector)
        start = len(self._root) + 1
        return {info.path[start:]: Stored.of(info) for info in found if info.type == FileType.File}

    def folders(self) -> list[str]:
        """Names of the folders in this one, sorted.

        Raises:
            StoreError: if the storage does not answer.
        """
        from pyarrow.fs import FileSelector, FileType

        with self._explained("be listed"):
            found = self._files.get_file_info(FileSelector(self._root, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == FileType.Directory)

    def find(self, name: str) -> Stored | None:
        """A file; None if it is not there.

        Raises:
            StoreError: if the storage does not answer.
        """
        from pyarrow.fs import FileType

        with self._explained("be read"):
            info = self._files.get_file_info(self._path(name))
        return Stored.of(info) if info.type == FileType.File else None

    def read(self, name: str) -> bytes | None:
        """Content of a file; None if it is not there.

        Raises:
            StoreError: if the storage does not answer.
        """
        for _ in range(READINGS):
            content = io.BytesIO()
            with suppress(_ReplacedError):
                return content.getvalue() if self._read_into(name, content) else None
        raise StoreError(f"{self.address}/{name} is replaced all the time")

    def download(self, name: str, path: Path) -> Stored:
        """Write a file of the storage to a local path, in full or not at all.

        A file that is replaced meanwhile is read again: its parts are asked for one by one, and
        those of two files would make a third.

        Raises:
            StoreError: if the storage does not answer, or has no such file.
            OSError: if it cannot be written here.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(READINGS):
            with suppress(_ReplacedError), durable_file(path) as file:
                stored = self._read_into(name, file)
                if stored is None:
                    raise StoreError(f"{self.address}/{name} is not there")
                return stored
        raise StoreError(f"{self.address}/{name} is replaced all the time")

    def _read_into(self, name: str, file: IO[bytes]) -> Stored | None:
        """Copy a file of the storage; what is known of it, None if it is not there.

        Raises:
            _ReplacedError: if it was replaced meanwhile.
            StoreError: if the storage does not answer.
        """
        before = self.find(name)
        if before is None:
            return None
        with self._explained("be read"):
            stream = self._files.open_input_stream(self._path(name), compression=None)
        with stream:
            while True:
                with self._explained("be read"):
                    chunk = stream.read(CHUNK)
                if not chunk:
                    break
                file.write(chunk)
        if file.tell() != before.size or self.find(name) != before:
            raise _ReplacedError
        return before

    def bring(self, name: str, stored: Stored, path: Path) -> None:
        """Make a local file what the storage has, unless it is.

        Args:
            name: The file.
            stored: What the storage tells of it.
            path: The local file; it gets the time that the storage has.

        Raises:
            StoreError: if the storage does not answer, or has no such file.
            OSError: if it cannot be written here.
        """
        if not stored.is_like(path):
            read = self.download(name, path)
            os.utime(path, ns=(read.written, read.written))

    def upload(self, file: BinaryIO, name: str) -> None:
        """Write an open file to the storage.

        Raises:
            StoreError: if it cannot be written there.
        """
        with self._writing(name) as stream:
            shutil.copyfileobj(file, stream, CHUNK)

    def write(self, name: str, content: bytes) -> None:
        """Write a file to the storage.

        Raises:
            StoreError: if it cannot be written.
        """
        with self._writing(name) as stream:
            stream.write(content)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there.

        Raises:
            StoreError: if the storage does not answer.
        """
        with self._explained("be changed"):
            try:
                self._files.delete_file(self._path(name))
            except FileNotFoundError:
                return

    def check_writable(self) -> None:
        """Write and remove a small file.

        Raises:
            StoreError: if it cannot be written.
        """
        name = f".segtune-probe-{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
        self.write(name, b"segtune")
        self.remove(name)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextmanager
    def _writing(self, name: str) -> Iterator[Any]:
        path = self._path(name)
        target = path if self._direct else path + PARTIAL
        with self._explained("be written"):
            if not self._direct:
                self._files.create_dir(path.rpartition("/")[0], recursive=True)
            with self._files.open_output_stream(target, compression=None) as stream:
                yield stream
            if not self._direct:
                self._files.move(target, path)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Name the storage in whatever its library raises."""
        try:
            yield
        except FileNotFoundError as error:
            if "bucket" not in str(error).lower():
                raise
            raise self._error(what, error) from error
        except Exception as error:
            # each storage has errors of its own
            raise self._error(what, error) from error

    def _error(self, what: str, error: Exception) -> StoreError:
        reason = " ".join(str(error).split()) or type(error).__name__
        return StoreError(f"{self.address} cannot {what} ({reason[:SHOWN]})")


def _reached(address: str) -> tuple[FileSystem, str]:
    """What reaches an address, and the path that it is there.

    Raises:
        AddressError: if nothing does.
    """
    from pyarrow import ArrowInvalid, ArrowNotImplementedError
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    scheme, _, rest = address.partition("://")
    if not rest:
        raise AddressError(f"{address} names no bucket: {scheme}://BUCKET/FOLDER")
    if scheme == "file":
        why = "a folder of this machine has a path"
        raise AddressError(url_refusal(address, why))
    try:
        files, path = FileSystem.from_uri(address)
        return files, path.rstrip("/")
    except (ArrowInvalid, ArrowNotImplementedError) as error:
        unknown = "Unrecognized filesystem type" in str(error) or "built without" in str(error)
        if not unknown:
            raise AddressError(f"{address}: {_first_line(error)}") from error
    except OSError as error:
        raise AddressError(f"{address}: {_first_line(error)}") from error
    from fsspec.core import url_to_fs

    try:
        files, path = url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise AddressError(
            f"{address}: nothing here reaches {scheme}:// ({_first_line(error)})"
        ) from error
    return PyFileSystem(FSSpecHandler(files)), path.rstrip("/")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
