"""Assembles and starts the Ray Tune run of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.stopper import CombinedStopper, Stopper

from tuner.driver.confirm_searcher import ConfirmSearcher
from tuner.driver.gpu_shares import GpuShares
from tuner.driver.lost_workers import LostWorkers, head_is_gone, raylet_answers
from tuner.driver.placement import FitNodes
from tuner.driver.ray_internals import name_process, node_memory
from tuner.driver.scheduler import RecordScheduler
from tuner.driver.searcher import build_searcher
from tuner.driver.stopping import HaltStopper
from tuner.search.policies import Policy, build_policy, planned
from tuner.study.code import code_folder
from tuner.study.confirmation import Candidate
from tuner.study.data import StudyData
from tuner.study.files import RAY_FOLDER
from tuner.study.folder import remove_ray_files
from tuner.study.remote.node import RemoteFolder
from tuner.study.study import Study, actor_name
from tuner.trial.context import StudyContext
from tuner.trial.gpus import gpu_use
from tuner.trial.trainable import TrialTrainable

if TYPE_CHECKING:
    from tuner.driver.searcher import RecordSearcher
    from tuner.driver.study_cluster import StudyCluster
    from tuner.search.deadline import TimePlan
    from tuner.spec.settings import TrialResources


def assemble(
    study: Study,
    trainable: Any,
    searcher: RecordSearcher,
    policy: Policy,
    resources: TrialResources,
    callbacks: list[tune.Callback],
    stopper: Stopper,
    cluster: StudyCluster | None = None,
) -> tune.Tuner:
    """The Ray Tune run of a study.

    Args:
        study: The study.
        trainable: What a trial is, see `TrialTrainable`.
        searcher: What runs next.
        policy: What goes on after an epoch.
        resources: Share of a trial.
        callbacks: What watches the trials.
        stopper: What ends the run early.
        cluster: The nodes that trials may use; without it, any that there are now.
    """
    lost = LostWorkers(study, head_is_gone, cluster, raylet_answers)
    placement, limit = None, resources.max_concurrent
    shares = None if cluster is None else cluster.gpu_shares
    if cluster is not None and (cluster.joined or 0 < resources.gpu < 1 or shares is not None):
        nodes = cluster.nodes
        placement = FitNodes(
            resources.cpu, resources.gpu, lambda: nodes.avoided, lambda: nodes.gpus
        )
    if cluster is not None and (cluster.joined or shares is not None):
        # the searcher proposes no more than the nodes hold
        limit = cluster.nodes.limit
    searcher.wait_unless(stopper.stop_all)
    if cluster is not None:
        cluster.follow(searcher)
    scheduler = RecordScheduler(study.record, policy, lost.lost, placement, cluster)
    actor = tune.with_resources(trainable, {"cpu": resources.cpu, "gpu": resources.gpu})
    actor.__name__ = actor.__qualname__ = actor_name(study.label)
    return tune.Tuner(
        actor,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            # the searcher says when the study is over; a promoted trial is a new one to Tune
            num_samples=-1,
            max_concurrent_trials=limit,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=RAY_FOLDER,
            storage_path=str(study.folder),
            # before the others, which show and prune what it decides
            callbacks=[lost, *([shares] if shares is not None else []), *callbacks],
            stop=CombinedStopper(stopper, HaltStopper(study.record)),
            verbose=0,
            # it prints nothing either; that of notebooks would clear the output of the cell
            progress_reporter=tune.CLIReporter(),
            # what failed is tried again as the record has it, as a new trial to Tune
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )


def run_tune(
    study: Study,
    data: StudyData,
    resources: TrialResources,
    callbacks: list[tune.Callback],
    stopper: Stopper,
    cluster: StudyCluster,
    chosen: list[Candidate] | None = None,
    plan: TimePlan | None = None,
) -> None:
    """Run the search with Ray Tune, or with candidates their confirmation.

    Args:
        study: The study.
        data: Its data.
        resources: Share of a trial.
        callbacks: What watches the trials.
        stopper: What ends the run early.
        cluster: The nodes that trials may use.
        chosen: What is confirmed; None for the search.
        plan: What fits into the time budget of a search; None without one.
    """
    # nothing is read back from it, and Tune would stumble over a partly written file
    remove_ray_files(study.folder / RAY_FOLDER)
    context = StudyContext(
        study.folder,
        study.spec,
        data.for_trials,
        resources.gpu,
        judged=chosen is not None,
        code=code_folder(study.folder),
        remote=RemoteFolder.of(study.folder),
    )
    trainable = tune.with_parameters(
        TrialTrainable,
        study=context,
        label=study.label,
        show=name_process,
        node_memory=node_memory,
        gpu=gpu_use,
    )
    if chosen is None:
        policy = build_policy(study.record, study.spec)
        if plan is not None:
            policy = planned(policy, study.record, study.spec, plan)
        searcher: RecordSearcher = build_searcher(study, policy, cluster.places)
        shares = GpuShares.of(study, resources, cluster.nodes, searcher, data.validation_cases)
        if shares is not None:
            searcher.share_by(shares)
    else:
        policy = Policy(study.record)
        searcher = ConfirmSearcher(study, chosen, cluster.places)
        shares = None
    cluster.share_gpus(shares)
    run = assemble(study, trainable, searcher, policy, resources, callbacks, stopper, cluster)
    run.fit()
