"""The further processes of a trial that trains on several GPUs, one for each.

The trial's own process is the first: it holds the GPUs, reports the epochs, and these are its
children. They are there as long as it is, and train one trial after the other.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.trial.failures import RankLostError

if TYPE_CHECKING:
    from training.config import ModelTrainingConfig
    from training.ranks import GivenRanks
    from tuner.spec.study_spec import StudySpec

START_SECONDS = 300.0
"""How long a process may take to load its libraries, from a slow file system say, and the data."""

END_SECONDS = 30.0
"""How long a process may take to leave a trial that has ended, before it is killed."""

PROGRAM = "tuner.trial.rank_process"
"""What a further process runs."""

READY, DONE, FAILED = "ready", "done", "failed"


@dataclass(frozen=True)
class RankJob:
    """A training that all processes of a trial do together.

    Attributes:
        config: The config, the same for all.
        resume: Checkpoint to go on from.
        spec: The study's spec.
        code: Where the study keeps the code of the user's own.
        port: Where the processes meet.
        world: How many there are.
    """

    config: ModelTrainingConfig
    resume: Path | None
    spec: StudySpec
    code: Path | None
    port: int
    world: int


class Ranks:
    """The further processes of a trial.

    Args:
        world: Processes of a trial, its own included.
    """

    def __init__(self, world: int) -> None:
        self.world = world
        self._others: list[_Rank] = []
        self._port = 0

    def first(self) -> GivenRanks:
        """This process, as the first of those that train together next."""
        from training.ranks import GivenRanks

        self._port = _free_port()
        return GivenRanks(0, self.world, self._port)

    @contextmanager
    def training(
        self, config: ModelTrainingConfig, resume: Path | None, spec: StudySpec, code: Path | None
    ) -> Iterator[None]:
        """Let the other processes train beside this one, which is that of `first`.

        Args:
            config: The config.
            resume: Checkpoint to go on from.
            spec: The study's spec.
            code: Where the study keeps the code of the user's own.

        Raises:
            RankLostError: if a process is lost; an error of one of them is raised as it is.
        """
        import torch
        from torch import distributed

        if not self._others:
            # as many as this process has for its part
            threads = torch.get_num_threads()
            self._others = [_Rank(rank, threads) for rank in range(1, self.world)]
        job = RankJob(config, resume, spec, code, self._port, self.world)
        try:
            for rank in self._others:
                rank.begin(job)
            for rank in self._others:
                rank.wait_until_ready(START_SECONDS)
            yield
            for rank in self._others:
                rank.wait(END_SECONDS)
        except Exception as error:
            # the error of another reaches this process as a connection that is lost
            seconds = END_SECONDS if isinstance(error, RuntimeError) else 0.0
            deadline = time.monotonic() + seconds
            failures = [rank.failure_by(deadline) for rank in self._others]
            self.close()
            for failure in filter(None, failures):
                raise failure from error
            raise
        except BaseException:
            # the trial has ended, and they have been told so
            if not all(rank.is_done(END_SECONDS) for rank in self._others):
                self.close()
            raise
        finally:
            if distributed.is_initialized():
                distributed.destroy_process_group()

    def close(self) -> None:
        """End the processes."""
        for rank in self._others:
            rank.kill()
        self._others = []


class _Rank:
    """One further process, and the thread that listens to it."""

    def __init__(self, rank: int, threads: int) -> None:
        self._rank = rank
        ours, theirs = Pipe()
        self._pipe: Connection[Any, Any] = ours
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-m", PROGRAM, str(theirs.fileno())]
        # the modules of this process's folders, wherever they are
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        self._process = subprocess.Popen(
            [*command, str(rank)], env=environment, pass_fds=[theirs.fileno()]
        )
        theirs.close()
        self._busy = self._ready = False
        self._changed = threading.Condition()
        self._failure: Exception | None = None
        threading.Thread(target=self._listen, name=f"rank-{rank}", daemon=True).start()

    def begin(self, job: RankJob) -> None:
        """Let it train."""
        with self._changed:
            self._busy, self._ready = True, False
        with suppress(OSError):
            self._pipe.send_bytes(pickle.dumps(job))

    def wait_until_ready(self, seconds: float) -> None:
        """Wait until it is about to meet the others, who would wait for it in vain.

        Raises:
            RankLostError: if it does not come; an error that it met is raised as it is.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._failure is not None, seconds)
            if self._failure is not None:
                raise self._failure
            if not self._ready:
                raise RankLostError(
                    f"process {self._rank} of the trial did not start within {seconds:g} s"
                )

    def wait(self, seconds: float) -> None:
        """Wait until it has trained to the end.

        Raises:
            RankLostError: if it does not.
        """
        if not self.is_done(seconds):
            raise RankLostError(f"process {self._rank} of the trial did not end with it")

    def is_done(self, seconds: float) -> bool:
        """Whether it has left the training within a time."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy, seconds)
            return not self._busy and self._failure is None

    def failure_by(self, deadline: float) -> Exception | None:
        """What it has met, or that it is lost, by then as `time.monotonic` counts; else None."""
        with self._changed:
            seconds = max(0.0, deadline - time.monotonic())
            # one that fails is no longer busy either
            self._changed.wait_for(lambda: not self._busy, seconds)
            return self._failure

    def kill(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._pipe.close()

    def _listen(self) -> None:
        while True:
            try:
                kind, value = pickle.loads(self._pipe.recv_bytes())
            except (EOFError, OSError):
                code = self._process.wait()
                how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
                self._fail(RankLostError(f"process {self._rank} of the trial {how}"))
                return
            if kind == FAILED:
                self._fail(value)
            else:
                with self._changed:
                    self._ready, self._busy = True, kind == READY
                    self._changed.notify_all()

    def _fail(self, error: Exception) -> None:
        with self._changed:
            # it may be lost after it has told why
            self._failure = self._failure or error
            busy, self._busy = self._busy, False
            self._changed.notify_all()
        if busy:
            _leave_collective()


def _leave_collective() -> None:
    """Let this process no longer wait for one that is gone; NCCL would wait for minutes."""
    from torch import distributed

    if distributed.is_initialized() and distributed.get_backend() == "nccl":
        with suppress(Exception):
            distributed.distributed_c10d._abort_process_group()


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port
