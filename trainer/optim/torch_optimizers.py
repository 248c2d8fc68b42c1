"""Optimizers of torch.optim by name: which of their arguments are options, with which limits and defaults."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from trainer.errors import ConfigError
from trainer.optim.base import OPTIMIZERS, Groups, fuses_by_default, is_sharded
from trainer.options import Count, Fraction, NonNegative, Option, Positive, check_value

Arguments = dict[str, Any]
LineSearch = Literal["strong_wolfe"] | None


def register_torch(
    name: str,
    optimizer_class: type[Optimizer],
    options: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any] = {},
    renamed: Mapping[str, str] = {},
    adapt: Callable[[Groups, Arguments], Arguments] | None = None,
) -> None:
    """Registers a class of torch.optim.

    Args:
        name: in the config group ``optimizer``.
        optimizer_class: it takes groups of parameters first.
        options: the type of each option, with its limits. Arguments that are not named keep torch's defaults.
        defaults: of options whose default is not torch's.
        renamed: torch's argument for an option that has another name.
        adapt: changes the arguments to what the parameters allow.
    """
    signature = inspect.signature(optimizer_class).parameters
    own = {option: signature[renamed.get(option, option)].default for option in options} | dict(defaults)
    entries = {
        option: Option(option, type_, check_value(type_, own[option], f"optimizer.{option}"))
        for option, type_ in options.items()
    }

    def make(model: nn.Module, params: Groups, **values: Any) -> Optimizer:
        arguments = {renamed.get(option, option): value for option, value in {**own, **values}.items()}
        return optimizer_class(params, **(adapt(params, arguments) if adapt else arguments))

    OPTIMIZERS.add(name, make, entries)


def fused_by_default(params: Groups, arguments: Arguments) -> Arguments:
    """Makes of ``fused=None`` one kernel for all parameters where torch has one."""
    fused = True if arguments["fused"] is None and fuses_by_default(params) else arguments["fused"]
    return {**arguments, "fused": fused}


def adapt_sgd(params: Groups, arguments: Arguments) -> Arguments:
    """Leaves Nesterov's look-ahead out where there is no momentum to look along."""
    arguments = {**arguments, "nesterov": arguments["nesterov"] and arguments["momentum"] > 0}
    return arguments if is_sharded(params) else fused_by_default(params, arguments)  # no kernel for DTensors


class SGD(torch.optim.SGD):
    """As torch's, whose fused kernel takes no parameters whose first gradient comes later than that of others."""

    def step(self, closure: Any = None) -> Any:
        """Takes a step; a momentum that is missing then begins at zero, after which its first value is the gradient."""
        for group in self.param_groups:
            if group["fused"] and group["momentum"]:
                states = [self.state[p] for p in group["params"] if p.grad is not None]
                if any("momentum_buffer" in state for state in states):
                    for p in group["params"]:
                        if p.grad is not None:
                            self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
        return super().step(closure)


class NAdam(torch.optim.NAdam):
    """As torch's, which brings what it reads on the CPU in every step to the parameter's device when it is loaded."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of the base; the products of the momenta stay on the CPU."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state["mu_product"] = state["mu_product"].cpu()


def adapt_adafactor(params: Groups, arguments: Arguments) -> Arguments:
    """Refuses sharded parameters, of which torch takes no row and column means."""
    refuse_shards("adafactor", params)
    return arguments


class LBFGS(torch.optim.LBFGS):
    """As torch's, whose steps the trainer gives a closure."""

    evaluates_again = True


def adapt_lbfgs(params: Groups, arguments: Arguments) -> Arguments:
    """Refuses shards, and groups: torch makes one vector of all parameters.

    Raises:
        ConfigError: the parameters are sharded, or not all in one group.
    """
    refuse_shards("lbfgs", params)
    if len(params) > 1:
        raise ConfigError("optimizer=lbfgs has no weight decay: leave optimizer.decay_norms_and_biases=true")
    return arguments


def refuse_shards(name: str, params: Groups) -> None:
    """Refuses parameters that FSDP has sharded, for an optimizer that needs plain tensors.

    Raises:
        ConfigError: they are.
    """
    if is_sharded(params):
        raise ConfigError(f"optimizer={name} cannot update sharded parameters: use parallel=ddp")


ADAM = {
    "lr": NonNegative,
    "betas": tuple[Fraction, Fraction],
    "eps": Positive,
    "weight_decay": NonNegative,
}
"""What all of Adam's kind have."""

register_torch(
    "sgd",
    SGD,
    {
        "lr": NonNegative,
        "momentum": Fraction,
        "nesterov": bool,
        "weight_decay": NonNegative,
        "fused": bool | None,
    },
    defaults={"lr": 0.1, "momentum": 0.9},
    adapt=adapt_sgd,
)
register_torch(
    "adam", torch.optim.Adam, {**ADAM, "amsgrad": bool, "fused": bool | None}, adapt=fused_by_default
)
register_torch(
    "adamw", torch.optim.AdamW, {**ADAM, "amsgrad": bool, "fused": bool | None}, adapt=fused_by_default
)
register_torch(
    "nadam",
    NAdam,
    {**ADAM, "momentum_decay": NonNegative, "decoupled": bool},
    defaults={"decoupled": True},
    renamed={"decoupled": "decoupled_weight_decay"},
)
register_torch(
    "adafactor",
    torch.optim.Adafactor,
    {"lr": NonNegative, "beta2_decay": float, "clip_threshold": Positive, "weight_decay": NonNegative},
    renamed={"clip_threshold": "d"},
    adapt=adapt_adafactor,
)
register_torch(
    "lbfgs",
    LBFGS,
    {
        "lr": NonNegative,
        "max_iter": Count,
        "history_size": Count,
        "line_search_fn": LineSearch,
    },
    defaults={"line_search_fn": "strong_wolfe"},
    adapt=adapt_lbfgs,
)
