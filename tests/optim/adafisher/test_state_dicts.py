"""State dicts are checked before anything is loaded, pass through the hooks of the user, and say what they are of."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.optim.adafisher.small import Net, everything, same, train
from trainer.optim.adafisher import AdaFisher


def trained(steps: int = 5, **options: Any) -> tuple[Net, AdaFisher]:
    model = Net()
    optimizer = AdaFisher(model, update_interval=3, **options)
    train(model, optimizer, range(steps))
    return model, optimizer


def test_a_hook_that_returns_another_dict() -> None:
    """torch's own example: parameters are matched by name, here of an optimizer that has them in reverse order."""
    model, optimizer = trained()
    saved = copy.deepcopy(optimizer.state_dict())
    ids = {name: i for i, name in enumerate(saved["param_groups"][0]["param_names"])}
    other_model = Net()
    other_model.load_state_dict(model.state_dict())
    other = AdaFisher(other_model, reversed([*other_model.named_parameters()]), update_interval=3)

    def by_name(self: AdaFisher, state_dict: dict[str, Any]) -> dict[str, Any]:
        (group,) = self.state_dict()["param_groups"]
        state = {i: state_dict["state"][ids[name]] for i, name in enumerate(group["param_names"])}
        return {"state": state, "param_groups": [{**state_dict["param_groups"][0], **group}]}

    other.register_load_state_dict_pre_hook(by_name)
    seen: list[float] = []
    other.register_load_state_dict_post_hook(
        lambda self: seen.append(self.state[other_model.first.weight]["H"].sum().item())
    )
    other.load_state_dict(saved)
    assert seen == [optimizer.state[model.first.weight]["H"].sum().item()]
    train(model, optimizer, range(5, 9))
    train(other_model, other, range(5, 9))
    same(everything(model, optimizer), everything(other_model, other))


def test_a_hook_that_changes_the_dict() -> None:
    model, optimizer = trained()
    saved = {"wrapped": copy.deepcopy(optimizer.state_dict())}
    other_model = Net()
    other_model.load_state_dict(model.state_dict())
    other = AdaFisher(other_model, update_interval=3)
    other.register_load_state_dict_pre_hook(
        lambda self, state_dict: state_dict.update(state_dict.pop("wrapped"))
    )
    other.load_state_dict(saved)
    train(model, optimizer, range(5, 9))
    train(other_model, other, range(5, 9))
    same(everything(model, optimizer), everything(other_model, other))


def of_adamw() -> dict[str, Any]:
    model = Net()
    optimizer = torch.optim.AdamW(model.named_parameters())
    train(model, optimizer, range(1))
    return optimizer.state_dict()


def of_another_model() -> dict[str, Any]:
    model = Net()
    model.head = nn.Linear(6, 4)
    return AdaFisher(model).state_dict()


def without_a_key() -> dict[str, Any]:
    saved = copy.deepcopy(trained()[1].state_dict())
    del saved["state"][5]["refreshes"]
    return saved


REFUSED = {
    "of_adamw": (of_adamw, "no H of shape"),
    "of_another_model": (of_another_model, r"no exp_avg of shape \(3, 6\) for head.weight"),
    "without_a_key": (without_a_key, r"no refreshes for head\.bias"),
    "of_another_rule": (lambda: trained(rule="released")[1].state_dict(), "is of rule='released'"),
    "of_another_capture": (lambda: trained(capture="gradient")[1].state_dict(), "is of capture='gradient'"),
    "of_fewer_groups": (lambda: {"state": {}, "param_groups": []}, "different number of parameter groups"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_changes_nothing(case: str) -> None:
    make, message = REFUSED[case]
    model, optimizer = trained()
    control_model, control = trained()
    before = everything(model, optimizer)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(make())
    same(before, everything(model, optimizer))
    train(model, optimizer, range(5, 9))
    train(control_model, control, range(5, 9))
    same(everything(control_model, control), everything(model, optimizer))


def test_numbers_for_steps_and_groups_without_newer_keys() -> None:
    model, optimizer = trained()
    saved = copy.deepcopy(optimizer.state_dict())
    for entry in saved["state"].values():
        entry["step"] = int(entry["step"])
    for key in ("gamma", "maximize"):
        del saved["param_groups"][0][key]
    del saved["rule"], saved["capture"]
    other_model = Net()
    other_model.load_state_dict(model.state_dict())
    other = AdaFisher(other_model, update_interval=3)
    other.load_state_dict(saved)
    train(model, optimizer, range(5, 9))
    train(other_model, other, range(5, 9))
    same(everything(model, optimizer), everything(other_model, other))


def test_a_state_of_some_parameters() -> None:
    """Those that were frozen when it was saved have none: theirs is made at their first step."""
    model, optimizer = trained()
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["state"][5]
    optimizer.load_state_dict(saved)
    before = model.head.bias.detach().clone()
    train(model, optimizer, range(5, 7))
    assert not torch.equal(before, model.head.bias)
    assert optimizer.state[model.head.bias]["step"] == 2
