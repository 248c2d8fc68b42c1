"""What is done with a preconditioned gradient: it is clipped, and takes the place of the gradient in momentum SGD."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.optim.adafisher._torch_private import foreach_add_, foreach_mul_
from trainer.optim.base import FixedGroups, Groups, is_sharded


class Coverage(NamedTuple):
    """What a parameter is preconditioned by."""

    parameter: str
    source: str
    """Where its curvature comes from; "none: " and the reason if it takes its gradient as it is."""

    @property
    def update(self) -> str:
        """The kind of step that it takes."""
        return "gradient" if self.source.startswith("none: ") else "preconditioned"


class StateLayout(NamedTuple):
    """What a tensor of the state is."""

    is_factor: bool
    """Whether it is a factor of the curvature; else it is momentum or the step."""
    is_sharded: bool = False
    """Never: sharded parameters are refused."""


class PreconditionedSGD(FixedGroups):
    r"""Momentum SGD of a gradient g that a subclass preconditions, P g, and that is clipped after that:

        u = P g              ν = min(1, √(kl_clip / Σ η² ⟨u, g⟩))     over what is preconditioned: ⟨u, g⟩ = uᵀ F u
        u ← ν u              u ← min(1, clip_norm / ‖u‖) u            over all parameters
        m ← β m + u + κ θ    θ ← θ − η m

    Parameters that are not preconditioned have u = g. The state of each is ``step``, ``momentum_buffer`` and what
    `new_state` gives; it is there from the beginning, so that a checkpoint can be loaded before the first step.

    Args:
        model: the model that owns the parameters.
        params: groups of named parameters.
        lr: learning rate η ≥ 0.
        momentum: β, 0 ≤ β < 1.
        weight_decay: κ ≥ 0. It is not preconditioned.
        clip_norm: largest norm of the preconditioned gradient, > 0, or None.
        kl_clip: largest η² uᵀ F u, twice the change that a step makes to what the model predicts, > 0, or None.

    Raises:
        ConfigError: the parameters are sharded.
        ValueError: in ``add_param_group``, once it is made.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Groups,
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        clip_norm: float | None,
        kl_clip: float | None,
    ) -> None:
        if is_sharded(params):
            name = type(self).__name__.lower()
            raise ConfigError(
                f"optimizer={name} needs all of a parameter on each rank, not shards: use parallel=ddp"
            )
        self.model, self.clip_norm, self.kl_clip = model, clip_norm, kl_clip
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.names = {
            p: name
            for group in self.param_groups
            for p, name in zip(group["params"], group["param_names"], strict=True)
        }
        self.steps = 0
        """Taken so far."""
        self.find_layers()
        for param in self.names:
            buffer = torch.zeros_like(param, memory_format=torch.preserve_format)
            state = {"step": torch.tensor(0.0, device="cpu"), "momentum_buffer": buffer}
            self.state[param] = {**state, **self.new_state(param)}
        self.arrange()

    # What a subclass gives

    def find_layers(self) -> None:
        """Finds out, once, what is to be known of the model."""

    def arrange(self) -> None:
        """Arranges, between two steps, what the coming one needs."""

    def new_state(self, param: Tensor) -> dict[str, Any]:
        """What is kept of a parameter besides its momentum, before the first step."""
        raise NotImplementedError

    @property
    def needs_refresh(self) -> bool:
        """Whether the coming step refreshes the factors."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Takes what this step's batch says of the curvature into the state. All ranks call it."""
        raise NotImplementedError

    def precondition(self) -> dict[Tensor, Tensor]:
        """P g of the parameters that are preconditioned in this step, each in its shape."""
        raise NotImplementedError

    def source(self, param: Tensor) -> str:
        """See `Coverage.source`."""
        raise NotImplementedError

    def mean_curvature(self, param: Tensor) -> tuple[Tensor, float] | None:
        """The mean eigenvalue of a preconditioned parameter's curvature, and the damping that is added to it."""
        return None

    # Step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs one optimization step, after a refresh of the factors if one is due.

        Returns:
            the loss that ``closure`` computed, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.needs_refresh:
            self.refresh()
        updates = self.clipped(self.precondition())
        for group in self.param_groups:
            params = [p for p in group["params"] if p in updates]
            if not params:
                continue
            steps = [updates[p].to(p.dtype) for p in params]
            buffers = [self.state[p]["momentum_buffer"] for p in params]
            foreach_mul_(buffers, group["momentum"])
            foreach_add_(buffers, steps)
            if group["weight_decay"]:
                foreach_add_(buffers, params, alpha=group["weight_decay"])
            foreach_add_(params, buffers, alpha=-float(group["lr"]))
            for p in params:
                self.state[p]["step"] += 1
        self.steps += 1
        self.arrange()
        return loss

    def clipped(self, preconditioned: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """The updates of all parameters with a gradient, clipped in both ways."""
        grads = {p: p.grad for p in self.names if p.grad is not None}
        if self.kl_clip is not None and preconditioned:
            products = [
                float(group["lr"]) ** 2 * (preconditioned[p] * grads[p]).sum()
                for group in self.param_groups
                for p in group["params"]
                if p in preconditioned
            ]
            divergence = torch.stack(products).sum().clamp(min=torch.finfo(products[0].dtype).tiny)
            scale = (self.kl_clip / divergence).sqrt().clamp(max=1.0)
            preconditioned = {p: scale * update for p, update in preconditioned.items()}
        updates = {**grads, **preconditioned}
        if self.clip_norm is not None and updates:
            norm = nn.utils.get_total_norm([*updates.values()])
            scale = (self.clip_norm / norm).clamp(max=1.0)
            updates = {p: scale * update for p, update in updates.items()}
        return updates

    # Reports

    def coverage(self) -> list[Coverage]:
        """Of every parameter: its name, and what it is preconditioned by."""
        return [Coverage(name, self.source(param)) for param, name in self.names.items()]

    def state_layout(self, param: Tensor) -> Mapping[str, StateLayout]:
        """Of every tensor in ``state[param]``, by key: whether it is a factor."""
        return {key: StateLayout(key not in ("step", "momentum_buffer")) for key in self.state[param]}

    @torch.no_grad()
    def diagnostics(self) -> dict[str, dict[str, float]]:
        """What the curvature does to each parameter that is preconditioned.

        Returns:
            by name of the parameter: ``share``, c / (c + λ) of the mean eigenvalue c of its curvature and the damping
            λ, where there is one; ``update_ratio``, the norm of an update over that of the parameter.
        """
        result = {}
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                if not state["step"] or self.source(param).startswith("none"):
                    continue
                update, weight = (x.norm().item() for x in (state["momentum_buffer"], param))
                numbers = {"update_ratio": float(group["lr"]) * update / weight if weight else float("inf")}
                if (curvature := self.mean_curvature(param)) is not None:
                    mean, damping = float(curvature[0]), curvature[1]
                    numbers = {"share": mean / (mean + damping), **numbers}
                result[self.names[param]] = numbers
        return result

    # State

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads what ``state_dict`` returned; the next steps are those that the saved optimizer would have taken.

        Raises:
            ValueError: it is of another model or optimizer. Nothing was loaded then.
        """
        numbers = [i for group in state_dict["param_groups"] for i in group["params"]]
        saved = {p: state_dict["state"].get(i, {}) for i, p in zip(numbers, self.names, strict=False)}
        for param, values in saved.items():
            for key, own in self.state[param].items():
                shape = getattr(own, "shape", None)
                if key not in values or getattr(values[key], "shape", None) != shape:
                    what = key if shape is None else f"{key} of shape {tuple(shape)}"
                    raise ValueError(f"The loaded state has no {what} for {self.names[param]}")
        super().load_state_dict(state_dict)  # type: ignore[arg-type]
        for param, values in saved.items():  # torch has cast factors to the parameter's dtype
            for key, value in values.items():
                if isinstance(value, Tensor) and value.dtype != self.state[param][key].dtype:
                    self.state[param][key] = value.to(param.device, copy=True)
        self.steps = int(max(state["step"] for state in self.state.values()))
        self.arrange()
