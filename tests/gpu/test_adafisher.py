"""AdaFisher on a GPU against itself on the CPU, which other tests check."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainer.models.gpt import GPT
from trainer.optim import AdaFisher
from trainer.optim.adafisher import mean_squares
from trainer.optim.adafisher.layers import layer_of

pytestmark = pytest.mark.gpu

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(7, 5), (9, 3, 7)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (9, 4, 11)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2), (9, 4, 8, 7)),
    "conv2d 1x1": (lambda: nn.Conv2d(4, 6, 1, bias=False), (9, 4, 8, 7)),
    "conv2d groups": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), groups=2), (9, 4, 8, 7)),
    "conv2d reflect": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (9, 4, 8, 7)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (5, 2, 4, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (9, 4, 5, 6)),
    "batch norm": (lambda: nn.BatchNorm2d(4), (9, 4, 8, 7)),
    "batch norm 1d": (lambda: nn.BatchNorm1d(4), (9, 4)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (9, 4, 8, 7)),
    "layer norm": (lambda: nn.LayerNorm(7), (9, 3, 7)),
    "rms norm": (lambda: nn.RMSNorm(7), (9, 3, 7)),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("large", [1, mean_squares._LARGE])
def test_factors(
    layer: str, dtype: torch.dtype, channels_last: bool, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mean_squares, "_LARGE", large)
    make, shape = LAYERS[layer]
    module, x = make(), torch.randn(shape)
    if channels_last and x.dim() == 4:
        module, x = module.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    here = layer_of(module)
    there = layer_of(copy.deepcopy(module).cuda())
    assert here
    assert there
    out = module(x)
    s = torch.randn_like(out).to(dtype)
    x = x.to(dtype)
    tolerance = {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-6}
    if dtype == torch.bfloat16 and layer in ("group norm", "layer norm", "rms norm"):
        tolerance = {"rtol": 1e-2, "atol": 1e-3}  # what is squared is rounded to bfloat16
    torch.testing.assert_close(there.H(x.cuda(), out.shape).cpu(), here.H(x, out.shape), **tolerance)
    torch.testing.assert_close(there.S(s.cuda()).cpu(), here.S(s), **tolerance)


def test_a_channel_that_is_constant_has_no_curvature() -> None:
    module, x = nn.BatchNorm2d(4), torch.randn(9, 4, 8, 7)
    x[:, 1] = 0
    here, there = layer_of(module), layer_of(copy.deepcopy(module).cuda())
    assert here
    assert there
    torch.testing.assert_close(there.H(x.cuda(), x.shape).cpu(), here.H(x, x.shape), rtol=1e-4, atol=1e-6)


def convnet() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(432, 50), nn.Tanh(), nn.Linear(50, 7))


def gpt() -> nn.Module:
    torch.manual_seed(0)
    return GPT(layers=2, width=32, heads=2, vocab_size=19, context_length=12)


def train(
    model: nn.Module, optimizer: AdaFisher, steps: int, start: int = 0, scaler: Any = None
) -> AdaFisher:
    param = next(model.parameters())
    for step in range(start, start + steps):
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(step)
        if isinstance(model, GPT):
            tokens = torch.randint(19, (4, 12), generator=generator).to(param.device)
            loss = cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        else:
            x = torch.randn(8, 3, 10, 10, generator=generator).to(param.device, param.dtype)
            loss = cross_entropy(model(x), torch.arange(8, device=param.device) % 7)
        (scaler.scale(loss) if scaler else loss).backward()
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
    return optimizer


def tensors(optimizer: AdaFisher) -> list[Tensor]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    states = [optimizer.state[p] for p in params]
    return [p.detach().cpu() for p in params] + [
        s[key].cpu() for s in states for key in ("exp_avg", "H", "S")
    ]


@pytest.mark.parametrize("make", [convnet, gpt])
@pytest.mark.parametrize(
    "options",
    [{}, {"rule": "calibrated"}, {"rule": "paper"}, {"rule": "released"}, {"capture": "gradient"}],
    ids=str,
)
def test_trains_as_on_the_cpu(make: Callable[[], nn.Module], options: dict[str, Any]) -> None:
    here, there = make().double(), make().double().cuda()
    ours = train(there, AdaFisher(there, update_interval=3, lr=1e-3, **options), 12)
    theirs = train(here, AdaFisher(here, update_interval=3, lr=1e-3, **options), 12)
    torch.testing.assert_close(tensors(ours), tensors(theirs), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("done", [0, 4])
def test_resumed_steps_are_bit_identical(dtype: torch.dtype, done: int) -> None:
    model = convnet().to("cuda", dtype)
    optimizer = train(model, AdaFisher(model, update_interval=3), done)
    other = copy.deepcopy(model)
    resumed = AdaFisher(other, update_interval=3)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    torch.use_deterministic_algorithms(True)
    try:
        train(model, optimizer, 20, done)
        train(other, resumed, 20, done)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(tensors(resumed), tensors(optimizer), rtol=0, atol=0)


def test_a_loss_scale_does_not_leak() -> None:
    plain, scaled = convnet().cuda(), convnet().cuda()
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10, growth_interval=2)
    a = train(plain, AdaFisher(plain, update_interval=2), 5)
    b = train(scaled, AdaFisher(scaled, update_interval=2), 5, scaler=scaler)
    assert scaler.get_scale() == 2**12
    torch.testing.assert_close(tensors(a), tensors(b), rtol=1e-3, atol=1e-5)


def test_a_step_waits_for_nothing() -> None:
    model = convnet().cuda()
    optimizer = AdaFisher(model, update_interval=10)  # a refresh reads whether its rows are finite
    train(model, optimizer, 4)
    x = torch.randn(8, 3, 10, 10, device="cuda")
    model(x).square().mean().backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
