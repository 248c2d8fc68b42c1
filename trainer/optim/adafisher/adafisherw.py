"""AdaFisher with decoupled weight decay."""

from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from .limits import Count, Fraction, NonNegative, Positive
from .optimizer import AdaFisher
from .rules import RuleName


class AdaFisherW(AdaFisher):
    """AdaFisher with decoupled weight decay under every rule; its other options are those of `AdaFisher`."""

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
        rule: RuleName = "orthogonal",
        roles: dict[str, Any] = {},  # noqa: B006 (an option's default; it is copied, never changed)
        update_interval: Count | None = None,
        capture: Literal["hooks", "gradient"] = "hooks",
        fused: bool | Literal["compile"] | None = None,
        maximize: bool = False,
        **words: Any,
    ) -> None:
        super().__init__(
            model,
            params,
            lr=lr,
            momentum=momentum,
            damping=damping,
            gamma=gamma,
            weight_decay=weight_decay,
            decoupled=True,
            rule=rule,
            roles=roles,
            update_interval=update_interval,
            capture=capture,
            fused=fused,
            maximize=maximize,
            **words,
        )
