"""The job server of a Ray cluster, in the head's dashboard: what it is asked, and what it says."""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ray import __version__ as RAY_VERSION
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from ray.util.state import list_actors
from ray.util.state.exception import RayStateApiException

from tuner.driver.ray_internals import (
    job_log_chunks,
    quiet_uploads,
    use_token_of_this_machine,
    version_of_server,
)
from tuner.errors import ResourceError

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Variables from which Ray takes the address of a job server, before any that it is given."""

DASHBOARD_PORT = 8265

CONNECT_SECONDS = 5.0
"""How long the server may take to accept a connection."""

MOST_ACTORS = 10_000
"""As many as the dashboard lists at a time."""

POLL_SECONDS = 0.5

STOP_SECONDS = 120
"""How long a study that is stopped may take to end in order; Ray would kill it after three."""

STARTS = "Running entrypoint for job "
"""What Ray writes into a job's log before the program starts, after lines of its own."""

ENDED = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED})


class JobServer:
    """The job server of a cluster.

    Args:
        address: Address of the head's dashboard, e.g. `http://head:8265`; that of
            RAY_API_SERVER_ADDRESS without one.

    Raises:
        ResourceError: if there is none, it refuses the token, or it has an older Ray.
    """

    def __init__(self, address: str | None) -> None:
        self.address = _dashboard(address)
        _connect(self.address)
        use_token_of_this_machine()
        quiet_uploads()
        with self._explained(), _no_other_address():
            self._client = JobSubmissionClient(self.address)
        version = version_of_server(self._client)
        if _release(version) < _release(RAY_VERSION):
            raise ResourceError(
                f"the cluster at {self.address} runs Ray {version}, and studies need "
                f"{RAY_VERSION}: install it, and this version of segtune, on every node"
            )

    def jobs(self) -> list[JobDetails]:
        """All submitted jobs that the cluster knows, the newest first."""
        with self._explained():
            jobs = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(jobs, key=lambda job: job.start_time or 0, reverse=True)

    def living_actors(self) -> Counter[str]:
        """How many actors the cluster has of each class, by the name of the class."""
        with self._explained(), _no_other_address():
            actors = list_actors(
                self.address,
                filters=[("state", "=", "ALIVE")],
                limit=MOST_ACTORS,
                raise_on_missing_output=False,
            )
        return Counter(actor.class_name for actor in actors)

    def job(self, job_id: str) -> JobDetails:
        """A job as it is now."""
        with self._explained():
            return self._client.get_job_info(job_id)

    def submit(
        self,
        program: Sequence[str],
        *,
        job_id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        write: Callable[[Path], None] | None = None,
    ) -> str:
        """Submit a job.

        Args:
            program: Arguments of Python.
            job_id: The job's id; one of Ray's by default.
            metadata: What the cluster keeps about it.
            write: Writes the files that the job needs into a folder, which is its working folder
                there.

        Returns:
            The job's id.

        Raises:
            JobExistsError: if there is, or was, a job of this id.
        """
        runtime_env: dict[str, Any] = {
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
        }
        with tempfile.TemporaryDirectory(prefix="tune-submit-") as folder, self._explained():
            if write is not None:
                write(Path(folder))
                runtime_env["working_dir"] = folder
            submitted: str = self._client.submit_job(
                entrypoint=_shell_line(program),
                submission_id=job_id,
                metadata=dict(metadata or {}),
                runtime_env=runtime_env,
            )
        return submitted

    def stop(self, job_id: str) -> None:
        """Ask a job to end: SIGTERM, and SIGKILL after `STOP_SECONDS`."""
        with self._explained():
            self._client.stop_job(job_id)

    def forget(self, job_id: str) -> None:
        """Remove an ended job from the cluster's list."""
        with self._explained():
            self._client.delete_job(job_id)

    def wait(self, job_id: str) -> JobDetails:
        """Wait until a job has ended."""
        while (job := self.job(job_id)).status not in ENDED:
            time.sleep(POLL_SECONDS)
        return job

    def logs(self, job_id: str) -> str:
        """What a job has printed so far."""
        with self._explained():
            return _printed(self._client.get_job_logs(job_id))

    def follow(self, job_id: str) -> Iterator[str]:
        """What a job prints, line by line, until it has ended."""
        while self.job(job_id).status == JobStatus.PENDING:
            time.sleep(POLL_SECONDS)
        chunks = self._client.tail_job_logs(job_id)
        with closing(asyncio.new_event_loop()) as loop, self._explained():
            try:
                rest, started = "", False
                while (chunk := loop.run_until_complete(anext(chunks, None))) is not None:
                    *lines, rest = (rest + chunk).split("\n")
                    for line in lines:
                        if started:
                            yield line.rstrip("\r")
                        started = started or line.startswith(STARTS)
                if rest:
                    yield rest
            finally:
                # ends the connection, where nobody wants to see the rest
                loop.run_until_complete(chunks.aclose())

    def download(self, node_id: str, name: str, target: Path) -> None:
        """Copy a file from the folder of Ray's logs on a node of the cluster.

        Args:
            node_id: The node.
            name: The file's name in that folder.
            target: File to write.
        """
        with self._explained(), target.open("wb") as file:
            for chunk in job_log_chunks(self._client, node_id, name):
                file.write(chunk)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say what is wrong with the server or our token, and the way out."""
        try:
            yield
        except AuthenticationError as error:
            raise ResourceError(
                f"the cluster at {self.address} refuses the token "
                f"({str(error).partition(chr(10))[0].strip().rstrip('.')}): set the cluster's "
                "token in RAY_AUTH_TOKEN, or the file of it in RAY_AUTH_TOKEN_PATH "
                "(~/.ray/auth_token by default), and RAY_AUTH_MODE=token"
            ) from error
        except (ValueError, KeyError) as error:
            # no JSON, or not that of Ray
            raise ResourceError(_no_dashboard(self.address, "another program listens")) from error
        except OSError as error:
            raise ResourceError(
                f"the cluster at {self.address} does not answer any more "
                f"({type(error).__name__}): its head has ended, or the network is down; studies "
                "that ran on it go on with `tune submit` and the same --name"
            ) from error
        except (RuntimeError, RayStateApiException) as error:
            text = " ".join(str(error).split())
            if "Version check returned 404" in text:
                raise ResourceError(_no_dashboard(self.address, "another program")) from error
            if "already exists" in text or "already been used" in text:
                raise JobExistsError(text) from error
            raise ResourceError(
                f"the cluster at {self.address} refuses: {_last_line(str(error))}"
            ) from error


class JobExistsError(ResourceError):
    """There is, or was, a job of the same id."""


def _dashboard(address: str | None) -> str:
    """The URL of the dashboard, from what was given or set."""
    if address is None:
        variables = (os.environ.get(name, "") for name in ADDRESS_VARIABLES)
        address = next((given for given in variables if given.startswith("http")), None)
    if address is None:
        raise ResourceError(
            "no cluster is named: give --address http://HEAD:8265, the address of the head's "
            "dashboard, or set RAY_API_SERVER_ADDRESS"
        )
    scheme, separator, rest = address.partition("://")
    if not separator:
        scheme, rest = "http", address
    parts = urlsplit(f"{scheme}://{rest.rstrip('/')}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if scheme not in {"http", "https"} or not host:
        raise ResourceError(
            f"--address {address} is not the address of a dashboard: write http://HEAD:8265"
        )
    if port is None and scheme == "http":
        return f"http://{parts.netloc}:{DASHBOARD_PORT}{parts.path}"
    return f"{scheme}://{parts.netloc}{parts.path}"


def _connect(address: str) -> None:
    """Check that something listens: Ray's client would wait for minutes."""
    parts = urlsplit(address)
    port = parts.port or 443
    try:
        assert parts.hostname is not None
        with closing(socket.create_connection((parts.hostname, port), timeout=CONNECT_SECONDS)):
            return
    except TimeoutError as error:
        why, cause = f"nothing answers within {CONNECT_SECONDS:g} s", error
    except socket.gaierror as error:
        raise ResourceError(_no_dashboard(address, f"no host {parts.hostname!r}")) from error
    except OSError as error:
        raise ResourceError(_no_dashboard(address, "nothing listens there")) from error
    raise ResourceError(_no_dashboard(address, why)) from cause


def _no_dashboard(address: str, why: str) -> str:
    return (
        f"no Ray dashboard at {address} ({why}): give the address of the head's dashboard as "
        "--address http://HEAD:8265; where it listens on the head alone, open a tunnel with "
        "`ssh -L 8265:localhost:8265 HEAD` and give http://localhost:8265"
    )


@contextmanager
def _no_other_address() -> Iterator[None]:
    """Hide variables that Ray would take another address from."""
    before = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def _shell_line(program: Sequence[str]) -> str:
    # without a shell in between, signals reach it and its exit code is the job's
    return f"exec python {shlex.join(program)}"


def _printed(text: str) -> str:
    """A job's log without the lines that Ray writes before the program starts."""
    _, mark, after = text.partition(STARTS)
    return after.partition("\n")[2] if mark else text


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "it gives no reason"


def _release(version: str) -> tuple[int, ...]:
    """Major and minor number of a version."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
