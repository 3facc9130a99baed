"""Linear algebra of the driver on one thread."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache

from threadpoolctl import ThreadpoolController


def one_thread() -> AbstractContextManager[None]:
    """Keep BLAS to one thread in the block.

    The matrices of a searcher are small: threads that wait for each other make a proposal several
    times slower, and they take the cores of the trials. Ray hands the variables that would do the
    same (`OMP_NUM_THREADS`) on to the trials, which are to have theirs.
    """
    limited: AbstractContextManager[None] = _controller().limit(limits=1, user_api="blas")
    return limited


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()
