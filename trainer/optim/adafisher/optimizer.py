"""The AdaFisher optimizer. It needs torch alone: ``from trainer.optim import AdaFisher`` works in any program."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.optim.adafisher import dtensor, refresh, update
from trainer.optim.adafisher.diagnostics import curvature, momentum_square
from trainer.optim.adafisher.group_update import Work
from trainer.optim.adafisher.hooks import Capture, Rows
from trainer.optim.adafisher.layers import Layer, gradient_view, layer_of
from trainer.optim.adafisher.mean_squares import factor_dtype
from trainer.optim.adafisher.refresh import Curvature, Use
from trainer.optim.adafisher.rules import RULES

__all__ = ["AdaFisher", "AdaFisherW", "StateLayout"]


@dataclass(frozen=True)
class Interval:
    """The values that an option may have."""

    text: str
    holds: Callable[[float], bool]

    def __contains__(self, value: float) -> bool:
        return self.holds(value)

    def __str__(self) -> str:
        return self.text


NonNegative = Annotated[float, Interval(">= 0", lambda value: value >= 0)]
Positive = Annotated[float, Interval("> 0", lambda value: value > 0)]
Fraction = Annotated[float, Interval(">= 0 and < 1", lambda value: 0 <= value < 1)]
Count = Annotated[int, Interval(">= 1", lambda value: value >= 1)]


class Coverage(NamedTuple):
    """Where a parameter's curvature comes from, and the shapes of H and S of each use."""

    parameter: str
    source: str
    H: list[tuple[int, ...]]
    S: list[tuple[int, ...]]


class StateLayout(NamedTuple):
    """What a tensor of a parameter's state is."""

    is_factor: bool
    is_sharded: bool
    """Whether its rows go with those of the parameter, where FSDP shards that."""


class AdaFisher(Optimizer):
    r"""Momentum preconditioned by two diagonals of the Fisher information for each layer.

    For a layer, h are the rows that its weight multiplies (samples, tokens, patches of a convolution; with a bias,
    h has a 1 at its end) and s the rows of the gradient of the per-sample loss with respect to its output:

        H = mean over rows of h²      one entry per column of the weight, one for the bias
        S = mean over rows of s²      one entry per row of the weight

    At every ``update_interval``-th step both are refreshed and averaged with weight γ of the old value. Every step
    divides the momentum by F̃[i, j] = S'[i] H'[j] + λ, without a square root. The rules differ in the rest:

    ``"calibrated"``, the default, makes each scale relative to the layer: H' and S' are the bias-corrected averages
    over their means, λ is relative to a curvature of mean one, and an update has a length of its own:

        m ← β m + (1 − β) g        n = β m + (1 − β) g        u = n / F̃
        θ ← (1 − η κ) θ − η 0.2 u / rms(u)

    ``"paper"`` (Algorithm 1): H' and S' are the bias-corrected averages, min-max normalised; a vector whose range is
    under 1 % of its maximum gives ones. ``"released"`` (the authors' code): fresh factors are min-max normalised, then
    averaged by H ← γ/10 H + γ/100 H_new, so that the curvature fades: in the end it is momentum SGD of learning rate
    η/λ · (1 − β). Both then take

        m ← β m + (1 − β) g        θ ← θ − η m / (1 − βᵗ) / F̃

    with κ θ added to g, or ``decoupled``, added to the update.

    A weight that several layers share adds the products of its uses. A parameter of a layer whose type is not known,
    or whose ``forward`` is never called, has S and H from the row and column means of its squared gradient.
    Factors are float32, float64 for float64 parameters. Hooks are attached for steps that refresh only. A compiled
    model runs eagerly in these steps, and compiled in the others.

    Args:
        model: the model that owns the parameters. It runs in training mode under gradients; what runs in ``eval()``,
            without gradients, or again for activation checkpointing (``use_reentrant=False``) counts for nothing.
        params: parameters, named parameters or groups with options of their own; left out, all of the model's.
        lr: learning rate η ≥ 0. Calibrated: 1e-2, on the scale of AdamW's; else 1e-3.
        beta: decay β of the momentum, 0 ≤ β < 1.
        damping: λ > 0. Calibrated: 0.01, relative; λ → ∞ is plain momentum. Else 1e-3, absolute.
        gamma: weight γ of the old factors, 0 ≤ γ < 1. Calibrated: 0.95; else 0.8. (In one reading of the paper γ
            weights the new ones; here it never does.)
        weight_decay: κ ≥ 0. Decoupled: 1e-2; else 5e-4.
        decoupled: whether weight decay bypasses the preconditioner. Always under ``"calibrated"``.
        rule: ``"calibrated"``, ``"paper"`` or ``"released"``.
        update_interval: steps between refreshes, ≥ 1. Calibrated: 10, paper: 1, released: 100.
        capture: ``"hooks"`` on the layers, or ``"gradient"``: row and column means of the squared gradient for every
            parameter, without any hook, for models whose layers are hidden or compiled as a whole.
        fused: ``"compile"`` updates all parameters by one compiled function. On a GPU it is slower than None, with
            which kernels of Triton, if installed, update all parameters of a group at once.

    With a GradScaler whose ``unscale_`` is called before ``step``, set ``optimizer.grad_scaler = scaler``: the factors
    are taken from scaled gradients. ``zero_grad`` also drops what was captured, so that a step may be skipped.

    Raises:
        TypeError: the model is missing.
        ValueError: an option is out of range, or a parameter is not the model's.
        RuntimeError: in ``step``, if no layer was captured before the first one.

    Sources: "AdaFisher: Adaptive Second Order Optimization via Fisher Information", ICLR 2025, arXiv 2405.16397v3;
    the calibrated rule is this project's own.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Iterable[Any] | None = None,
        *,
        lr: NonNegative | Tensor | None = None,
        beta: Fraction = 0.9,
        damping: Positive | None = None,
        gamma: Fraction | None = None,
        weight_decay: NonNegative | None = None,
        decoupled: bool | None = None,
        rule: Literal["calibrated", "paper", "released"] = "calibrated",
        update_interval: Count | None = None,
        capture: Literal["hooks", "gradient"] = "hooks",
        fused: Literal["compile"] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(
                "AdaFisher's first argument is the model, whose layers it watches: AdaFisher(model, params, ...), "
                f"but it is a {type(model).__name__}"
            )
        if rule not in RULES:
            raise ValueError(f"Invalid rule: {rule!r}, must be one of {', '.join(RULES)}")
        if capture not in ("hooks", "gradient"):
            raise ValueError(f"Invalid capture: {capture!r}, must be 'hooks' or 'gradient'")
        if fused not in (None, "compile"):
            raise ValueError(f"Invalid fused: {fused!r}, must be None or 'compile'")
        if rule == "calibrated" and decoupled is False:
            raise ValueError("Invalid decoupled: False, rule='calibrated' always decouples weight decay")
        default = RULES[rule]
        if update_interval is None:
            update_interval = default.update_interval
        if update_interval < 1:
            raise ValueError(f"Invalid update_interval: {update_interval}, must be >= 1")

        self.model = model
        self.rule = rule
        self.decoupled = rule == "calibrated" if decoupled is None else decoupled
        self.update_interval = update_interval
        self.capture = capture
        self.fused = fused
        self.grad_scaler: torch.amp.GradScaler | None = None
        self._bind()
        defaults = {
            "lr": default.lr if lr is None else lr,
            "beta": beta,
            "damping": default.damping if damping is None else damping,
            "gamma": default.gamma if gamma is None else gamma,
            "weight_decay": (1e-2 if self.decoupled else 5e-4) if weight_decay is None else weight_decay,
        }
        super().__init__(model.named_parameters() if params is None else params, defaults)
        self._step_supports_amp_scaling = True
        self._arrange_hooks()

    # Parameters, their layers and their state

    def _bind(self) -> None:
        """Finds the layers of known type, and the uses of each parameter by identity."""
        self._names = {param: name for name, param in self.model.named_parameters()}
        self._uses: dict[Tensor, list[Use]] = {}
        self._curvature: dict[Tensor, Curvature] = {}  # since the last refresh
        self._preconditioners: dict[tuple[torch.device, torch.dtype], refresh.Preconditioners] = {}
        self._works: list[Work] = []  # as of the last refresh
        self._steps = 0
        layers: dict[nn.Module, Layer] = {}
        for module in self.model.modules() if self.capture == "hooks" else ():
            layer = layer_of(module, self.rule)
            for name, view in layer.views.items() if layer else ():
                param = module._parameters.get(name)
                if layer is None or param is None:
                    continue
                uses = self._uses.setdefault(param, [])
                if not uses or uses[0].view.shape == view.shape:
                    uses.append(Use(module, layer.kind, view, f"_{len(uses)}" if uses else ""))
                    layers[module] = layer
        self._capture = Capture(layers)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._works = []
        group = self.param_groups[-1]
        if isinstance(group["lr"], Tensor) and group["lr"].numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        for name in ("lr", "weight_decay"):
            if not group[name] >= 0.0:
                raise ValueError(f"Invalid {name}: {group[name]}, must be >= 0")
        for name in ("beta", "gamma"):
            if not 0.0 <= group[name] < 1.0:
                raise ValueError(f"Invalid {name}: {group[name]}, must be in [0, 1)")
        if not group["damping"] > 0.0:
            raise ValueError(f"Invalid damping: {group['damping']}, must be > 0")
        for param in group["params"]:
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
        uses = self._uses.setdefault(param, [Use(None, "gradient", gradient_view(param), "")])
        state = self.state[param]
        state["step"] = torch.tensor(0.0)
        state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        dtype = factor_dtype(param.dtype)
        for use in uses:
            state[f"H{use.suffix}"] = torch.ones(use.view.H_size, dtype=dtype, device=param.device)
            S = torch.ones(use.view.S_size, dtype=dtype, device=param.device)
            state[f"S{use.suffix}"] = (
                dtensor.shard_like(param, S) if dtensor.S_is_sharded(param, use.view) else S
            )
            state[f"refreshes{use.suffix}"] = 0
        state["captured"] = 0  # whether H and S come from the rows of a layer; else from the gradient
        state["refreshed"] = 0  # the step of the last refresh

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)  # type: ignore[arg-type]
        saved_ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for i, param in zip(saved_ids, params, strict=True):
            saved, state = state_dict["state"].get(i, {}), self.state.get(param, {})
            for use in self._uses.get(param, ()) if saved else ():
                for key, size in (f"H{use.suffix}", use.view.H_size), (f"S{use.suffix}", use.view.S_size):
                    if key not in saved or saved[key].shape != torch.Size(size):
                        raise ValueError(
                            f"The loaded state has no {key} of shape {tuple(size)} for {self._names[param]}: "
                            "it is of another model, rule, capture or optimizer"
                        )
                    # torch casts state to the dtype of the parameter, which may be half precision
                    dtype = factor_dtype(param.dtype)
                    value = saved[key].detach().to(device=param.device, dtype=dtype, copy=True)
                    sharded = key[0] == "S" and dtensor.S_is_sharded(param, use.view)
                    if sharded and not dtensor.is_sharded(value):
                        value = dtensor.shard_like(param, value)
                    state[key] = value
        self._resume()

    def _resume(self) -> None:
        """Takes up the place that the state is at."""
        self._curvature.clear()
        self._preconditioners.clear()
        self._works = []
        self._capture.clear()
        self._steps = max((int(state["step"]) for state in self.state.values() if state), default=0)
        self._arrange_hooks()

    def __getstate__(self) -> dict[str, Any]:
        own = ("model", "rule", "decoupled", "update_interval", "capture", "fused", "grad_scaler")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "model" in state:  # unpickled or copied, not loaded
            self._step_supports_amp_scaling = True
            self._bind()
            for param in self.state:
                self._uses.setdefault(param, [Use(None, "gradient", gradient_view(param), "")])
            self._resume()

    # Capture

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

    # Refresh

    def _refresh(self, params: dict[Tensor, float], rows: dict[nn.Module, Rows]) -> None:
        """Takes what layers saw, or the gradient where nothing can be seen, into the averages of H and S.

        Args:
            params: those to refresh, with γ.
        """
        layers, rule = self._capture.layers, RULES[self.rule]
        fallback = [param for param in params if not self._is_plain(param)]
        pending = [param for param in fallback if not self.state[param]["captured"]]
        seen = refresh.over_ranks(
            list(params), pending, self._uses, self.state, rows, layers if self.needs_refresh else {}
        )
        if layers and self._steps == 0 and not any(isinstance(key, nn.Module) for key in seen):
            raise RuntimeError(
                "AdaFisher has captured no layer: between making it and step(), call the model in training mode "
                "and loss.backward(); for a model whose layers are not called, choose capture='gradient'"
            )
        fresh = refresh.fresh_factors(list(params), fallback, self._uses, self.state, seen)
        refresh.average(fresh, params, self.state, seen, rule)
        for param in dict.fromkeys(item.param for item in fresh):
            self.state[param]["refreshed"] = self._steps
        self._precondition([*dict.fromkeys(item.param for item in fresh)], seen)

    def _precondition(self, params: list[Tensor], seen: refresh.Seen) -> None:
        """Makes H' and S' of parameters from their averages; where S is sharded, of those in ``seen``."""
        alike: dict[tuple[torch.device, torch.dtype], dict[Tensor, list[Use]]] = {}
        for param in params:
            H = self.state[param]["H"]
            alike.setdefault((H.device, H.dtype), {})[param] = self._refreshed_uses(param)
        for key, own in alike.items():
            preconditioners = self._preconditioners.get(key)
            if preconditioners is None or preconditioners.uses != own:
                preconditioners = self._preconditioners[key] = refresh.Preconditioners(own, *key)
                self._curvature.update(preconditioners.curvature)
                self._works = []
            factors = [
                refresh.averages(param, use, self.state[param], seen)
                for param, several in preconditioners.uses.items()
                for use in several
            ]
            preconditioners.refresh(factors, RULES[self.rule])

    def _refreshed_uses(self, param: Tensor) -> list[Use]:
        uses, state = self._uses[param], self.state[param]
        return [use for use in uses if state[f"refreshes{use.suffix}"]] or uses[:1]

    def _is_plain(self, param: Tensor) -> bool:
        """The released code gives parameters of layers that it does not know F̃ = 1."""
        return self.rule == "released" and self.capture == "hooks" and self._uses[param][0].module is None

    def _factors(self, param: Tensor) -> Curvature:
        """H' and S' since the last refresh. After a restart all ranks take part in gathering them."""
        if param not in self._curvature:
            self._precondition([param], {})
        return self._curvature[param]

    def _damping(self, param: Tensor, group: dict[str, Any]) -> float:
        return 0.0 if self._is_plain(param) else group["damping"]

    # Step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs one optimization step, after a refresh of the factors if one is due.

        Raises:
            RuntimeError: the first step captured nothing; a gradient is sparse; the loss scale is not known.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None and found_inf.item():
            self._capture.clear()
            return loss
        scale = self._unscale()
        if self.needs_refresh or not self._works or not all(work.holds() for work in self._works):
            self._prepare(scale)
        self._capture.detach()  # and lets a compiled update run compiled
        self._update()
        self._steps += 1
        self._arrange_hooks()
        return loss

    def _prepare(self, scale: float | Tensor) -> None:
        """Refreshes factors, if that is due or a parameter has none yet, and finds out what there is to update."""
        params = self._params_with_gradient()
        rows: dict[nn.Module, Rows] = {}
        due = params
        if self.needs_refresh:
            ranks = dtensor.ranks_of([*params])
            size = ranks.group.size() if ranks else 1
            rows = self._capture.collect(scale, per_sample=self.rule != "released", ranks=size)
        else:  # until a layer is captured its parameters have the factors of their first gradient
            due = {param: gamma for param, gamma in params.items() if not self._has_factors(param)}
        if due:
            self._refresh(due, rows)
        unknown = [param for param in params if param not in self._curvature]
        if unknown:
            self._precondition(unknown, {})
        if not self._works or not all(work.holds() for work in self._works):
            self._works = [self._work(group) for group in self.param_groups]

    def _params_with_gradient(self) -> dict[Tensor, float]:
        """And their γ."""
        params = {}
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                if param.grad.is_sparse:
                    raise RuntimeError("AdaFisher does not support sparse gradients")
                if param not in self.state:  # it did not require gradients when the optimizer was made
                    self._init_state(param)
                params[param] = group["gamma"]
        return params

    def _has_factors(self, param: Tensor) -> bool:
        refreshed = any(self.state[param][f"refreshes{use.suffix}"] for use in self._uses[param])
        return refreshed or self._is_plain(param)

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

    def _update(self) -> None:
        for work in self._works:
            work.steps += 1
        works = [(work, work.grads()) for work in self._works if work.owners]
        squares: list[Tensor | None] = [None] * len(works)
        if self.rule == "calibrated" and any(dtensor.is_sharded(p) for work, _ in works for p in work.owners):
            here = torch.cat([work.measured(grads) for work, grads in works])
            sums = dtensor.total(here, [param for work, _ in works for param in work.owners])
            squares = list(sums.split([len(work.owners) for work, _ in works]))
        for (work, grads), square in zip(works, squares, strict=True):
            if self.rule == "calibrated":
                work.calibrated(grads, square)
            else:
                work.momentum(grads)

    def _shape(self, param: Tensor) -> tuple[int, ...]:
        """In which the rows here broadcast against H' and S'."""
        view = self._uses[param][0].view
        return dtensor.local_shape(param, view) if dtensor.is_sharded(param) else view.shape

    def _work(self, group: dict[str, Any]) -> Work:
        params = [param for param in group["params"] if param.grad is not None]
        return Work(
            group,
            [self.state[param] for param in params],
            [self._shape(param) for param in params],
            [self._factors(param).local for param in params],
            [self._damping(param, group) for param in params],
            decoupled=self.decoupled,
            compile=self.fused == "compile",
        )

    # What the user may ask

    @torch.no_grad()
    def state_layout(self, param: Tensor) -> dict[str, StateLayout]:
        """What the tensors in ``optimizer.state[param]`` are, by key."""
        layout = {"step": StateLayout(False, False), "exp_avg": StateLayout(False, True)}
        for use in self._uses.get(param, ()):
            layout[f"H{use.suffix}"] = StateLayout(True, False)
            layout[f"S{use.suffix}"] = StateLayout(True, use.view.S_size == tuple(param.shape[:1]))
        return layout

    def preconditioner(self, param: Tensor) -> Tensor:
        """F̃ of a parameter, in its shape, as of the last refresh."""
        group = next(group for group in self.param_groups if any(p is param for p in group["params"]))
        factor = [part for pair in self._factors(param).whole for part in pair]
        F = update.preconditioner(factor, self._damping(param, group))
        return F.expand(self._uses[param][0].view.shape).reshape(param.shape)

    def coverage(self) -> list[Coverage]:
        """Of every trainable parameter: its name, the source of its curvature, the shapes of its H and S."""
        rows = []
        for group in self.param_groups:
            for param in group["params"]:
                uses, state = self._uses.get(param, []), self.state.get(param)
                if not state:
                    continue
                known = state["captured"] or not any(state[f"refreshes{use.suffix}"] for use in uses)
                source = " + ".join(use.kind for use in uses) if known else "gradient"
                H, S = ([tuple(state[f"{key}{use.suffix}"].shape) for use in uses] for key in "HS")
                rows.append(Coverage(self._names[param], source, H, S))
        return rows

    @torch.no_grad()
    def diagnostics(self) -> dict[str, dict[str, float]]:
        """What the curvature does to each parameter that has been updated.

        By name: ``share``, mean(S'H') / (mean(S'H') + λ); ``preconditioner_min``, ``_median``, ``_max`` of
        F̃; ``update_ratio``, the norm of an update without weight decay over that of the parameter; ``age``, steps
        since the factors were refreshed. Where parameters are sharded, all ranks must ask.
        """
        updated = {
            param: group
            for group in self.param_groups
            for param in group["params"]
            if self.state.get(param) and self.state[param]["step"]
        }
        if not updated:
            return {}
        weights = torch.stack(
            [torch.linalg.vector_norm(dtensor.local_tensor(p), dtype=torch.float64) for p in updated]
        )
        squares = torch.cat([weights.square(), self._update_squares(updated)])
        norms = dtensor.total(squares, [*updated, *updated]).sqrt().tolist()
        dampings = [self._damping(param, group) for param, group in updated.items()]
        curvatures = [
            curvature(self._factors(param).whole, damping, torch.Size(self._uses[param][0].view.shape))
            for param, damping in zip(updated, dampings, strict=True)
        ]
        numbers = torch.stack([c.to(squares) for c in curvatures]).tolist()  # the only wait for a GPU
        result = {}
        for i, (param, group) in enumerate(updated.items()):
            mean, low, median, high = numbers[i]
            weight, moved = norms[i], norms[len(updated) + i]
            result[self._names[param]] = {
                "share": mean / (mean + dampings[i]),
                "preconditioner_min": low,
                "preconditioner_median": median,
                "preconditioner_max": high,
                "update_ratio": float(group["lr"]) * moved / weight if weight else float("inf"),
                "age": float(self._steps - 1 - self.state[param]["refreshed"]),
            }
        return result

    def _update_squares(self, updated: dict[Tensor, dict[str, Any]]) -> Tensor:
        """The squared norms of updates, without weight decay and learning rate, of the rows here."""
        device = next(iter(updated)).device
        if self.rule == "calibrated":
            lengths = [update.UPDATE_RMS**2 * dtensor.local_tensor(param).numel() for param in updated]
            return torch.tensor(lengths, dtype=torch.float64, device=device)
        squares = []
        for param, group in updated.items():
            exp_avg, pairs = dtensor.local_tensor(self.state[param]["exp_avg"]), self._factors(param).local
            unbias = 1 - group["beta"] ** self.state[param]["step"].item()
            damping = self._damping(param, group)
            squares.append(momentum_square(exp_avg.view(self._shape(param)), pairs, damping) / unbias**2)
        return torch.stack(squares).to(device, torch.float64)


class AdaFisherW(AdaFisher):
    """AdaFisher with decoupled weight decay under every rule."""

    def __init__(self, model: nn.Module, params: Iterable[Any] | None = None, **options: Any) -> None:
        super().__init__(model, params, **{"decoupled": True, **options})
