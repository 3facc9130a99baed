"""Optimizers by the name that a config gives them, with their scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from training.lr_schedules import Scheduler, get_scheduler
from training.registry import OPTIMIZERS, call

if TYPE_CHECKING:
    from training.config import ModelTrainingConfig

__all__ = ["OPTIMIZERS", "get_optimizer"]

ParameterGroups = list[dict[str, Any]]


def adam(config: ModelTrainingConfig, groups: ParameterGroups) -> Optimizer:
    """Adam with L2 weight decay (Kingma and Ba, 2015)."""
    return Adam(groups, lr=config.learning_rate)


def adamw(config: ModelTrainingConfig, groups: ParameterGroups) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""
    return AdamW(groups, lr=config.learning_rate)


def sgd(config: ModelTrainingConfig, groups: ParameterGroups) -> Optimizer:
    """Stochastic gradient descent with momentum, Nesterov's form if asked for."""
    return SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.nesterov)


def get_optimizer(
    config: ModelTrainingConfig, model: nn.Module, *, steps_per_epoch: int = 1
) -> tuple[Optimizer, Scheduler | None]:
    """Optimizer and scheduler of a config for the trainable parameters of a model.

    A state that is loaded into the optimizer brings its moments alone. Learning rate, weight
    decay and momentum stay those of the config, so that a run may be resumed with others. The
    moments of another kind of optimizer are left out.

    Args:
        config: Names optimizer and scheduler and their settings.
        model: Its parameters that require a gradient are trained.
        steps_per_epoch: Optimizer steps in an epoch, for the schedulers that are stepped as
            often: `training.lr_schedules.is_stepped_each_step`.

    Raises:
        ValueError: if the model has no trainable parameter.
    """
    groups = parameter_groups(config, model)
    if not groups:
        raise ValueError(
            f"{type(model).__name__} has no parameter that requires a gradient: nothing to train"
        )
    build = OPTIMIZERS.resolve(config.optimizer)
    optimizer: Optimizer = call(build, config.optimizer, config=config, groups=groups)
    optimizer.register_load_state_dict_pre_hook(_with_own_settings)
    return optimizer, get_scheduler(config, optimizer, steps_per_epoch)


def parameter_groups(config: ModelTrainingConfig, model: nn.Module) -> ParameterGroups:
    """The trainable parameters with their weight decay: kernels and matrices, then the rest.

    Norms and biases, which have one axis, do not decay: it would pull a norm's scale to 0
    (as in most transformer recipes, e.g. Liu et al., 2021). With
    `config.decay_norms_and_biases` they decay as the rest, as in nnU-Net.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decay = config.weight_decay
    groups: ParameterGroups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": decay},
        {
            "params": [p for p in trainable if p.ndim <= 1],
            "weight_decay": decay if config.decay_norms_and_biases else 0.0,
        },
    ]
    # two groups whatever the config, so that a checkpoint fits when the field is changed
    return [group for group in groups if group["params"]]


def _with_own_settings(optimizer: Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:
    own = optimizer.state_dict()["param_groups"]

    def kinds(groups: ParameterGroups) -> list[set[str]]:
        return [set(group) - {"initial_lr"} for group in groups]

    same_kind = kinds(own) == kinds(loaded["param_groups"])
    return {"state": loaded["state"] if same_kind else {}, "param_groups": own}
