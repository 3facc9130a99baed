"""What a study must be like for trials to take over the weights of others."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tuner.spec import StudySpec
    from tuner.spec_parser import SpecParser

NETWORK_FIELDS = frozenset({"model_name", "model_params", "patch_size"})
"""Fields that decide which weights there are."""


def check_population(spec: StudySpec, parser: SpecParser) -> None:
    """Note what keeps trials from taking over each other's weights, or what makes it idle."""
    for name, _ in spec.space.items():
        if name.partition(".")[0] in NETWORK_FIELDS:
            parser.problem(
                ("space", name),
                f"{name} cannot vary with scheduler={spec.scheduler}, in which a trial takes over "
                "the weights of another: they would not fit; fix it in `config`, or choose "
                "another scheduler",
            )
    if spec.search.searcher == "grid":
        parser.problem(
            ("search", "searcher"),
            f"searcher=grid does not go with scheduler={spec.scheduler}, which changes the values "
            "of trials while they train: choose another one",
        )
    if spec.confirm is not None:
        parser.problem(
            ("confirm",),
            f"confirm does not go with scheduler={spec.scheduler}: it trains one config from the "
            "start, but the best weights came about with several; leave one of them out",
        )
    if spec.search.num_trials < 2:
        parser.problem(
            ("search", "num_trials"),
            f"num_trials={spec.search.num_trials} is no population: scheduler={spec.scheduler} "
            "compares trials with each other and needs 2, better 8 or more",
        )
    interval = spec.pbt.perturbation_interval
    if interval >= spec.max_epochs:
        parser.problem(
            ("pbt", "perturbation_interval"),
            f"perturbation_interval={interval} must be below max_epochs={spec.max_epochs}: no "
            "trial would be compared with others",
        )
