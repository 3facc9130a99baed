"""Fingerprints of files, remembered so that a large dataset is read once."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from training.data.raw.formats.file_format import parts_of
from training.data.raw.layouts import DATASET_JSON, RawDataset
from training.errors import DatasetError, reason_of

MEMO = "fingerprints.json"


def dataset_fingerprint(dataset: RawDataset, settings: Any, cache: Path) -> str:
    """SHA-256 over the content of every file and the settings, as 16 hexadecimal digits.

    Args:
        dataset: The data.
        settings: What else the preprocessed data depend on, as JSON values.
        cache: Folder that remembers the digest of a file by path, size and time.

    Raises:
        DatasetError: naming the files that cannot be read.
        OSError: if the cache cannot be written.
    """
    files = [dataset.folder / DATASET_JSON]
    if dataset.labelled_file is not None:
        files.append(dataset.labelled_file)
    for case in dataset.cases:
        files += [part for file in (*case.images, case.label) for part in parts_of(file)]
    whole = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path, digest in zip(files, _digests(files, cache), strict=True):
        whole.update(f"{os.path.relpath(path, dataset.folder)}:{digest}\n".encode())
    return whole.hexdigest()[:16]


def _digests(files: Iterable[Path], cache: Path) -> list[str]:
    memo_file = cache / MEMO
    ours = _read_memo(memo_file)
    memo = ours or {}
    known = len(memo)
    digests = []
    problems = []
    for path in files:
        try:
            status = path.stat()
            key = f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"
            if key not in memo:
                with path.open("rb") as file:
                    memo[key] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            problems.append(f"{path}: cannot be read: {reason_of(error)}")
        else:
            digests.append(memo[key])
    if problems:
        raise DatasetError("\n  ".join(problems))
    if len(memo) > known and ours is not None:
        # a name of its own: two processes may look at the same data at once
        with tempfile.TemporaryDirectory(prefix=f".{MEMO}-", dir=cache) as partial:
            written = Path(partial, MEMO)
            written.write_text(json.dumps(memo))
            written.replace(memo_file)
    return digests


def _read_memo(path: Path) -> dict[str, str] | None:
    """The digests that are remembered, {} for none yet; None for a file that is not ours."""
    try:
        memo = json.loads(path.read_text() or "{}")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        return None
    entries = memo.items() if isinstance(memo, dict) else [("", None)]
    own = all(isinstance(digest, str) and len(digest) == 64 for _, digest in entries)
    return memo if own else None
