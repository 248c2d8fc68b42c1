"""The part of AdaFisher that is bookkeeping: which layers its parameters belong to, hooks, state, checkpoints."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import state
from ._torch_private import GRAD_SCALER_PROTOCOL
from .group_update import GroupUpdate
from .hooks import Capture
from .layers import Layer, layer_of, own_parameters
from .preconditioners import Curvature, Curvatures
from .rules import RULES, RuleName
from .state import StateLayout, Tracked, Use, gradient_use


class LayerwiseOptimizer(Optimizer):
    """Knows the layers of its parameters and watches them in steps that refresh the factors.

    State is made in ``__init__``, so that a checkpoint can be loaded before the first step. What follows from it
    is a cache: `_rebuild_caches` empties it.
    """

    _OPTIONS = ("model", "rule", "decoupled", "update_interval", "capture", "fused", "grad_scaler")
    """Attributes that a copied or pickled optimizer keeps."""

    model: nn.Module
    rule: RuleName
    decoupled: bool
    update_interval: int
    capture: str
    fused: str | None
    grad_scaler: torch.amp.GradScaler | None = None

    def __init__(self, model: nn.Module, params: Iterable[Any] | None, defaults: dict[str, Any]) -> None:
        self._find_layers()
        super().__init__(model.named_parameters() if params is None else params, defaults)
        self._rebuild_caches()

    def _find_layers(self) -> None:
        """Finds the layers of known type, and the uses of each parameter."""
        setattr(self, GRAD_SCALER_PROTOCOL, True)
        self._rule = RULES[self.rule]
        self._names: dict[Tensor, str] = {p: name for name, p in self.model.named_parameters()}
        self._uses: dict[Tensor, list[Use]] = {}
        layers: dict[nn.Module, Layer] = {}
        for module in self.model.modules() if self.capture == "hooks" else ():
            layer = layer_of(module, self._rule.layers)
            if layer is None:
                continue
            for name, param in own_parameters(module).items():
                view, uses = layer.views.get(name), self._uses.setdefault(param, [])
                if view is not None and (not uses or uses[0].view.shape == view.shape):
                    uses.append(Use(module, layer.kind, view, f"_{len(uses)}" if uses else ""))
                    layers[module] = layer
        self._uses = {param: uses for param, uses in self._uses.items() if uses}
        self._capture = Capture(layers)
        self._curvatures = Curvatures(self._rule)
        self._group_updates: list[GroupUpdate] = []
        self._steps = 0

    def _rebuild_caches(self) -> None:
        """Forgets all that follows from the state, which may be another one now."""
        self._capture.clear()
        self._curvatures.clear()
        self._group_updates = []
        self._steps = max((int(item["step"]) for item in self.state.values() if item), default=0)
        self._arrange_hooks()

    # Parameters and their state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters with options of their own, as for any optimizer of torch; they must be the model's.

        Raises:
            ValueError: a parameter is of another model, lazy or complex.
        """
        super().add_param_group(param_group)
        self._group_updates = []
        for param in self.param_groups[-1]["params"]:
            if isinstance(param, nn.UninitializedParameter):
                raise ValueError(
                    "A lazy parameter has no shape yet: run the model once before making AdaFisher"
                )
            if param not in self._names:
                self._names = {p: name for name, p in self.model.named_parameters()}
            if param not in self._names:
                raise ValueError(
                    f"A parameter of shape {tuple(param.shape)} is not one of the model's: "
                    "AdaFisher needs the model that owns the parameters"
                )
            if torch.is_complex(param):
                raise ValueError(f"AdaFisher does not support complex parameters: {self._names[param]}")
            if param.requires_grad:
                self._init_state(param)

    def _init_state(self, param: Tensor) -> None:
        uses = self._uses.setdefault(param, [gradient_use(param)])
        self.state[param].update(state.new_state(param, uses))

    def _track(self, param: Tensor, group: dict[str, Any]) -> Tracked:
        uses = self._uses[param]
        is_identity = (
            uses[0].module is None and self.capture == "hooks" and self._rule.unknown_layers == "identity"
        )
        return Tracked(param, self._names[param], uses, self.state[param], group, is_identity)

    def _tracked(self) -> list[Tracked]:
        """All parameters that have state."""
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
                if param.grad is None:
                    continue
                if param.grad.is_sparse:
                    raise RuntimeError("AdaFisher does not support sparse gradients")
                if param not in self.state:  # it did not require gradients when the optimizer was made
                    self._init_state(param)
                tracked.append(self._track(param, group))
        return tracked

    def _curvature_of(self, tracked: Tracked) -> Curvature:
        """H' and S' since the last refresh. After a restart they are gathered: all ranks must call this."""
        if tracked.param not in self._curvatures and self._curvatures.refresh([tracked], {}):
            self._group_updates = []
        return self._curvatures[tracked.param]

    def state_layout(self, param: Tensor) -> Mapping[str, StateLayout]:
        """Of every tensor in ``state[param]``, by key: whether it is a factor, and whether FSDP shards it."""
        return state.layout(param, self._uses[param])

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads what `state_dict` returned; the next steps are those that the saved optimizer would have taken.

        Raises:
            ValueError: it is of another model, rule, capture or optimizer.
        """
        super().load_state_dict(state_dict)  # type: ignore[arg-type]
        saved_ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        pairs = [(param, group) for group in self.param_groups for param in group["params"]]
        for i, (param, group) in zip(saved_ids, pairs, strict=True):
            saved = state_dict["state"].get(i)
            if saved and param in self._uses:
                state.restore(self._track(param, group), saved)
        self._rebuild_caches()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in self._OPTIONS}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "model" in state:  # unpickled or copied, not loaded
            self._find_layers()
            for param in self.state:
                self._uses.setdefault(param, [gradient_use(param)])
            self._rebuild_caches()

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

    # Loss scale

    def _unscale(self) -> float | Tensor:
        """Divides the gradients by the loss scale, unless the GradScaler has, and returns the scale."""
        scale = getattr(self, "grad_scale", None)
        if scale is not None:
            for group in self.param_groups:
                for param in group["params"]:
                    if param.grad is not None:
                        param.grad.div_(scale.to(param.grad.device))
            return scale
        if not hasattr(self, "found_inf"):
            return 1.0
        if self.grad_scaler is not None:
            return self.grad_scaler.get_scale()
        if self.capture == "hooks" and self.needs_refresh:
            raise RuntimeError(
                "AdaFisher cannot tell the loss scale once scaler.unscale_(optimizer) was called: "
                "set optimizer.grad_scaler = scaler after making both"
            )
        return 1.0
