"""``rule="released"`` against trajectories of the authors' optimizer, in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainer.optim.adafisher import AdaFisher, AdaFisherW

GOLDEN = Path(__file__).parent / "golden"
STEPS = 12


class Mean(nn.Module):
    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.axes)


def network(name: str) -> nn.Sequential:
    layers: dict[str, list[nn.Module]] = {
        "mlp": [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5, bias=False), nn.Tanh(), nn.Linear(5, 3)],
        "cnn": [
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            Mean(2, 3),
            nn.Linear(6, 3),
        ],
        "grouped": [
            nn.Conv2d(4, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=4),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 6, (1, 3), stride=(1, 2), padding=(0, 1)),
            Mean(2, 3),
            nn.Linear(6, 3),
        ],
        "tokens": [
            nn.Linear(6, 8),
            nn.LayerNorm(8),
            nn.GELU(),
            nn.Linear(8, 8),
            nn.LayerNorm(8),
            Mean(1),
            nn.Linear(8, 3),
        ],
    }
    return nn.Sequential(*layers[name]).double()


def close(actual: Tensor, expected: Any) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("decoupled", [False, True], ids=["adafisher", "adafisherw"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "grouped", "tokens"])
def test_trajectory(name: str, decoupled: bool) -> None:
    golden = np.load(GOLDEN / f"{name}_adafisher{'w' if decoupled else ''}.npz")
    model = network(name)
    init = {
        key.removeprefix("init/"): torch.as_tensor(golden[key]) for key in golden if key.startswith("init/")
    }
    model.load_state_dict(init)
    options: dict[str, Any] = {
        "lr": 1e-3,
        "momentum": 0.9,
        "gamma": 0.8,
        "update_interval": 3,
        "rule": "released",
    }
    if decoupled:
        optimizer: AdaFisher = AdaFisherW(model, damping=3e-3, weight_decay=1e-2, **options)
    else:
        optimizer = AdaFisher(model, damping=1e-3, weight_decay=5e-4, **options)

    for t in range(STEPS):
        optimizer.zero_grad()
        x, y = (torch.as_tensor(golden[f"batch/{t}/{key}"]) for key in "xy")
        loss = cross_entropy(model(x), y)
        close(loss.detach(), golden[f"loss/{t}"])
        loss.backward()
        optimizer.step()
        for key, param in model.named_parameters():
            close(param.detach(), golden[f"param/{t}/{key}"])
        for key in (key for key in golden if key.startswith((f"H/{t}/", f"S/{t}/"))):
            factor, _, layer = key.split("/")
            close(optimizer.state[model[int(layer)].weight][factor], golden[key])
