"""The AdaFisher optimizer. It depends on torch alone: ``from trainer.optim import AdaFisher`` works in any program."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.optim.capture import Capture
from trainer.optim.factors import (
    Layer,
    View,
    factor_dtype,
    gradient_factors,
    gradient_view,
    layer_of,
)
from trainer.optim.update import Pair, calibrated_update, momentum_update

__all__ = ["AdaFisher", "AdaFisherW"]

Rule = Literal["calibrated", "paper", "released"]

RULES: dict[str, dict[str, float]] = {
    "calibrated": {"lr": 1e-2, "damping": 0.03, "gamma": 0.95, "update_interval": 10},
    "paper": {"lr": 1e-3, "damping": 1e-3, "gamma": 0.8, "update_interval": 1},
    "released": {"lr": 1e-3, "damping": 1e-3, "gamma": 0.8, "update_interval": 100},
}
"""What an option is by default under each rule."""


class Use(NamedTuple):
    """One layer that a parameter belongs to; a tied weight has several. No module: the gradient is the source."""

    module: nn.Module | None
    kind: str
    view: View
    suffix: str  # of the keys in the parameter's state


class Coverage(NamedTuple):
    """A row of ``AdaFisher.coverage()``."""

    parameter: str
    source: str
    H: tuple[tuple[int, ...], ...]
    S: tuple[tuple[int, ...], ...]


# How the average of a factor becomes one side of the preconditioner ------------------------------------------------


def _min_max(v: Tensor) -> Tensor:
    """(v − min) / (max − min); a vector whose range is under 1 % of its maximum is constant and gives ones."""
    low, high = torch.aminmax(v)
    spread = high - low
    return torch.where(spread < 0.01 * high, torch.ones_like(v), (v - low) / spread)


def _released_min_max(v: Tensor) -> Tensor:
    low, high = torch.aminmax(v)
    return ((v - low) / (high - low + 1e-6)).nan_to_num_(nan=0.0, posinf=1.0, neginf=0.0)


def _over_mean(averages: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Every H over its mean, and S so that the products of all uses together have the mean one."""
    means = [(H.mean(), S.mean()) for H, S in averages]
    total = sum(h * s for h, s in means)
    return [(H / h, S * (h / total)) for (H, S), (h, _) in zip(averages, means, strict=True)]


class AdaFisher(Optimizer):
    def __init__(
        self,
        model: nn.Module,
        params: Iterable[Any] | None = None,
        *,
        lr: float | Tensor | None = None,
        beta: float = 0.9,
        damping: float | None = None,
        gamma: float | None = None,
        weight_decay: float | None = None,
        decoupled: bool | None = None,
        rule: Rule = "calibrated",
        update_interval: int | None = None,
        capture: Literal["hooks", "gradient"] = "hooks",
        fused: Literal["compile"] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(
                "AdaFisher needs the model, whose layers it watches: AdaFisher(model) or "
                f"AdaFisher(model, params), but the first argument is a {type(model).__name__}"
            )
        if rule not in RULES:
            raise ValueError(f"Invalid rule: {rule!r}, must be one of {', '.join(RULES)}")
        if capture not in ("hooks", "gradient"):
            raise ValueError(f"Invalid capture: {capture!r}, must be hooks or gradient")
        if fused not in (None, "compile"):
            raise ValueError(f"Invalid fused: {fused!r}, must be None or 'compile'")
        if rule == "calibrated" and decoupled is False:
            raise ValueError("Invalid decoupled: rule='calibrated' always decouples weight decay")
        default = RULES[rule]
        interval = int(default["update_interval"]) if update_interval is None else update_interval
        if interval < 1:
            raise ValueError(f"Invalid update_interval: {interval}, must be >= 1")

        self.model = model
        self.rule = rule
        self.decoupled = rule == "calibrated" if decoupled is None else decoupled
        self.update_interval = interval
        self.capture = capture
        self.fused = fused
        self.grad_scaler: torch.amp.GradScaler | None = None
        self._bind()
        super().__init__(
            model.named_parameters() if params is None else params,
            {
                "lr": default["lr"] if lr is None else lr,
                "beta": beta,
                "damping": default["damping"] if damping is None else damping,
                "gamma": default["gamma"] if gamma is None else gamma,
                "weight_decay": (1e-2 if self.decoupled else 5e-4) if weight_decay is None else weight_decay,
            },
        )
        self._arrange_capture()

    # Parameters and their layers ------------------------------------------------------------------------------

    def _bind(self) -> None:
        """Finds every layer of the model that is known, and by identity the parameters it owns."""
        self._names = {p: name for name, p in self.model.named_parameters()}
        self._uses: dict[Tensor, list[Use]] = {}
        self._pairs: dict[Tensor, list[Pair]] = {}
        layers: dict[nn.Module, Layer] = {}
        for module in self.model.modules() if self.capture == "hooks" else ():
            layer = layer_of(module, self.rule)
            if layer is None:
                continue
            for name, view in layer.views.items():
                param = module._parameters.get(name)
                if param is None:
                    continue
                uses = self._uses.setdefault(param, [])
                if not uses or uses[0].view.shape == view.shape:
                    suffix = f"_{len(uses)}" if uses else ""
                    uses.append(Use(module, layer.kind, view, suffix))
                    layers[module] = layer
        self._capture = Capture(layers)
        self._steps = 0

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if isinstance(group["lr"], Tensor) and group["lr"].numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        for name in ("lr", "weight_decay"):
            if not group[name] >= 0.0:
                raise ValueError(f"Invalid {name}: {group[name]}, must be >= 0")
        if not group["damping"] > 0.0:
            raise ValueError(f"Invalid damping: {group['damping']}, must be > 0")
        for name in ("beta", "gamma"):
            if not 0.0 <= group[name] < 1.0:
                raise ValueError(f"Invalid {name}: {group[name]}, must be in [0, 1)")
        for param in group["params"]:
            if param not in self._names:
                raise ValueError(
                    f"A parameter of shape {tuple(param.shape)} is not the model's: pass the model that owns it"
                )
            if param.requires_grad:
                self._init_state(param)

    def _init_state(self, param: Tensor) -> None:
        state = self.state[param]
        state["step"] = torch.tensor(0.0, dtype=torch.float32)
        state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        if not self._uses.get(param):
            self._uses[param] = [Use(None, "gradient", gradient_view(param), "")]
        for _, _, view, suffix in self._uses[param]:
            ones = {"dtype": factor_dtype(param.dtype), "device": param.device}
            state[f"H{suffix}"] = torch.ones(view.H_size, **ones)
            state[f"S{suffix}"] = torch.ones(view.S_size, **ones)
            state[f"refreshes{suffix}"] = 0
        state["captured"] = 0

    # Capture ----------------------------------------------------------------------------------------------------

    @property
    def needs_refresh(self) -> bool:
        """Whether the coming step refreshes the factors, so that the forward before it must run eagerly."""
        return self._steps % self.update_interval == 0

    def _arrange_capture(self) -> None:
        if self.capture == "hooks" and self.needs_refresh:
            self._capture.attach()
        else:
            self._capture.detach()

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self._capture.clear()

    # Refresh ----------------------------------------------------------------------------------------------------

    def _refresh(self, scale: float | Tensor) -> None:
        fresh = self._capture.collect(scale, per_sample=self.rule != "released")
        if self._capture.layers and not fresh and not self._steps:
            raise RuntimeError(
                "AdaFisher has captured no layer: run model(input) in training mode and loss.backward() after "
                "the optimizer is made and before step(), or choose capture='gradient'"
            )
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._refresh_param(param, fresh, group["gamma"])

    def _refresh_param(
        self, param: Tensor, fresh: dict[nn.Module, tuple[Tensor, Tensor]], gamma: float
    ) -> None:
        state = self.state[param]
        captured = [use for use in self._uses[param] if use.module in fresh]
        if captured:
            if not state["captured"]:
                for use in self._uses[param]:  # the gradient's factors have another scale
                    state[f"refreshes{use.suffix}"] = 0
            state["captured"] = 1
            for use in captured:
                self._average(state, use, fresh[use.module], gamma)
        elif not state["captured"]:
            self._refresh_from_gradient(param, gamma)
        self._pairs.pop(param, None)

    def _refresh_from_gradient(self, param: Tensor, gamma: float) -> None:
        if self.rule == "released" and self.capture == "hooks":
            return
        use = self._uses[param][0]
        factors = gradient_factors(param.grad, use.view)
        if factors is not None:
            self._average(self.state[param], use, factors, gamma)
            self._pairs.pop(param, None)

    def _average(self, state: dict[str, Any], use: Use, factors: tuple[Tensor, Tensor], gamma: float) -> None:
        state[f"refreshes{use.suffix}"] += 1
        H, S = factors
        for key, new in ("H", use.view.own(H)), ("S", S):
            old = state[key + use.suffix]
            new = new.to(old.dtype)
            if self.rule == "released":
                old.mul_(gamma / 10).add_(_released_min_max(new), alpha=gamma / 100)
            else:
                old.lerp_(new, (1 - gamma) / (1 - gamma ** state[f"refreshes{use.suffix}"]))

    def _factors(self, param: Tensor) -> list[Pair]:
        """H' and S' of every use that has been refreshed."""
        if param not in self._pairs:
            state = self.state[param]
            uses = [u for u in self._uses[param] if state[f"refreshes{u.suffix}"]] or self._uses[param][:1]
            averages = [(state[f"H{u.suffix}"], state[f"S{u.suffix}"]) for u in uses]
            if self.rule == "calibrated":
                averages = _over_mean(averages)
            elif self.rule == "paper":
                averages = [(_min_max(H), _min_max(S)) for H, S in averages]
            self._pairs[param] = [use.view.pair(*pair) for use, pair in zip(uses, averages, strict=True)]
        return self._pairs[param]

    # Step -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs a single optimization step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None and found_inf.item():
            self._capture.clear()
            return loss
        if self.needs_refresh:
            self._refresh(1.0)
        for group in self.param_groups:
            self._update_group(group)
        self._steps += 1
        self._arrange_capture()
        return loss

    def _update_group(self, group: dict[str, Any]) -> None:
        params: list[Tensor] = []
        grads: list[Tensor] = []
        exp_avgs: list[Tensor] = []
        factors: list[list[Pair]] = []
        dampings: list[float] = []
        steps: list[Tensor] = []
        for param in group["params"]:
            if param.grad is None:
                continue
            if param.grad.is_sparse:
                raise RuntimeError("AdaFisher does not support sparse gradients")
            if param not in self.state:
                self._init_state(param)
            state, view = self.state[param], self._uses[param][0].view
            unknown = self.rule == "released" and self._uses[param][0].kind == "gradient"
            if not any(state[f"refreshes{u.suffix}"] for u in self._uses[param]):
                self._refresh_from_gradient(param, group["gamma"])
            params.append(param.view(view.shape))
            grads.append(param.grad.view(view.shape))
            exp_avgs.append(state["exp_avg"].view(view.shape))
            factors.append(self._factors(param))
            dampings.append(0.0 if unknown and self.capture == "hooks" else group["damping"])
            steps.append(state["step"])
        if not params:
            return
        torch._foreach_add_(steps, 1)
        options = {"lr": float(group["lr"]), "beta": group["beta"], "weight_decay": group["weight_decay"]}
        if self.rule == "calibrated":
            calibrated_update(params, grads, exp_avgs, factors, dampings, **options)
        else:
            counts = [step.item() for step in steps]
            momentum_update(
                params, grads, exp_avgs, factors, dampings, counts, decoupled=self.decoupled, **options
            )


class AdaFisherW(AdaFisher):
    """AdaFisher with decoupled weight decay, whatever the rule."""

    def __init__(self, model: nn.Module, params: Iterable[Any] | None = None, **options: Any) -> None:
        super().__init__(model, params, **{"decoupled": True, **options})
