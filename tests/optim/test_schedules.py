import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, OneCycleLR

from trainer.optim import SCHEDULES, Schedule

STEPS = 40


def optimizer(lr=0.5):
    return SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def factor(**config):
    return SCHEDULES.build(SCHEDULES.check(config))


def rates(schedule, steps=STEPS):
    """The rates with which each of the steps is taken."""
    seen = []
    for step in range(steps):
        schedule.update(step / steps, step)
        seen.append(schedule.optimizer.param_groups[0]["lr"])
    return seen


def torch_rates(make):
    reference = optimizer()
    scheduler = make(reference)
    seen = []
    for _ in range(STEPS):
        seen.append(reference.param_groups[0]["lr"])
        reference.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        ({"name": "cosine"}, lambda o: CosineAnnealingLR(o, STEPS)),
        ({"name": "cosine", "min_factor": 0.2}, lambda o: CosineAnnealingLR(o, STEPS, eta_min=0.1)),
        ({"name": "linear"}, lambda o: LinearLR(o, 1.0, 0.0, STEPS)),
        ({"name": "linear", "min_factor": 0.2}, lambda o: LinearLR(o, 1.0, 0.2, STEPS)),
        ({"name": "step", "gamma": 0.3}, lambda o: MultiStepLR(o, [20, 30], gamma=0.3)),
        # torch reaches the end with the last step, not after it: hence its 41 steps
        (
            {"name": "one_cycle", "peak": 0.275},
            lambda o: OneCycleLR(o, 0.5, STEPS + 1, pct_start=12 / 41, cycle_momentum=False),
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "torch",
)
def test_agrees_with_torch(config, reference):
    assert rates(Schedule(optimizer(), factor(**config))) == pytest.approx(torch_rates(reference), abs=1e-12)


def test_constant_and_wsd():
    assert rates(Schedule(optimizer(), factor(name="constant"))) == [0.5] * STEPS
    decaying = rates(Schedule(optimizer(), factor(name="wsd", decay=0.25, min_factor=0.2)))
    assert decaying[:31] == [0.5] * 31
    assert decaying[35] == pytest.approx(0.3)
    assert factor(name="wsd", min_factor=0.2)(1.0) == pytest.approx(0.2)


def test_warmup_in_steps_then_the_whole_schedule_in_what_is_left():
    seen = rates(Schedule(optimizer(), factor(name="linear"), warmup=8))
    assert seen[:8] == pytest.approx([0.5 * (i + 1) / 8 for i in range(8)])
    assert seen[8:] == pytest.approx([0.5 * (1 - i / 32) for i in range(32)])


def test_warmup_as_a_fraction_of_the_budget():
    seen = rates(Schedule(optimizer(), factor(name="linear"), warmup=0.25))
    assert seen[:10] == pytest.approx([0.5 * i / 10 for i in range(10)])
    assert seen[10:] == pytest.approx([0.5 * (1 - i / 30) for i in range(30)])


@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0, 40.0, 100.0])
@pytest.mark.parametrize("name", SCHEDULES.names())
def test_stays_within_the_base_rate_whatever_the_warmup(name, warmup):
    schedule = Schedule(optimizer(), factor(name=name), warmup)
    assert all(0 <= rate <= 0.5 for rate in rates(schedule))
    schedule.update(1.0, STEPS)  # the budget spent exactly
    assert 0 <= schedule.optimizer.param_groups[0]["lr"] <= 0.5


def test_resumes_from_the_base_rates():
    uninterrupted = rates(Schedule(optimizer(), factor(name="cosine"), warmup=5))
    schedule = Schedule(optimizer(), factor(name="cosine"), warmup=5)
    schedule.update(0.5, 20)
    changed = optimizer(schedule.optimizer.param_groups[0]["lr"])  # as loaded: the rate of the moment
    resumed = Schedule(changed, factor(name="cosine"), warmup=5)
    resumed.load_state_dict(schedule.state_dict())
    assert rates(resumed) == uninterrupted


def test_a_rate_that_is_a_tensor_is_changed_in_place():
    lr = torch.tensor(0.5)
    schedule = Schedule(SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr), factor(name="linear"))
    schedule.update(0.5, 20)
    assert lr == 0.25
    assert schedule.optimizer.param_groups[0]["lr"] is lr


def test_each_group_keeps_its_own_base_rate():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.1)]
    schedule = Schedule(SGD(groups), factor(name="linear"))
    schedule.update(0.25, 10)
    assert [group["lr"] for group in schedule.optimizer.param_groups] == [0.75, pytest.approx(0.075)]
