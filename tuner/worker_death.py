"""What Ray Tune does when Ray ends a worker to free memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError


class WorkerOutOfMemoryError(RayActorError):  # type: ignore[misc]
    """Ray ended a trial's worker because its node ran low on memory."""

    def __init__(self, message: str) -> None:
        super().__init__(error_msg=message)

    def __reduce__(self) -> tuple[Any, ...]:
        """Ray's own way to pickle actor errors loses the message."""
        return type(self), (self.error_msg,)


@contextmanager
def out_of_memory_ends_one_trial() -> Iterator[None]:
    """Let Tune take a worker that Ray ended for memory for a worker that died.

    Ray's `OutOfMemoryError` is no `RayActorError`, and Tune (2.60) ends the whole study with
    "Caught unexpected exception" when it meets one.
    """
    original = RayActorManager._actor_task_failed

    def task_failed(manager: RayActorManager, task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = WorkerOutOfMemoryError(str(exception).strip().splitlines()[0])
        original(manager, task, exception)

    RayActorManager._actor_task_failed = task_failed
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = original
