"""State dicts, copies and pickles of AdaFisher."""

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from . import state
from .layerwise import LayerwiseOptimizer
from .state import Tracked


class SavedOptimizer(LayerwiseOptimizer):
    """Can be saved and loaded, copied and pickled; its state dict says what it is of."""

    _OPTIONS = ("model", "rule", "roles", "decoupled", "update_interval", "capture", "fused", "grad_scaler")
    """Attributes that a copied or pickled optimizer keeps."""

    def state_dict(self) -> dict[str, Any]:
        """State and groups, as of any optimizer of torch, with the rule and the capture that they are of."""
        return {**super().state_dict(), "rule": self.rule, "capture": self.capture}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads what `state_dict` returned; the next steps are those that the saved optimizer would have taken.

        Raises:
            ValueError: it is of another model, rule, capture or optimizer. Nothing was loaded then.
        """
        saved: dict[str, Any] = {}

        def check(_: Optimizer, state_dict: dict[str, Any]) -> None:
            self._check_saved(state_dict)
            saved.update(state_dict)

        def restore(_: Optimizer) -> None:
            for tracked, values in self._pairs_with(saved):
                state.restore(tracked, values)
            self._capture.clear()
            self._sources = None
            self._follow()

        # after all hooks of the user, which may return another dict, and before them
        handles = [
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)  # type: ignore[arg-type]
        finally:
            for handle in handles:
                handle.remove()

    def _check_saved(self, saved: Mapping[str, Any]) -> None:
        self._follow()
        for option in ("rule", "capture"):
            if saved.get(option, getattr(self, option)) != getattr(self, option):
                raise ValueError(
                    f"The loaded state is of {option}={saved[option]!r}, and this optimizer has "
                    f"{option}={getattr(self, option)!r}"
                )
        if [len(g["params"]) for g in saved["param_groups"]] == [len(g["params"]) for g in self.param_groups]:
            for tracked, values in self._pairs_with(saved):  # else torch tells what is wrong
                state.check_saved(tracked, values)

    def _pairs_with(self, saved: Mapping[str, Any]) -> list[tuple[Tracked, Mapping[str, Any]]]:
        """The parameters, each with what was saved of it."""
        ids = [i for group in saved["param_groups"] for i in group["params"]]
        pairs = [(param, group) for group in self.param_groups for param in group["params"]]
        return [
            (self._track(param, group), saved["state"][i])
            for i, (param, group) in zip(ids, pairs, strict=True)
            if saved["state"].get(i) and param in self._uses
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in self._OPTIONS}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name in self.defaults.keys() - {"differentiable"}:  # saved before there was this option
                group.setdefault(name, self.defaults[name])
        if "model" in state:  # unpickled or copied, not loaded
            self._forget_all()
            if "_modules" in self.model.__dict__:  # else it is being made, and has this optimizer itself
                self._follow()
