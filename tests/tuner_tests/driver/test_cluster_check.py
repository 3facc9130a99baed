from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import ray

from tuner.cli.main import main
from tuner.driver import cluster_check
from tuner.driver.cluster_check import check_cluster, starts_own_cluster
from tuner.errors import ResourceError


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster is joined, also where another test joined one."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where something listens that is not Ray."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    """A port where nothing listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "ray://127.0.0.1:10001",
            r"through ray://.*--address HOST:6379 .*tune submit",
        ),
        ("http://127.0.0.1:8265", "cannot be driven through http://"),
        ("127.0.0.1", "--address 127.0.0.1 is not HOST:PORT"),
        ("127.0.0.1:x", "is not HOST:PORT"),
        (":6379", "is not HOST:PORT"),
        ("127.0.0.1:99999", "is not HOST:PORT"),
        ("nowhere.invalid:6379", "no host 'nowhere.invalid' is known"),
    ],
)
def test_addresses_that_no_study_can_join(address: str, message: str) -> None:
    with pytest.raises(ResourceError, match=message):
        check_cluster(address)


def test_a_place_where_nothing_listens(closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ResourceError, match=r"nothing listens there .*or leave --address out"):
        check_cluster(f"127.0.0.1:{closed_port}")
    # left over from a cluster of yesterday
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    for address in (None, "auto"):
        with pytest.raises(ResourceError, match=r"RAY_ADDRESS=127.* or unset RAY_ADDRESS"):
            check_cluster(address)
        assert not starts_own_cluster(address)


def test_something_else_that_listens(silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_check, "ANSWER_SECONDS", 0.5)
    with pytest.raises(ResourceError, match=r"does not answer as a Ray cluster does within 0.5 s"):
        check_cluster(f"127.0.0.1:{silent}")


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_a_temporary_folder_whose_sockets_have_too_long_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(name, "/tmp/" + "x" * 34)
    check_cluster(None)
    Path("/tmp/" + "x" * 34, "ray").rmdir()
    Path("/tmp/" + "x" * 34).rmdir()
    monkeypatch.setenv(name, str(tmp_path / ("x" * 40)))
    with pytest.raises(ResourceError, match=rf"{name}=.* too long .* at most 39 characters"):
        check_cluster(None)
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null")
    with pytest.raises(ResourceError, match=r"cannot write .*/dev/null/ray.*set RAY_TMPDIR"):
        check_cluster(None)


def test_nothing_is_made_or_loaded_for_a_cluster_that_is_not_there(
    tmp_path: Path, closed_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("config: {data_dir: phantom}\nspace: {momentum: {uniform: [0.1, 0.9]}}\n")
    studies = tmp_path / "studies"
    where = ["--studies-dir", str(studies), "--address", f"127.0.0.1:{closed_port}"]
    assert main(["run", str(space), *where]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no Ray cluster at 127.0.0.1")
    assert len(error.splitlines()) == 1
    assert not studies.exists()
