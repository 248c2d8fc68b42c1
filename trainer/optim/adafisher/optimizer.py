"""The AdaFisher optimizer. To understand the rule, read `reference`: the same in plain code, without shards."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import dtensor, refresh
from ._torch_private import disable_compiler
from .diagnostics import Coverage, coverage_of, diagnose, full_preconditioner
from .hooks import Rows
from .limits import Count, Fraction, NonNegative, Positive, check
from .loss_scale import loss_scale
from .rules import RULES, RuleName
from .saved import SavedOptimizer
from .state import Tracked
from .step import make_updates, take_step
from .usual_words import check_words


class AdaFisher(SavedOptimizer):
    r"""Momentum preconditioned by two diagonals of the Fisher information for each layer.

    To understand or change the rule, read ``reference.py`` in this folder first: the default rule and the calibrated
    one on one device, in plain code, with which this class is tested to agree.

    For a layer, h are the rows that its weight multiplies (samples, tokens, patches of a convolution; with a bias,
    h has a 1 at its end) and s the rows of the gradient of the per-sample loss with respect to its output:

        H = mean over rows of h²      one entry per column of the weight, one for the bias
        S = mean over rows of s²      one entry per row of the weight

    At every ``update_interval``-th step both are refreshed and averaged with weight γ of the old value. Every step
    divides the momentum by F̃[i, j] = S'[i] H'[j] + λ, without a square root. The rules differ in the rest:

    ``"calibrated"`` makes each scale relative to the layer: H' and S' are the bias-corrected averages
    over their means, λ is relative to a curvature of mean one, and an update has a length of its own:

        m ← β m + (1 − β) g        n = β m + (1 − β) g        u = n / F̃
        θ ← (1 − η κ) θ − η 0.2 u / max(rms(u), ε)

    ε is met by gradients that are 3e-4 times smaller than H and S say of real ones, if others in the group are not: by
    rounding noise, such as that of a convolution's bias before a batch norm, which therefore stays.

    ``"orthogonal"``, the default, takes the step of a matrix, [rows, ...] of a linear layer or convolution, along the
    polar factors U Vᵀ of the blocks U Σ Vᵀ of at most 128 rows of n, divided by the root of the same curvature:

        O = the blocks' polar factors        u = O / √((S' + 0.1) (H' + 0.1))        θ ← (1 − η κ) θ − η 0.2 u / rms(u)

    Embeddings of tokens, also those that are output layers too, have for F̃ the root of its means over columns, plus λ.
    They and all other parameters take the calibrated step. `coverage` tells what each parameter takes.

    ``"paper"`` (Algorithm 1): H' and S' are the bias-corrected averages, min-max normalized; a vector whose range is
    under 1 % of its maximum gives ones. ``"released"`` (the authors' code): new factors are min-max normalized, then
    averaged by H ← γ/10 H + γ/100 H_new, so that the curvature fades: in the end it is momentum SGD of learning rate
    η/λ · (1 − β). Both then take

        m ← β m + (1 − β) g        θ ← θ − η m / (1 − βᵗ) / F̃

    with κ θ added to g, or ``decoupled``, added to the update.

    A weight that several layers share adds the products of its uses. A parameter of a layer whose type is not known,
    or whose ``forward`` is never called, has S and H from the row and column means of its squared gradient;
    `register_layer` makes a type known. Hooks are attached for steps that refresh only. A compiled model runs
    eagerly in these steps, and compiled in the others.

    Args:
        model: the model that owns the parameters. It runs in training mode under gradients; what runs in ``eval()``,
            without gradients, or again for activation checkpointing (``use_reentrant=False``) counts for nothing.
        params: parameters, named parameters or groups with options of their own; all of the model's if left out.
        lr: learning rate η ≥ 0. Orthogonal and calibrated: 1e-2, on the scale of AdamW's; else 1e-3.
        momentum: its decay β, 0 ≤ β < 1. `OneCycleLR` and `CyclicLR` cycle it by this name.
        damping: λ > 0. Orthogonal and calibrated: 0.01, relative; λ → ∞ is plain momentum. Else 1e-3, absolute.
        gamma: weight γ of the old factors, 0 ≤ γ < 1. Orthogonal and calibrated: 0.95; else 0.8. (In one reading of
            the paper γ weights the new ones; not here.)
        weight_decay: κ ≥ 0. Decoupled: 1e-2; else 5e-4.
        decoupled: whether weight decay bypasses the preconditioner. Always under ``"orthogonal"``, ``"calibrated"``.
        rule: ``"orthogonal"``, ``"calibrated"``, ``"paper"`` or ``"released"``.
        roles: under ``"orthogonal"``, by patterns of parameters' names, of which the last that fits counts: the most
            rows of a block, ``"whole"`` (a matrix, or each part of a fused one, is one block), ``"rooted"`` (as
            embeddings) or ``"calibrated"``.
        update_interval: steps between refreshes, ≥ 1. Orthogonal and calibrated: 10, paper: 1, released: 100.
        capture: ``"hooks"`` on the layers, or ``"gradient"``: row and column means of the squared gradient for every
            parameter, without any hook, for models whose layers are hidden or compiled as a whole.
        fused: None and True update all parameters of a group at once by kernels of Triton, on a GPU where it is
            installed; False does without. ``"compile"`` is one compiled function, which is slower on a GPU.
        maximize: ascends.
        words: further options of torch's optimizers, where they ask for what is done anyway: ``foreach=True``,
            ``capturable=False``, ``differentiable=False``.

    State of a parameter of shape ``[rows, ...]``, by key. Further uses of a shared weight have the keys of factors with
    ``_1``, ``_2`` and so on at their ends. Factors are float32, or float64 for float64 parameters; under FSDP
    ``exp_avg`` and S are sharded like the parameter, H is not.

        step          []                    steps taken with a gradient
        exp_avg       [rows, ...]           m
        H             [columns (+ 1)]       average; with the bias's entry. [groups, columns (+ 1)] of a grouped
                                            convolution, [1] of a norm's bias, [channels] of its weight
        S             [rows]                average; [width] of an embedding, [channels] of a norm
        row_weight    float                 rows / samples² of the last refresh, by which mean S · mean H is the
                                            mean square of a gradient whose rows have random signs; 0 if unknown
        refreshes     int                   how many refreshes are in the averages
        captured      0 or 1                whether H and S come from the rows of a layer; else from the gradient
        refreshed     int                   the step of the last refresh

    Factors are taken from gradients of a loss that a GradScaler may have scaled. It is found by itself where its own
    ``step`` calls the optimizer's, also through Lightning, accelerate and the like; else set ``optimizer.grad_scaler =
    scaler``. What was captured counts as long as the gradients it came with are there: to skip a step, drop them.

    ``param_groups`` and ``state`` may be changed as those of Adam: parameters replaced or removed, state cleared or
    assigned. A layer put into the model later is one more group: ``add_param_group``.

    Example::

        model = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 3))
        optimizer = AdaFisher(model, lr=1e-2)
        for x, y in batches:
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()

    Raises:
        TypeError: the model is missing; an option is unknown or unsupported.
        ValueError: an option is out of range, a pattern fits no parameter, or a parameter is not the model's.
        RuntimeError: in ``step``, if no layer was captured before the first one.

    Sources: "AdaFisher: Adaptive Second Order Optimization via Fisher Information", ICLR 2025, arXiv 2405.16397v3;
    the orthogonal and the calibrated rule are this project's own. Orthogonal steps are Muon's
    (https://kellerjordan.github.io/posts/muon/), in blocks as in arXiv 2510.16981.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Iterable[Any] | None = None,
        *,
        lr: NonNegative | None = None,
        momentum: Fraction = 0.9,
        damping: Positive | None = None,
        gamma: Fraction | None = None,
        weight_decay: NonNegative | None = None,
        decoupled: bool | None = None,
        rule: RuleName = "orthogonal",
        roles: dict[str, Any] = {},  # noqa: B006 (an option's default; it is copied, never changed)
        update_interval: Count | None = None,
        capture: Literal["hooks", "gradient"] = "hooks",
        fused: bool | Literal["compile"] | None = None,
        maximize: bool = False,
        **words: Any,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(
                "AdaFisher's first argument is the model, whose layers it watches: AdaFisher(model, params, ...), "
                f"but it is a {type(model).__name__}"
            )
        if isinstance(params, float | int):
            raise TypeError(
                f"AdaFisher's second argument is params, but it is {params!r}: AdaFisher(model, lr={params!r})"
            )
        check_words(words)
        check(AdaFisher.__init__, rule=rule, capture=capture, fused=fused)
        own = RULES[rule]
        if own.always_decoupled and decoupled is False:
            raise ValueError(f"Invalid decoupled: False, rule={rule!r} always decouples weight decay")
        if roles and not own.orthogonal:
            raise ValueError(f"Invalid roles: {roles!r}, parameters have roles under rule='orthogonal' only")
        self.model = model
        self.rule = rule
        self.roles = dict(roles)
        self.decoupled = own.always_decoupled if decoupled is None else decoupled
        self.update_interval = own.update_interval if update_interval is None else update_interval
        self.capture = capture
        self.fused = fused
        check(AdaFisher.__init__, update_interval=self.update_interval)
        decay = own.decoupled_weight_decay if self.decoupled else own.weight_decay
        defaults = {
            "lr": own.lr if lr is None else lr,
            "momentum": momentum,
            "damping": own.damping if damping is None else damping,
            "gamma": own.gamma if gamma is None else gamma,
            "weight_decay": decay if weight_decay is None else weight_decay,
            "maximize": maximize,
        }
        super().__init__(model, params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters with options of their own; see `LayerwiseOptimizer.add_param_group`.

        Raises:
            ValueError: an option is out of range.
        """
        options = {**self.defaults, **param_group}
        if isinstance(options["lr"], Tensor):
            if options["lr"].numel() != 1:
                raise ValueError("Tensor lr must be 1-element")
            options["lr"] = options["lr"].item()
        limited = ("lr", "momentum", "damping", "gamma", "weight_decay")
        check(AdaFisher.__init__, **{name: options[name] for name in limited})
        super().add_param_group(param_group)

    # Step

    @disable_compiler
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs one optimization step, after a refresh of the factors if one is due.

        Returns:
            the loss that ``closure`` computed, or None.

        Raises:
            RuntimeError: the first step captured nothing; a gradient is sparse.
            ValueError: a parameter that was put into a group is not the model's.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        is_watching = self._capture.is_attached
        self._follow()
        if self.needs_refresh or not self._is_prepared():
            self._prepare(is_watching)
        self._capture.detach()  # and lets a compiled update run compiled
        take_step(self._updates, normalized=self._rule.normalize_update)
        self._steps += 1
        self._arrange_hooks()
        return loss

    def _is_prepared(self) -> bool:
        return bool(self._updates) and all(update.is_current() for update in self._updates)

    def _prepare(self, is_watching: bool) -> None:
        """Refreshes the factors that are due, and lists what there is to update.

        Args:
            is_watching: whether layers were watched in this step's forward and backward.
        """
        tracked = self._tracked_with_gradient()
        if self.needs_refresh:
            ranks = dtensor.ranks_of([t.param for t in tracked])
            captured = self._capture.collect(
                loss_scale(self.grad_scaler),
                per_sample=self._rule.per_sample,
                ranks=ranks.group.size() if ranks else 1,
            )
            self._refresh(tracked, captured, is_watching)
        elif without := [t for t in tracked if not t.has_factors]:
            self._refresh(without, {})  # from their gradients, until their layers are captured
        missing = [t for t in tracked if t.param not in self._curvatures]
        if missing and self._curvatures.refresh(missing, {}):
            self._updates = []
        if not self._is_prepared():
            self._updates = make_updates(
                self.param_groups, tracked, self._curvatures, decoupled=self.decoupled, fused=self.fused
            )
            self._remember_sources()

    def _refresh(
        self, tracked: list[Tracked], captured: dict[nn.Module, Rows], is_watching: bool = False
    ) -> None:
        """Takes new factors into the averages of parameters, and preconditions by the averages."""
        layers = self._capture.layers if self.needs_refresh else {}
        inputs = refresh.gather(tracked, captured, layers)
        has_seen = inputs.by_layer or self._capture.has_seen
        if is_watching and layers and self._steps == 0 and not has_seen:
            raise RuntimeError(
                "AdaFisher has captured no layer: between making it and step(), call the model in training mode "
                "and loss.backward(); for a model whose layers are not called, choose capture='gradient'"
            )
        new = refresh.new_factors(tracked, inputs)
        refresh.update_averages(new, inputs.full_S, self._rule)
        refreshed = {item.of.param: item.of for item in new}
        for t in refreshed.values():
            t.state["refreshed"] = self._steps
        if self._curvatures.refresh([*refreshed.values()], inputs.full_S):
            self._updates = []
        if is_watching:
            self._warnings.check(tracked, self._steps - 2 * self.update_interval)
            if self._steps % (10 * self.update_interval) == 0:  # it goes through the whole model
                self._warnings.check_model(self.model, self._names)

    # Reports

    @torch.no_grad()
    def preconditioner(self, param: Tensor) -> Tensor:
        """F̃ of a parameter, in its shape, as of the last refresh; of a matrix what its polar factors are divided by.

        Where it is sharded, all ranks must call this.
        """
        tracked = next(t for t in self._tracked() if t.param is param)
        return full_preconditioner(tracked, self._curvature_of(tracked))

    def coverage(self) -> list[Coverage]:
        """Of every trainable parameter: name, source of its curvature, shapes of its H and S, and kind of its step."""
        return [coverage_of(tracked, self.rule) for tracked in self._tracked()]

    @torch.no_grad()
    def diagnostics(self) -> dict[str, dict[str, float]]:
        """What the curvature does to each parameter that has been updated. On several ranks, all must call this.

        Returns:
            by name of the parameter: ``share``, mean(S'H') / (mean(S'H') + λ), 1 of what is orthogonal;
            ``preconditioner_min``, ``_median``, ``_max`` of `preconditioner`; ``update_ratio``, the norm of an update
            without weight decay over that of the parameter (of a calibrated one above its floor); ``age``, steps since
            the factors were refreshed.
        """
        updated = [(t, self._curvature_of(t)) for t in self._tracked() if t.state["step"]]
        return diagnose(updated, self._steps, self._rule)
