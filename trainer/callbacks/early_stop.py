"""Ends a run that has got good enough, or does not get better."""

from collections.abc import Mapping
from typing import Any

from trainer.callbacks.base import CALLBACKS, Callback, Setup, Training
from trainer.errors import ConfigError, nearest
from trainer.metrics import metric_of
from trainer.options import Count, NonNegative


@CALLBACKS.register("early_stop", may_differ=True, ends_run=True)
class EarlyStop(Callback):
    """Watches a metric of the evaluations.

    Args:
        metric: its full name, such as ``test_ema/loss``; None: the one that picks the best checkpoint.
        patience: evaluations without progress after which the run ends; None: any number.
        min_delta: how much better than the best so far counts as progress.
        target: a value with which the run ends at once; None: there is none.

    Raises:
        ValueError: neither patience nor target is set.
    """

    def __init__(
        self,
        *,
        metric: str | None = None,
        patience: Count | None = None,
        min_delta: NonNegative = 0.0,
        target: float | None = None,
    ) -> None:
        if patience is None and target is None:
            raise ValueError("set callbacks.early_stop.patience or callbacks.early_stop.target")
        self.metric, self.patience, self.min_delta, self.target = metric, patience, min_delta, target
        self.best: float | None = None
        self.closest: float | None = None  # to the target: the best of all, however little better than before
        self.waited = 0

    def check(self, setup: Setup) -> None:
        """Refuses a metric of a split that is not evaluated, or not with averaged weights."""
        if self.metric is not None:
            split = self.metric.rpartition("/")[0]
            if split.removesuffix("_ema") not in setup.data.evals:
                known = nearest(split, setup.data.evals)
                raise ConfigError(
                    f"callbacks.early_stop.metric={self.metric} is of no split that is evaluated{known}"
                )
            if split not in setup.data.evals and not setup.has_average:
                raise ConfigError(
                    f"callbacks.early_stop.metric={self.metric} is of averaged weights: set loop.ema, such as 0.999"
                )

    def start(self, training: Training) -> None:
        """Ends a run at once that has waited long enough before it was stopped."""
        self._stop_if_due(training)

    def after_evaluation(self, training: Training, metrics: Mapping[str, float]) -> None:
        """Compares with the best value so far."""
        name = self.metric or training.primary
        if name not in metrics:
            raise ConfigError(f"callbacks.early_stop.metric={name} is not evaluated{nearest(name, metrics)}")
        value, metric = metrics[name], metric_of(name)
        if metric.better(value, self.closest):
            self.closest = value
        handicap = -self.min_delta if metric.higher_is_better else self.min_delta
        if metric.better(value + handicap, self.best):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        self._stop_if_due(training)

    def _stop_if_due(self, training: Training) -> None:
        metric = metric_of(self.metric or training.primary)
        if self.target is not None and self.closest is not None and metric.reaches(self.closest, self.target):
            training.stop(f"{metric.name} has reached {metric.text(self.closest)}")
        if self.patience is not None and self.waited >= self.patience:
            training.stop(f"{metric.name} has not improved in {self.waited} evaluations")

    def state_dict(self) -> dict[str, Any]:
        """The best values, and how many evaluations ago there was progress."""
        return {"best": self.best, "closest": self.closest, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes them over."""
        self.best, self.waited = state["best"], state["waited"]
        self.closest = state.get("closest", self.best)  # which an older checkpoint lacks
