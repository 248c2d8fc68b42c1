"""``param_groups`` and ``state`` are the user's, as those of Adam: AdaFisher follows at once what they are made."""

import copy
import pickle
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tests.optim.adafisher.small import Net, backward, batch, everything, same, train
from trainer.optim.adafisher import AdaFisher


def moved(model: nn.Module, optimizer: AdaFisher, step: int) -> set[str]:
    """The parameters that a step moves."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, optimizer, range(step, step + 1))
    return {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}


# State


def assigned(optimizer: AdaFisher) -> None:
    optimizer.state = defaultdict(dict)


def emptied(optimizer: AdaFisher) -> None:
    optimizer.state.clear()


@pytest.mark.parametrize("reset", [assigned, emptied])
@pytest.mark.parametrize("done", [1, 3, 5])
def test_an_optimizer_without_its_state_is_a_fresh_one(reset: Callable[[AdaFisher], None], done: int) -> None:
    old_model, new_model = Net(), Net()
    old = AdaFisher(old_model, update_interval=4)
    train(old_model, old, range(done))
    reset(old)
    new_model.load_state_dict(old_model.state_dict())
    new = AdaFisher(new_model, update_interval=4)
    train(old_model, old, range(10, 17))
    train(new_model, new, range(10, 17))
    same(everything(old_model, old), everything(new_model, new))
    saved = old.state_dict()["state"]
    assert len(saved) == 6
    assert {int(entry["step"]) for entry in saved.values()} == {7}


def test_a_reset_between_forward_and_step() -> None:
    """There is nothing to refresh with: the gradients give factors until then, as for any parameter without."""
    model = Net()
    optimizer = AdaFisher(model, update_interval=4)
    train(model, optimizer, range(2))
    model.zero_grad()
    backward(model, 2)
    optimizer.state.clear()
    optimizer.step()
    train(model, optimizer, range(3, 9))
    assert all(value.isfinite().all() for value in everything(model, optimizer).values())
    assert "gradient" not in {row.source for row in optimizer.coverage()}


@pytest.mark.parametrize("key", ["exp_avg", "H", "S"])
def test_assigned_tensors_of_the_state_count(key: str) -> None:
    by_place, by_name = Net(), Net()
    a, b = AdaFisher(by_place), AdaFisher(by_name)
    train(by_place, a, range(3))
    train(by_name, b, range(3))
    value = torch.rand_like(a.state[by_place.first.weight][key])
    a.state[by_place.first.weight][key].copy_(value)
    a.load_state_dict(a.state_dict())  # after which all caches are made anew
    b.state[by_name.first.weight][key] = value.clone()
    train(by_place, a, range(3, 6))
    train(by_name, b, range(3, 6))
    same(everything(by_place, a), everything(by_name, b))
    momentum = b.state_dict()["state"][0]["exp_avg"]
    assert momentum.data_ptr() == b.state[by_name.first.weight]["exp_avg"].data_ptr()


def test_a_state_that_lost_an_entry() -> None:
    model = Net()
    optimizer = AdaFisher(model)
    train(model, optimizer, range(3))
    del optimizer.state[model.first.weight]
    optimizer.state[model.head.weight] = {}
    del optimizer.state[model.norm.weight]["S"]
    momentum = optimizer.state[model.norm.weight]["exp_avg"].clone()
    assert moved(model, optimizer, 3) == {name for name, _ in model.named_parameters()}
    assert optimizer.state[model.first.weight]["step"] == 1
    assert optimizer.state[model.norm.weight]["step"] == 4
    assert not torch.equal(momentum, optimizer.state[model.norm.weight]["exp_avg"])


class Elsewhere(torch.Tensor):
    """Stands for a tensor on a GPU, which does not mix with those on the CPU."""

    def cpu(self, *_: Any, **__: Any) -> torch.Tensor:
        return torch.tensor(self.item())


def test_steps_are_counted_on_the_cpu() -> None:
    model = Net()
    with torch.device("meta"):  # stands for a GPU as the default device
        optimizer = AdaFisher(model)
    assert {state["step"].device.type for state in optimizer.state.values()} == {"cpu"}
    train(model, optimizer, range(2))
    state = optimizer.state[model.first.weight]
    state["step"] = state["step"].clone().as_subclass(Elsewhere)  # as loaded with map_location
    train(model, optimizer, range(2, 4))
    assert {type(state["step"]) for state in optimizer.state.values()} == {torch.Tensor}
    assert {state["step"].item() for state in optimizer.state.values()} == {4}


def test_entries_of_the_users_own_stay() -> None:
    model = Net()
    optimizer = AdaFisher(model)
    optimizer.state[model.first.weight]["mine"] = 5
    optimizer.state["global"] = 7
    train(model, optimizer, range(3))
    assert optimizer.state[model.first.weight]["mine"] == 5
    assert optimizer.state["global"] == 7


# Groups


@pytest.mark.parametrize("grows", [False, True])
@pytest.mark.parametrize("state", ["moved", "absent"])
def test_a_replaced_parameter_is_trained_at_once(grows: bool, state: str) -> None:
    """As in pruning and growing: the new one takes the place of the old one, and with it a part of its state."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3))
    optimizer = AdaFisher(model)
    for step in range(13):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
        if step != 4:
            continue
        old, rows = model[1].weight, 3 + grows
        new = nn.Parameter(torch.randn(rows, 6))
        kept = optimizer.state.pop(old)
        if state == "moved":
            kept["exp_avg"] = torch.zeros_like(new)
            optimizer.state[new] = kept
        optimizer.param_groups[0]["params"][2] = new
        model[1].weight = new
        if grows:
            model[1].out_features = rows
            bias = nn.Parameter(torch.zeros(rows))
            optimizer.param_groups[0]["params"][3] = model[1].bias = bias
        before, gone = new.detach().clone(), old.detach().clone()
    assert not torch.equal(before, new)
    assert torch.equal(gone, old)
    rows = {row.parameter: (row.source, row.S) for row in optimizer.coverage()}
    assert rows["1.weight"] == ("Linear", [(3 + grows,)])


def test_a_parameter_replaced_after_zero_grad() -> None:
    model = Net()
    optimizer = AdaFisher(model)
    train(model, optimizer, range(3))
    optimizer.zero_grad()
    new = nn.Parameter(torch.randn(3, 6))
    index = next(i for i, p in enumerate(optimizer.param_groups[0]["params"]) if p is model.head.weight)
    optimizer.param_groups[0]["params"][index] = model.head.weight = new
    before = new.detach().clone()
    backward(model, 3)
    optimizer.step()
    assert not torch.equal(before, new)


def test_groups_that_are_taken_away_and_put_back() -> None:
    model = Net()
    optimizer = AdaFisher(model, [{"params": model.first.parameters()}, {"params": model.head.parameters()}])
    train(model, optimizer, range(2))
    popped = optimizer.param_groups.pop()
    assert moved(model, optimizer, 2) == {"first.weight", "first.bias"}
    optimizer.param_groups.append(popped)
    assert moved(model, optimizer, 3) == {"first.weight", "first.bias", "head.weight", "head.bias"}
    del optimizer.param_groups[1]["params"][1]
    assert moved(model, optimizer, 4) == {"first.weight", "first.bias", "head.weight"}
    optimizer.param_groups[1]["params"].append(model.norm.weight)
    assert moved(model, optimizer, 5) == {"first.weight", "first.bias", "head.weight", "norm.weight"}
    optimizer.param_groups[0] = {**optimizer.param_groups[0], "lr": 0.0}
    assert moved(model, optimizer, 6) == {"head.weight", "norm.weight"}


def test_a_foreign_parameter_put_into_a_group() -> None:
    model = Net()
    optimizer = AdaFisher(model)
    optimizer.param_groups[0]["params"].append(nn.Parameter(torch.ones(4)))
    backward(model, 0)
    with pytest.raises(ValueError, match=r"shape \(4,\) is not one of the model's"):
        optimizer.step()


def test_a_refused_group_leaves_nothing_behind() -> None:
    model = Net()
    optimizer = AdaFisher(model, model.first.parameters())
    for params in ([nn.Parameter(torch.ones(4))], [*Net().head.parameters()], [model.head.weight, "no"]):
        with pytest.raises((ValueError, TypeError)):
            optimizer.add_param_group({"params": params})
    with pytest.raises(ValueError, match="Invalid momentum"):
        optimizer.add_param_group({"params": model.head.parameters(), "momentum": 2.0})
    assert len(optimizer.param_groups) == 1
    train(model, optimizer, range(3))
    assert len(optimizer.state) == 2


@pytest.mark.parametrize("first", ["named", "unnamed"])
@pytest.mark.parametrize("second", ["named", "unnamed"])
def test_groups_may_be_named_or_not(first: str, second: str) -> None:
    model = Net()
    optimizer = AdaFisher(
        model, model.first.named_parameters() if first == "named" else model.first.parameters()
    )
    more = model.head.named_parameters("head") if second == "named" else model.head.parameters()
    optimizer.add_param_group({"params": more})
    if first == "named":
        assert optimizer.param_groups[1]["param_names"] == ["head.weight", "head.bias"]
    assert moved(model, optimizer, 0) == {"first.weight", "first.bias", "head.weight", "head.bias"}


def test_a_new_layer_is_one_more_group() -> None:
    """The default groups have names; a layer of a growing model comes without."""
    model = Net()
    optimizer = AdaFisher(model)
    train(model, optimizer, range(2))
    model.head = nn.Sequential(model.head, nn.Tanh(), nn.Linear(3, 3))  # type: ignore[assignment]
    optimizer.add_param_group({"params": model.head[2].parameters()})
    assert {"head.2.weight", "head.2.bias"} < moved(model, optimizer, 2)
    train(model, optimizer, range(3, 12))
    assert {row.parameter: row.source for row in optimizer.coverage()}["head.2.weight"] == "Linear"


@pytest.mark.parametrize("rule", ["calibrated", "orthogonal"])
@pytest.mark.parametrize("shape", [(0, 3), (0,), (3, 0)])
def test_parameters_without_elements(shape: tuple[int, ...], rule: Any) -> None:
    model = Net()
    model.empty = nn.Parameter(torch.zeros(shape))
    model.body = nn.Linear(5, 0)
    optimizer = AdaFisher(model, rule=rule)
    for step in range(12):
        optimizer.zero_grad()
        x, y = batch(step)
        (cross_entropy(model(x), y) + model.empty.sum() + model.body(x).sum()).backward()
        optimizer.step()
    assert {"first.weight", "head.bias"} < optimizer.diagnostics().keys()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, range(12, 14))


# Models that own their optimizer


class Owner(Net):
    def __init__(self) -> None:
        super().__init__()
        self.optimizer = AdaFisher(self, update_interval=3)


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("clone", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("done", [0, 2, 3])
def test_a_model_that_owns_its_optimizer(clone: Callable[[Owner], Owner], done: int) -> None:
    model = Owner()
    train(model, model.optimizer, range(done))
    other = clone(model)
    assert other.optimizer.model is other
    train(model, model.optimizer, range(done, done + 5))
    train(other, other.optimizer, range(done, done + 5))
    same(everything(model, model.optimizer), everything(other, other.optimizer))


@pytest.mark.parametrize("done", [0, 3])
def test_a_copied_owner_that_steps_first(done: int) -> None:
    """Nothing of the optimizer's is called before the first forward, so that nothing is captured there."""
    model = Owner()
    train(model, model.optimizer, range(done))
    other = copy.deepcopy(model)
    other.zero_grad()
    backward(other, 0)
    other.optimizer.step()
    train(other, other.optimizer, range(6))
    assert "gradient" not in {row.source for row in other.optimizer.coverage()}
