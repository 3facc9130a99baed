"""A further process of a trial that trains on several GPUs: `python -m tuner.trial.rank_process`.

It waits for jobs on a pipe and ends with the process at its other end, however that ends.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from tuner.trial.ranks import DONE, FAILED, READY, RankJob


def main() -> None:
    """Train what comes along the pipe."""
    pipe: Connection[Any, Any] = Connection(int(sys.argv[1]))
    rank = int(sys.argv[2])
    while True:
        try:
            job = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            # at once: the thread that trains may wait for a process that is gone
            os._exit(1)
        threading.Thread(target=_work, args=(pipe, rank, job), name="rank", daemon=True).start()


def _work(pipe: Connection[Any, Any], rank: int, job: RankJob) -> None:
    try:
        _train(pipe, rank, job)
    except Exception as error:
        pipe.send_bytes(_pickled(error))
        # the others learn of it by the connection that is lost
        os._exit(1)
    pipe.send_bytes(pickle.dumps((DONE, None)))


def _pickled(error: Exception) -> bytes:
    try:
        told = pickle.dumps((FAILED, error))
        pickle.loads(told)
    except Exception:
        return pickle.dumps((FAILED, RuntimeError(f"{type(error).__name__}: {error}")))
    return told


def _train(pipe: Connection[Any, Any], rank: int, job: RankJob) -> None:
    from torch import distributed

    from training.data import get_dataloaders
    from training.models import build_model
    from training.ranks import GivenRanks
    from training.trainer import SegmentationTrainer
    from tuner.trial.code import check_code, look_into_code
    from tuner.trial.rank_gate import RankGate, TrialEndedError

    look_into_code(job.code)
    check_code(job.spec)
    config = job.config
    train_loader, val_loader, _ = get_dataloaders(config)
    trainer = SegmentationTrainer(
        config,
        build_model(config),
        train_loader,
        val_loader,
        callbacks=[RankGate()],
        progress_bar=False,
        ranks=GivenRanks(rank, job.world, job.port),
    )
    pipe.send_bytes(pickle.dumps((READY, None)))
    try:
        trainer.fit(resume=job.resume or False)
    except TrialEndedError:
        pass
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


if __name__ == "__main__":
    main()
