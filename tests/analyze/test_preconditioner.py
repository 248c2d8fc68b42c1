"""F̃ against its definition, Adam's second moment against torch's Adam, histograms against counting."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.analyze.test_command import trained
from trainer.analyze import __main__ as command
from trainer.analyze.preconditioner import adam_second_moment, histogram, own_second_moment, statistics
from trainer.checkpoint import storage
from trainer.checkpoint.reading import read_verified
from trainer.optim import AdaFisher


@pytest.mark.parametrize("rule", ["calibrated", "paper", "released"])
def test_the_preconditioner_is_what_a_step_divides_by(rule: str) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).double()
    optimizer = AdaFisher(
        model, rule=rule, lr=1e-3, momentum=0.0, weight_decay=0.0, decoupled=True, update_interval=1
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.randn(8, 2, 4, 4, dtype=torch.float64)).square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step()
    for name, parameter in model.named_parameters():
        F = optimizer.preconditioner(parameter)
        assert F.shape == parameter.shape
        u = gradients[name] / F
        step = 0.2 * u / u.square().mean().sqrt() if rule == "calibrated" else u
        torch.testing.assert_close(parameter.detach(), before[name] - 1e-3 * step)


def test_second_moment_is_that_of_adam() -> None:
    weight = nn.Parameter(torch.zeros(5))
    adam = torch.optim.Adam([weight], lr=0.0, betas=(0.9, 0.99))
    gradients = [torch.randn(5) for _ in range(7)]
    for gradient in gradients:
        weight.grad = gradient.clone()
        adam.step()
    v = adam_second_moment([{"w": g} for g in gradients], beta=0.99)["w"]
    torch.testing.assert_close(v, adam.state[weight]["exp_avg_sq"] / (1 - 0.99**7))
    torch.testing.assert_close(v, own_second_moment(adam, weight))


def test_two_runs_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["adafisher_paper", "adamw"]
    runs = [str(trained(tmp_path / name, "experiment=iris_mlp", f"optimizer={name}")) for name in names]
    capsys.readouterr()
    assert command.main([*runs, "--what", "preconditioner", "--layers", "[47]", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert Path(found["figures"][0]).stat().st_size > 1000
    rows = found["preconditioner"]
    assert [(row["run"], row["of"], row["layer"]) for row in rows] == [
        (name, of, layer)
        for name, of in zip(names, ("adafisher", "adam"), strict=True)
        for layer in ("4", "7")
    ]
    content = read_verified(storage.list_checkpoints(Path(runs[1]) / "checkpoints")[0])
    state = content["optimizer"]["state"]["7.weight"]
    assert rows[-1]["max"][-1] == pytest.approx(state["exp_avg_sq"].max().item() / (1 - 0.999**6))


def test_histogram_counts_decades_and_leaves_out_zeros() -> None:
    found = histogram(torch.tensor([0.0, 0.01, 0.01, 1.0]))
    assert found.share.sum().item() == pytest.approx(0.75)
    assert found.share[0].item() == 0.5
    assert found.log10[[0, -1]].tolist() == pytest.approx([-2, 0], abs=1e-2)
    assert histogram(torch.zeros(4)).share.sum() == 0


def test_statistics() -> None:
    found = statistics(torch.arange(101.0).flip(0))
    assert found == {"min": 0, "percentile_5": 5, "median": 50, "percentile_95": 95, "max": 100, "mean": 50}
