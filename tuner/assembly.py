"""Puts a study's Ray Tune run together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.stopper import CombinedStopper, Stopper

from tuner.schedulers import RecordScheduler
from tuner.stopping import HaltStopper
from tuner.worker_death import WorkerDeaths, head_is_gone

if TYPE_CHECKING:
    from tuner.record import StudyRecord
    from tuner.resources import TrialResources
    from tuner.schedulers import Policy
    from tuner.searchers import RecordSearcher
    from tuner.spec import StudySpec

RAY_FOLDER = "ray"


def assemble(
    record: StudyRecord,
    spec: StudySpec,
    trainable: Any,
    searcher: RecordSearcher,
    policy: Policy,
    resources: TrialResources,
    callbacks: list[tune.Callback],
    stopper: Stopper,
) -> tune.Tuner:
    """The Ray Tune run of a study.

    Args:
        record: The study's record.
        spec: Its spec, with what the data decide.
        trainable: What a trial is, see `TrialTrainable`.
        searcher: What runs next.
        policy: What goes on after an epoch.
        resources: Share of a trial.
        callbacks: What watches the trials.
        stopper: What ends the run early.
    """
    deaths = WorkerDeaths(record, spec, head_is_gone)
    return tune.Tuner(
        tune.with_resources(trainable, {"cpu": resources.cpu, "gpu": resources.gpu}),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=RecordScheduler(record, policy, deaths.died),
            # the searcher says when the study is over; a promoted trial is a new one to Tune
            num_samples=-1,
            max_concurrent_trials=resources.max_concurrent,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=RAY_FOLDER,
            storage_path=str(record.folder),
            # before the others, which show and prune what it decides
            callbacks=[deaths, *callbacks],
            stop=CombinedStopper(stopper, HaltStopper(record)),
            verbose=0,
            # what failed is tried again as the record has it, as a new trial to Tune
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
