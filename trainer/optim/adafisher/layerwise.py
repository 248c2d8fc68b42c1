"""The part of AdaFisher that is bookkeeping: which layers its parameters belong to, hooks, state."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from . import state
from ._torch_private import Convolution
from .hooks import Capture
from .layers import Layer, layer_of, own_parameters
from .preconditioners import Curvature, Curvatures
from .roles import CALIBRATED, Role, check_rows, roles_of
from .rules import RULES, RuleName
from .sources import Sources
from .state import StateLayout, Tracked, Use, gradient_use
from .step import Update
from .warn import Warnings


class LayerwiseOptimizer(Optimizer):
    """Knows the layers of its parameters and watches them in steps that refresh the factors.

    State is made in ``__init__``, so that a checkpoint can be loaded before the first step. ``param_groups`` and
    ``state`` are the user's, as those of any optimizer: what follows from them is a cache, which `_follow` makes anew
    when they have changed.
    """

    model: nn.Module
    rule: RuleName
    roles: Mapping[str, Any]
    decoupled: bool
    update_interval: int
    capture: str
    fused: bool | str | None
    grad_scaler: torch.amp.GradScaler | None = None

    def __init__(self, model: nn.Module, params: Iterable[Any] | None, defaults: dict[str, Any]) -> None:
        self._forget_all()
        self._find_layers()
        super().__init__(model.named_parameters() if params is None else params, defaults)
        self._follow()

    # Caches

    def _forget_all(self) -> None:
        self._rule = RULES[self.rule]
        self._names: dict[Tensor, str] = {}
        self._uses: dict[Tensor, list[Use]] = {}
        self._of_convolutions: set[Tensor] = set()
        self._roles: dict[Tensor, Role] = {}
        self._capture = Capture({})
        self._curvatures = Curvatures(self._rule)
        self._updates: list[Update] = []
        self._sources: Sources | None = None
        self._steps = 0
        self._warnings = Warnings()

    def _find_layers(self) -> None:
        """Finds the layers of known type, and the uses of each parameter."""
        self._sources = None
        self._names |= {p: name for name, p in self.model.named_parameters()}  # some may have left the model
        self._uses = {}
        if self._rule.orthogonal:
            self._roles |= roles_of(self.model, self.roles)
        convolutions = (module for module in self.model.modules() if isinstance(module, Convolution))
        self._of_convolutions.update(*(own_parameters(module).values() for module in convolutions))
        layers: dict[nn.Module, Layer] = {}
        for module in self.model.modules() if self.capture == "hooks" else ():
            layer = None if "forward" in module.__dict__ else layer_of(module, self._rule.layers)
            if layer is None:
                continue
            for name, param in own_parameters(module).items():
                view, uses = layer.views.get(name), self._uses.setdefault(param, [])
                if view is None or is_lazy(param) or math.prod(view.shape) != param.numel():
                    continue
                if not uses or uses[0].view.shape == view.shape:
                    uses.append(Use(module, layer.kind, view, f"_{len(uses)}" if uses else ""))
                    layers[module] = layer
        self._uses = {param: uses for param, uses in self._uses.items() if uses}
        for used, uses in self._uses.items():
            if used in self._roles:
                check_rows(self._roles[used], uses[0].view, self._names[used], self.roles)
        self._capture.detach()
        old, self._capture = self._capture, Capture(layers)
        self._capture.take_over(old)

    def _follow(self) -> None:
        """Derives anew what follows from groups and state, if these are not what they were."""
        if self._sources is not None and self._sources.are(self.param_groups, self.state):
            return
        params = [param for group in self.param_groups for param in group["params"]]
        if not self._names or any(param not in self._names for param in params):
            self._find_layers()
        for param in params:
            self._check(param)
            if self.state.get(param) or (param.requires_grad and param.numel()):
                self._init_state(param)
        self._rebuild_caches()

    def _rebuild_caches(self) -> None:
        """Forgets all that follows from the state, which may be another one now."""
        self._curvatures.clear()
        self._updates = []
        steps = [self.state[param]["step"] for param in self._uses if self.state.get(param)]
        self._steps = max(map(int, steps), default=0)
        self._remember_sources()
        self._arrange_hooks()

    def _remember_sources(self) -> None:
        self._sources = Sources(self.param_groups, self.state)

    # Parameters and their state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters with options of their own, as for any optimizer of torch; they must be the model's.

        Parameters without names get those of the model if the other groups have names.

        Raises:
            ValueError: a parameter is of another model, lazy or complex. Nothing was added then.
        """
        if isinstance(param_group, dict) and not isinstance(param_group["params"], set):  # else torch refuses
            param_group["params"] = self._checked(param_group["params"])
        super().add_param_group(param_group)
        for param in self.param_groups[-1]["params"]:
            if param.requires_grad and param.numel():
                self._init_state(param)
        self._sources = None

    def _checked(self, params: Any) -> list[Any]:
        """The parameters of a new group, with names if the others have names."""
        entries = [params] if isinstance(params, Tensor) else [*params]
        tensors = [entry[1] if isinstance(entry, tuple) else entry for entry in entries]
        if not all(isinstance(tensor, Tensor) for tensor in tensors):
            return entries  # torch refuses them
        if any(param not in self._names for param in tensors):
            self._find_layers()
        for param in tensors:
            self._check(param)
        if self.param_groups and "param_names" not in self.param_groups[0]:
            return tensors
        if self.param_groups and not any(isinstance(entry, tuple) for entry in entries):
            return [(self._names[param], param) for param in tensors]
        return entries

    def _check(self, param: Tensor) -> None:
        """Checks that a parameter can be one of the optimizer's."""
        if is_lazy(param):
            raise ValueError("A lazy parameter has no shape yet: run the model once before making AdaFisher")
        if param not in self._names:
            raise ValueError(
                f"A parameter of shape {tuple(param.shape)} is not one of the model's: "
                "AdaFisher needs the model that owns the parameters"
            )
        if torch.is_complex(param):
            raise ValueError(f"AdaFisher does not support complex parameters: {self._names[param]}")

    def _init_state(self, param: Tensor) -> None:
        uses = self._uses.setdefault(param, [gradient_use(param, param in self._of_convolutions)])
        state.complete(param, uses, self.state.setdefault(param, {}))

    def _track(self, param: Tensor, group: dict[str, Any]) -> Tracked:
        uses = self._uses[param]
        is_identity = (
            uses[0].module is None and self.capture == "hooks" and self._rule.unknown_layers == "identity"
        )
        role = self._roles.get(param, CALIBRATED)
        return Tracked(param, self._names[param], uses, self.state[param], group, is_identity, role)

    def _tracked(self) -> list[Tracked]:
        """All parameters that have state."""
        self._follow()
        pairs = [(param, group) for group in self.param_groups for param in group["params"]]
        return [self._track(param, group) for param, group in pairs if self.state.get(param)]

    def _tracked_with_gradient(self) -> list[Tracked]:
        """The parameters that this step updates.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        tracked = []
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None or not param.numel():
                    continue
                if param.grad.is_sparse:
                    raise RuntimeError("AdaFisher does not support sparse gradients")
                if not self.state.get(param):  # it did not require gradients when the optimizer was made
                    self._init_state(param)
                tracked.append(self._track(param, group))
        return tracked

    def _curvature_of(self, tracked: Tracked) -> Curvature:
        """H' and S' since the last refresh. After a restart they are gathered: all ranks must call this."""
        if tracked.param not in self._curvatures and self._curvatures.refresh([tracked], {}):
            self._updates = []
        return self._curvatures[tracked.param]

    def state_layout(self, param: Tensor) -> Mapping[str, StateLayout]:
        """Of every tensor in ``state[param]``, by key: whether it is a factor, and whether FSDP shards it."""
        self._follow()
        return state.layout(param, self._uses[param])

    # Hooks

    @property
    def needs_refresh(self) -> bool:
        """Whether the coming step refreshes the factors; its forward then runs hooks, compiled models eagerly."""
        return self._steps % self.update_interval == 0

    def _arrange_hooks(self) -> None:
        if self.capture == "hooks" and self.needs_refresh:
            self._capture.attach()
        else:
            self._capture.detach()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Resets the gradients and drops what was captured with them."""
        super().zero_grad(set_to_none)
        self._capture.clear()
        if self._sources is None or not self._sources.is_of(self.state):
            self._follow()
