"""Checks that a study's Ray cluster can be joined or started, before data are prepared.

Ray itself finds out late: it waits for over a minute for an address where nothing answers, and
reports a wrong token or an unusable temporary folder in C++ log lines and tracebacks.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import ray

from training.durable_write import check_writable
from tuner.driver.ray_internals import address_of_this_machine, host_and_port, temporary_folder
from tuner.errors import ResourceError

CONNECT_SECONDS = 4.0
"""How long the address of a cluster may take to accept a connection."""

START_SECONDS = 60.0
"""How long the probe may take to import Ray."""

ANSWER_SECONDS = 6.0
"""How long a cluster may take to answer the probe."""

SOCKET_PATH_BYTES = 107
"""Longest path of a Unix socket, without the zero byte at its end."""

SESSION_PATH = "session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest path of a socket that Ray makes in its temporary folder."""

JOINABLE: set[tuple[str, str]] = set()
"""Addresses that passed the check in this process: they are not checked again."""

OWN_CLUSTER = "leave --address out to use this machine alone"


def check_cluster(address: str | None) -> None:
    """Check that the cluster of a study can be joined, or started here.

    Args:
        address: The cluster to join, or "auto"; RAY_ADDRESS without one, and without both a
            cluster of our own is started.

    Raises:
        ResourceError: if not; it says why, and the way out.
    """
    if ray.is_initialized():
        return
    given, source, way_out = _where(address)
    if given in {None, "local"}:
        _check_temporary_folder()
        return
    assert given is not None
    host, port = _host_and_port(given, source, way_out)
    _connect(host, port, source, way_out)
    cluster = (f"{host}:{port}", given)
    if cluster in JOINABLE:
        return
    problem = _probe(*cluster)
    if problem:
        raise ResourceError(_explained(problem, source, way_out))
    JOINABLE.add(cluster)


def starts_own_cluster(address: str | None) -> bool:
    """Whether a study without a cluster to join starts one on this machine."""
    return not ray.is_initialized() and _where(address)[0] in {None, "local"}


def _where(address: str | None) -> tuple[str | None, str, str]:
    """The address in use, what set it, and how to run without a cluster to join."""
    variable = os.environ.get("RAY_ADDRESS") or None
    if variable is not None and address in {None, "auto"}:
        return variable, f"RAY_ADDRESS={variable}", "unset RAY_ADDRESS to use this machine alone"
    return address, f"--address {address}", OWN_CLUSTER


def _host_and_port(given: str, source: str, way_out: str) -> tuple[str, int]:
    """Where the GCS of the cluster listens."""
    if given == "auto":
        try:
            given = address_of_this_machine()
        except ConnectionError as error:
            raise ResourceError(
                f"{source}: no Ray cluster runs on this machine; start one with "
                f"`ray start --head`, or {way_out}"
            ) from error
    if "://" in given:
        raise ResourceError(
            f"{source}: a study cannot be driven through {given.partition('://')[0]}://, since its "
            "driver must see the folder of the study and its trials as a node of the cluster "
            "does; run it on a node with --address HOST:6379 (or auto), send it there with "
            f"`tune submit`, or {way_out}"
        )
    parsed = host_and_port(given)
    if not parsed or not parsed[0] or not parsed[1].isdecimal() or int(parsed[1]) > 65535:
        raise ResourceError(f"{source} is not HOST:PORT, e.g. 10.0.0.1:6379, or auto")
    return parsed[0], int(parsed[1])


def _connect(host: str, port: int, source: str, way_out: str) -> None:
    """Check that the address accepts a connection."""
    try:
        with closing(socket.create_connection((host, port), timeout=CONNECT_SECONDS)):
            return
    except TimeoutError as error:
        why = f"it does not answer within {CONNECT_SECONDS:g} s"
        cause: OSError = error
    except socket.gaierror as error:
        why, cause = f"no host {host!r} is known", error
    except OSError as error:
        why, cause = f"nothing listens there ({error.strerror})", error
    raise ResourceError(
        f"no Ray cluster at {host}:{port} ({source}): {why}; correct the address or start the "
        f"cluster with `ray start --head`, or {way_out}"
    ) from cause


def _probe(address: str, given: str) -> dict[str, str]:
    """Ask `tuner.driver.cluster_probe` why the cluster cannot be joined; {} if it can."""
    path = os.pathsep.join(
        [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    with subprocess.Popen(
        [sys.executable, "-m", "tuner.driver.cluster_probe", address, given],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        assert process.stdout is not None
        try:
            ready = _line(process.stdout.fileno(), START_SECONDS)
            answer = _line(process.stdout.fileno(), ANSWER_SECONDS) if ready else b""
        finally:
            process.kill()
    if not answer:
        return {"problem": "silent", "detail": f"within {ANSWER_SECONDS:g} s"}
    found: dict[str, str] = json.loads(answer)
    return found


def _line(descriptor: int, seconds: float) -> bytes:
    """The next line of a pipe; empty if it does not come in time."""
    deadline = time.monotonic() + seconds
    line = b""
    while not line.endswith(b"\n"):
        left = max(0.0, deadline - time.monotonic())
        if not select.select([descriptor], [], [], left)[0]:
            return b""
        byte = os.read(descriptor, 1)
        if not byte:
            return b""
        line += byte
    return line


def _explained(problem: dict[str, str], source: str, way_out: str) -> str:
    """A sentence about a problem, with the way out."""
    detail = problem["detail"]
    match problem["problem"]:
        case "silent":
            return (
                f"what listens at {source} does not answer as a Ray cluster does {detail}: give "
                f"the port of the head's GCS (6379 as a rule, 8265 is its dashboard), or {way_out}"
            )
        case "token":
            return (
                f"the Ray cluster at {source} refuses the authentication token ({detail}): set "
                "RAY_AUTH_MODE=token and the cluster's token in RAY_AUTH_TOKEN, or the file of it "
                f"in RAY_AUTH_TOKEN_PATH (~/.ray/auth_token by default), or {way_out}"
            )
        case "version":
            return (
                f"the Ray cluster at {source} has other versions than this environment: {detail}; "
                f"install the same versions of Ray and Python here, or {way_out}"
            )
        case "no node":
            return (
                f"this host is not a node of the Ray cluster at {source}: run the study on one of "
                "its nodes, send it with `tune submit`, or let this host join with "
                f"`ray start --address`; or {way_out}"
            )
    return (
        f"the Ray cluster at {source} cannot be joined ({detail}): correct the address, "
        f"or {way_out}"
    )


def _check_temporary_folder() -> None:
    """Check that Ray can make its sockets."""
    folder = temporary_folder()
    names = (name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name))
    name = next(names, "RAY_TMPDIR")
    needed = len(os.fsencode(folder / SESSION_PATH))
    if needed > SOCKET_PATH_BYTES:
        longest = len(os.fsencode(folder.parent)) - (needed - SOCKET_PATH_BYTES)
        raise ResourceError(
            f"{name}={folder.parent} is too long for the sockets of Ray, whose paths may have "
            f"{SOCKET_PATH_BYTES} bytes: set RAY_TMPDIR to a folder of at most {longest} "
            "characters, e.g. /tmp"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder)
    except OSError as error:
        raise ResourceError(
            f"Ray cannot write its temporary folder {folder} ({error.strerror}): set RAY_TMPDIR "
            "to a folder that can be written"
        ) from error
