"""Fixtures that all rooms share: the stored reference data and a private cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of the stored reference outputs and real cases, beside the checkout."""
    if not SHARED.is_dir():
        message = f"the reference data {SHARED} is not beside this checkout"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep preprocessed data of the tests away from the user's own cache."""
    cache = tmp_path_factory.mktemp("cache")
    os.environ["SEGTUNE_CACHE"] = str(cache)
    return cache
