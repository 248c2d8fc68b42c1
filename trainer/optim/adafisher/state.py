"""What the optimizer keeps of a parameter: its keys, their shapes, and how they are loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import dtensor
from .mean_squares import factor_dtype
from .roles import Role
from .views import View, gradient_view


class Use(NamedTuple):
    """One layer that a parameter belongs to; a tied weight has several."""

    module: nn.Module | None
    """None if no layer of known type has the parameter, so that its gradient gives the factors."""
    kind: str
    view: View
    suffix: str
    """Of the keys of this use in the parameter's state."""


def gradient_use(param: Tensor, of_convolution: bool) -> Use:
    """The only use of a parameter of no known layer."""
    return Use(None, "gradient", gradient_view(param, of_convolution), "")


@dataclass(frozen=True)
class Tracked:
    """A parameter with everything that the optimizer knows of it."""

    param: Tensor
    name: str
    uses: Sequence[Use]
    state: dict[str, Any]
    group: Mapping[str, Any]
    """Its parameter group: its own learning rate, damping and so on."""
    is_identity: bool
    """Whether the rule gives it F̃ = 1: no factors, no damping."""
    role: Role

    @property
    def view(self) -> View:
        """How it sees the factors of its first use; all of its uses have views of one shape."""
        return self.uses[0].view

    @property
    def damping(self) -> float:
        """λ; what is orthogonal is damped by a constant."""
        return 0.0 if self.is_identity or self.role.name == "orthogonal" else self.group["damping"]

    @property
    def has_factors(self) -> bool:
        """Whether it can be preconditioned."""
        return self.is_identity or any(self.state[f"refreshes{use.suffix}"] for use in self.uses)

    @property
    def needs_gradient_factors(self) -> bool:
        """Whether its factors come from its gradient, as long as no layer of it is captured."""
        return not self.is_identity and not self.state["captured"]

    @property
    def refreshed_uses(self) -> Sequence[Use]:
        """The uses that were ever refreshed; the first one if none was."""
        return [use for use in self.uses if self.state[f"refreshes{use.suffix}"]] or self.uses[:1]

    @property
    def source(self) -> str:
        """Where its curvature comes from: the types of its layers, or "gradient"."""
        captured = self.state["captured"] or not any(
            self.state[f"refreshes{use.suffix}"] for use in self.uses
        )
        return " + ".join(use.kind for use in self.uses) if captured else "gradient"


def steps_of(tracked: Sequence[Tracked]) -> Tensor:
    """The steps in the states of parameters, which become views of it, so that all are counted at once."""
    steps = torch.stack([t.state["step"] for t in tracked]) if tracked else torch.empty(0)
    for t, step in zip(tracked, steps.unbind(), strict=True):
        t.state["step"] = step
    return steps


def new_state(param: Tensor, uses: Sequence[Use]) -> dict[str, Any]:
    """The state before the first step; its keys are described by `AdaFisher`."""
    state: dict[str, Any] = {
        "step": torch.tensor(0.0, device="cpu"),
        "exp_avg": torch.zeros_like(param, memory_format=torch.preserve_format),
    }
    dtype = factor_dtype(param.dtype)
    for use in uses:
        state[f"H{use.suffix}"] = torch.ones(use.view.H_size, dtype=dtype, device=param.device)
        S = torch.ones(use.view.S_size, dtype=dtype, device=param.device)
        if dtensor.S_is_sharded(param, use.view):
            S = dtensor.shard_like(param, S)
        state[f"S{use.suffix}"] = S
        state[f"row_weight{use.suffix}"] = 0.0
        state[f"refreshes{use.suffix}"] = 0
    state["captured"] = 0
    state["refreshed"] = 0
    return state


def _shapes(param: Tensor, uses: Sequence[Use]) -> dict[str, torch.Size]:
    """Of the tensors in a parameter's state."""
    shapes = {"step": torch.Size(()), "exp_avg": param.shape}
    for use in uses:
        shapes |= {
            f"H{use.suffix}": torch.Size(use.view.H_size),
            f"S{use.suffix}": torch.Size(use.view.S_size),
        }
    return shapes


def _curvature_keys(uses: Sequence[Use]) -> set[str]:
    """The entries of a state that belong to the curvature."""
    of_uses = {f"{key}{use.suffix}" for use in uses for key in ("H", "S", "row_weight", "refreshes")}
    return of_uses | {"captured", "refreshed"}


def complete(param: Tensor, uses: Sequence[Use], state: dict[str, Any]) -> None:
    """Makes what a state lacks, and anew what does not fit: it is the user's to clear, assign and move.

    The curvature is made anew as a whole. The step is a tensor on the CPU, wherever the state was loaded to.
    """
    shapes, curvature = _shapes(param, uses), _curvature_keys(uses)
    if "step" in state:
        step = state["step"]
        state["step"] = step.cpu() if isinstance(step, Tensor) else torch.tensor(float(step), device="cpu")
    wrong = {key for key, shape in shapes.items() if getattr(state.get(key), "shape", None) != shape}
    wrong |= curvature - state.keys()
    if wrong & curvature:
        wrong |= curvature
    if wrong:
        state.update({key: value for key, value in new_state(param, uses).items() if key in wrong})


def check_saved(tracked: Tracked, saved: Mapping[str, Any]) -> None:
    """Checks that a saved state is one of this parameter.

    Raises:
        ValueError: a key is missing, or a tensor has another shape.
    """
    shapes = _shapes(tracked.param, tracked.uses)
    del shapes["step"]  # a number in some
    for key, shape in shapes.items():
        if getattr(saved.get(key), "shape", None) != shape:
            raise ValueError(
                f"The loaded state has no {key} of shape {tuple(shape)} for {tracked.name}: "
                "it is of another model, rule, capture or optimizer"
            )
    if missing := ({"step"} | _curvature_keys(tracked.uses)) - saved.keys():
        raise ValueError(f"The loaded state has no {', '.join(sorted(missing))} for {tracked.name}")


def restore(tracked: Tracked, saved: Mapping[str, Any]) -> None:
    """Puts saved factors into a state: torch casts them to the parameter's dtype, which may be half precision."""
    param, state = tracked.param, tracked.state
    for use in tracked.uses:
        for key in (f"H{use.suffix}", f"S{use.suffix}"):
            value = saved[key].detach().to(device=param.device, dtype=factor_dtype(param.dtype), copy=True)
            if key[0] == "S" and dtensor.S_is_sharded(param, use.view) and not dtensor.is_sharded(value):
                value = dtensor.shard_like(param, value)
            state[key] = value


class StateLayout(NamedTuple):
    """What a tensor of the state is."""

    is_factor: bool
    """Whether it is a factor of the curvature; else it is momentum or the step."""
    is_sharded: bool
    """Whether FSDP shards it along axis 0, like the parameter; else every rank has all of it."""


def layout(param: Tensor, uses: Sequence[Use]) -> dict[str, StateLayout]:
    """The layout of every tensor in a parameter's state, by key."""
    result = {"step": StateLayout(False, False), "exp_avg": StateLayout(False, param.dim() > 0)}
    for use in uses:
        result[f"H{use.suffix}"] = StateLayout(is_factor=True, is_sharded=False)
        result[f"S{use.suffix}"] = StateLayout(is_factor=True, is_sharded=use.view.S_has_rows(param))
    return result
