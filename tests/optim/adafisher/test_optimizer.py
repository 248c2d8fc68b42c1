"""AdaFisher as an optimizer: the update of each rule, scales, what is counted, state, errors."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from trainer.optim import AdaFisher, AdaFisherW
from trainer.optim.adafisher import StateLayout, update_blocked


class WithForward(nn.Sequential):
    """Up to torch 2.12, ``Module.compile`` skips a module whose forward is torch's own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 8),
        nn.LayerNorm(8),
        nn.Linear(8, 3),
    )


def batch(seed: int = 0, size: int = 16, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 1, 6, 6, generator=generator).to(dtype)
    return x, torch.randint(3, (size,), generator=generator)


def train(
    model: nn.Module, optimizer: AdaFisher, steps: int, start: int = 0, set_to_none: bool = True
) -> None:
    dtype = next(model.parameters()).dtype
    for step in range(start, start + steps):
        optimizer.zero_grad(set_to_none)
        x, y = batch(step, dtype=dtype)
        cross_entropy(model(x).float(), y).backward()
        optimizer.step()


def tensors(optimizer: AdaFisher) -> list[Tensor]:
    """Parameters and all of their state."""
    result = []
    for param, state in optimizer.state.items():
        result += [param.detach(), *(torch.as_tensor(value) for value in state.values())]
    return result


def same(a: AdaFisher, b: AdaFisher) -> None:
    torch.testing.assert_close(tensors(a), tensors(b), rtol=0, atol=0)


# The update of each rule


def product(optimizer: AdaFisher, param: Tensor, key: str) -> Tensor:
    """The matrix S H' of a Linear's weight or bias from the optimizer's state, by each rule's definition."""
    H, S = optimizer.state[param]["H"].clone(), optimizer.state[param]["S"].clone()
    if optimizer.rule == "paper":
        H, S = ((v - v.min()) / (v.max() - v.min()) for v in (H, S))
    if optimizer.rule == "calibrated":
        H, S = H / H.mean(), S / S.mean()
    full = torch.outer(S, H)
    return full[:, :-1] if key == "weight" else full[:, -1]


@pytest.mark.parametrize(
    ("rule", "decoupled"),
    [("calibrated", True), ("paper", True), ("paper", False), ("released", True), ("released", False)],
)
def test_update(rule: Any, decoupled: bool) -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 4).double()
    lr, beta, damping, decay = 0.01, 0.9, 0.05, 0.1
    optimizer = AdaFisher(
        model, rule=rule, lr=lr, damping=damping, weight_decay=decay, update_interval=2, decoupled=decoupled
    )
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    momentum = {name: torch.zeros_like(p) for name, p in expected.items()}
    for step in range(1, 6):
        x, target = torch.randn(2, 7, 5, dtype=torch.float64), torch.randn(2, 7, 4, dtype=torch.float64)
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
        for name, p in model.named_parameters():
            g = grads[name] if decoupled else grads[name] + decay * expected[name]
            m = momentum[name] = beta * momentum[name] + (1 - beta) * g
            F = product(optimizer, p, name) + damping
            if rule == "calibrated":
                u = (beta * m + (1 - beta) * g) / F
                u = 0.2 * u / u.square().mean().sqrt()
            else:
                u = m / (1 - beta**step) / F
            shrink = 1 - lr * decay if decoupled else 1
            expected[name] = shrink * expected[name] - lr * u
            torch.testing.assert_close(p.detach(), expected[name])


@pytest.mark.parametrize("rule", ["calibrated", "paper"])
def test_averages_are_corrected_for_their_start(rule: Any) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    optimizer = AdaFisher(model, rule=rule, gamma=0.7, update_interval=1)
    weights, fresh = [], []
    for step in range(1, 5):
        x = torch.randn(6, 3, dtype=torch.float64)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        fresh.append(x.square().mean(0))
        weights = [0.7 * w for w in weights] + [0.3]
        mean = sum(w * h for w, h in zip(weights, fresh, strict=True)) / (1 - 0.7**step)
        torch.testing.assert_close(optimizer.state[model.weight]["H"][:-1], mean)


def test_paper_normalizes_a_nearly_constant_factor_to_ones() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = AdaFisher(model, rule="paper")
    model(torch.randn(32, 4)).square().mean().backward()
    optimizer.step()
    S = optimizer.state[model[0].weight]["S"]
    expected = (S - S.min()) / (S.max() - S.min()) + 1e-3  # with H' = 1
    torch.testing.assert_close(optimizer.preconditioner(model[0].weight), expected)


def test_tied_weight_adds_the_products_of_its_uses() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)).double()
    model[1].weight = model[0].weight
    optimizer = AdaFisher(model, rule="calibrated", damping=0.1, update_interval=1)
    cross_entropy(model(torch.randint(7, (6, 5))).flatten(0, 1), torch.randint(7, (30,))).backward()
    optimizer.step()
    state = optimizer.state[model[0].weight]
    total = torch.outer(state["H"], state["S"]) + torch.outer(state["S_1"], state["H_1"])
    assert [row[:2] for row in optimizer.coverage()] == [("0.weight", "Embedding + Linear")]
    torch.testing.assert_close(optimizer.preconditioner(model[0].weight), total / total.mean() + 0.1)


@pytest.mark.compile
@pytest.mark.parametrize("rule", ["calibrated", "orthogonal", "paper", "released"])
def test_compiled_update_is_the_eager_one(rule: Any) -> None:
    eager, whole = network(), network()
    a = AdaFisher(eager, rule=rule, update_interval=2)
    b = AdaFisher(whole, rule=rule, update_interval=2, fused="compile")
    for step in range(5):
        for optimizer in (a, b):
            rates = {"lr": 1e-3 * (step + 1), "momentum": 0.9 - 0.1 * step, "weight_decay": 0.02 * step}
            optimizer.param_groups[0].update(rates)
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        train(eager, a, 1, step)
        train(whole, b, 1, step)
        compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
        assert step < 1 or compiled == 0
    torch.testing.assert_close(tensors(a), tensors(b), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["calibrated", "orthogonal", "paper"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_blocks_do_not_show(rule: Any, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = network().double(), network().double()
    if layout == "channels_last":
        whole, cut = (m.to(memory_format=torch.channels_last) for m in (whole, cut))
    a, b = (AdaFisher(model, rule=rule) for model in (whole, cut))
    train(whole, a, 3)
    monkeypatch.setattr(update_blocked, "_SMALL", 0)
    monkeypatch.setattr(update_blocked, "_BLOCK", 10)
    train(cut, b, 3)
    torch.testing.assert_close(tensors(a), tensors(b))


# Scale does not leak


def averages(optimizer: AdaFisher) -> list[Tensor]:
    return [value for state in optimizer.state.values() for key, value in state.items() if key[0] in "HS"]


def accumulate(scaler: torch.amp.GradScaler | None, unscale: bool, parts: int, steps: int = 4) -> AdaFisher:
    model = network()
    optimizer = AdaFisher(model, update_interval=1)
    optimizer.grad_scaler = scaler
    for step in range(steps):
        if scaler is not None and step == steps // 2:
            scaler.update(2.0**5)
        optimizer.zero_grad()
        x, y = batch(step, 64)
        for part in zip(x.chunk(parts), y.chunk(parts), strict=True):
            loss = cross_entropy(model(part[0]), part[1]) / parts
            (scaler.scale(loss) if scaler else loss).backward()
        if scaler is None:
            optimizer.step()
            continue
        if unscale:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        scaler.step(optimizer)
        scaler.update()
    return optimizer


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("scaled", ["no", "step", "unscale_"])
def test_scale_does_not_leak(parts: int, scaled: str) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10) if scaled != "no" else None
    expected, actual = accumulate(None, False, 1), accumulate(scaler, scaled == "unscale_", parts)
    torch.testing.assert_close(averages(actual), averages(expected), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("rule", ["calibrated", "orthogonal"])
def test_overflow_changes_nothing(rule: Any) -> None:
    model = network()
    optimizer = AdaFisher(model, rule=rule, update_interval=1)
    train(model, optimizer, 2)
    before = [t.clone() for t in tensors(optimizer)]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer.zero_grad()
    x, y = batch(2)
    scaler.scale(cross_entropy(model(x), y) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(tensors(optimizer), before, rtol=0, atol=0)
    assert optimizer.needs_refresh
    train(model, optimizer, 1, 3)
    assert all(t.isfinite().all() for t in tensors(optimizer))


# What is counted


def test_forwards_that_do_not_count() -> None:
    plain, busy = network(), network()
    a, b = AdaFisher(plain, update_interval=1), AdaFisher(busy, update_interval=1)
    for step in range(3):
        train(plain, a, 1, step)
        b.zero_grad()
        x, y = batch(100)
        cross_entropy(busy(x), y).backward()  # dropped by zero_grad
        b.zero_grad()
        with torch.no_grad():
            busy(x)
        with torch.inference_mode():
            busy(x)
        busy.eval()
        busy(x).sum().backward()
        busy.train()
        for p in busy.parameters():
            p.grad = None
        busy(x)  # no backward
        x, y = batch(step)
        cross_entropy(busy(x), y).backward()
        b.step()
    same(a, b)


def test_checkpointing_counts_once() -> None:
    plain, recomputed = network(), network()
    a, b = AdaFisher(plain, update_interval=1), AdaFisher(recomputed, update_interval=1)
    for step in range(3):
        train(plain, a, 1, step)
        b.zero_grad()
        x, y = batch(step)
        hidden = recomputed[:2](x)
        cross_entropy(checkpoint(recomputed[2:], hidden, use_reentrant=False), y).backward()
        b.step()
    same(a, b)


def test_reentrant_checkpointing_is_an_error() -> None:
    model = network()
    optimizer = AdaFisher(model)
    assert optimizer.needs_refresh
    x, y = batch()
    loss = cross_entropy(checkpoint(model[1:], model[:1](x), use_reentrant=True), y)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        loss.backward()


def test_a_layer_called_twice_counts_twice() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    optimizer = AdaFisher(layer)
    x = torch.randn(8, 4)
    hidden = layer(x)
    layer(hidden).square().mean().backward()
    optimizer.step()
    rows = torch.cat([x, hidden]).detach()
    torch.testing.assert_close(optimizer.state[layer.weight]["H"][:-1], rows.square().mean(0))


# State


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rule", ["calibrated", "orthogonal", "paper", "released"])
@pytest.mark.parametrize("done", [0, 4])
def test_resumed_steps_are_bit_identical(rule: Any, dtype: torch.dtype, done: int) -> None:
    model, other = network().to(dtype), network().to(dtype)
    a = AdaFisher(model, rule=rule, lr=1e-3, update_interval=3)
    train(model, a, done)
    file = io.BytesIO()
    torch.save((model.state_dict(), a.state_dict()), file)
    file.seek(0)
    b = AdaFisher(other, rule=rule, update_interval=3)
    saved_model, saved = torch.load(file, weights_only=True)
    other.load_state_dict(saved_model)
    b.load_state_dict(saved)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert {factor.dtype for factor in averages(b)} == {expected}
    steps = 50 if rule == "calibrated" else 8
    train(model, a, steps, done)
    train(other, b, steps, done)
    same(a, b)


class Scaled(nn.Module):
    """With a parameter of no layer before those of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(36))
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.scale * x.flatten(1))


@pytest.mark.parametrize("done", [1, 2, 3])
def test_resumed_steps_with_factors_of_gradients(done: int) -> None:
    """Between refreshes factors are normalized in the order of parameters, at a refresh those of layers come first."""
    model, other = Scaled(), Scaled()
    a, b = AdaFisher(model, update_interval=3), AdaFisher(other, update_interval=3)
    train(model, a, done)
    other.load_state_dict(model.state_dict())
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    train(model, a, 8, done)
    train(other, b, 8, done)
    same(a, b)


def pickled(optimizer: AdaFisher) -> AdaFisher:
    return pickle.loads(pickle.dumps(optimizer))


@pytest.mark.parametrize("clone", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("done", [0, 2, 3])
@pytest.mark.parametrize(
    "options",
    [{"rule": "calibrated"}, {"rule": "orthogonal", "roles": {"*.weight": 3}}],
    ids=["calibrated", "orthogonal"],
)
def test_copies_continue_as_the_original(
    clone: Callable[[AdaFisher], AdaFisher], done: int, options: dict[str, Any]
) -> None:
    model = network()
    a = AdaFisher(model, update_interval=3, **options)
    train(model, a, done)
    b = clone(a)
    train(model, a, 5, done)
    train(b.model, b, 5, done)
    same(a, b)


def test_a_copied_model_is_not_watched() -> None:
    model = network()
    optimizer = AdaFisher(model)
    average = copy.deepcopy(model)
    average(batch()[0]).sum().backward()
    assert not optimizer._capture.collect(1.0, True)


def test_zeroed_gradients_are_no_gradients() -> None:
    a_model, b_model = network(), network()
    a, b = AdaFisher(a_model, update_interval=2), AdaFisher(b_model, update_interval=2)
    train(a_model, a, 5)
    train(b_model, b, 5, set_to_none=False)
    same(a, b)


def test_state_dict_holds_only_what_checkpoints_can() -> None:
    model = network()
    optimizer = AdaFisher(model)
    for state in optimizer.state_dict()["state"].values():
        assert all(isinstance(value, Tensor | int | float) for value in state.values())
    for group in optimizer.state_dict()["param_groups"]:
        assert all(
            isinstance(group[key], int | float)
            for key in ("lr", "momentum", "damping", "gamma", "weight_decay")
        )


# Groups, closures, compile, gradient capture


@pytest.mark.parametrize("rule", ["calibrated", "orthogonal"])
def test_groups_have_their_own_options(rule: Any) -> None:
    model = network()
    still = [p.detach().clone() for p in model[0].parameters()]
    head = [*model[6].parameters(), *model[7].parameters(), *model[8].parameters()]
    optimizer = AdaFisher(
        model,
        [{"params": model[0].parameters(), "lr": 0.0}, {"params": head, "damping": 1.0, "weight_decay": 0.5}],
        rule=rule,
    )
    optimizer.add_param_group({"params": model[3].parameters(), "lr": 1e-4})
    before = [p.detach().clone() for p in (*head, *model[3].parameters())]
    train(model, optimizer, 1)
    assert all(torch.equal(a, b) for a, b in zip(still, model[0].parameters(), strict=True))
    moved = (*head, *model[3].parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, moved, strict=True))
    assert [group["damping"] for group in optimizer.param_groups] == [0.01, 1.0, 0.01]


def test_a_group_added_between_refreshes_moves_at_once() -> None:
    model = network()
    optimizer = AdaFisher(model, model[8].parameters(), update_interval=4)
    train(model, optimizer, 2)
    optimizer.add_param_group({"params": model[6].parameters()})
    before = model[6].weight.detach().clone()
    train(model, optimizer, 1, 2)
    assert not torch.equal(before, model[6].weight)
    train(model, optimizer, 2, 3)
    assert dict(row[:2] for row in optimizer.coverage())["6.weight"] == "Linear"
    assert optimizer.state[model[6].weight]["refreshes"] == 1


def test_closure_and_hooks_of_torch() -> None:
    model = network()
    optimizer = AdaFisher(model)
    calls = []
    optimizer.register_step_post_hook(lambda *args: calls.append("post"))
    x, y = batch()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss

    assert optimizer.step(closure) > optimizer.step(closure)
    assert calls == ["post", "post"]


@pytest.mark.compile
@pytest.mark.parametrize("method", ["wrapper", "in_place"])
def test_compiled_model_is_captured_without_knowing(method: str) -> None:
    eager, model = network(), WithForward(*network())
    a, b = AdaFisher(eager, update_interval=3), AdaFisher(model, update_interval=3)
    if method == "in_place":
        model.compile(fullgraph=True, backend="aot_eager")
    forward = torch.compile(model, fullgraph=True, backend="aot_eager") if method == "wrapper" else model
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    for step in range(8):
        train(eager, a, 1, step)
        b.zero_grad()
        x, y = batch(step)
        cross_entropy(forward(x), y).backward()
        b.step()
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    torch.testing.assert_close(tensors(a), tensors(b), rtol=1e-4, atol=1e-5)
    b._capture.detach()


@pytest.mark.compile
def test_gradient_capture_needs_no_hooks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    optimizer = AdaFisher(model, capture="gradient")
    assert not any(module._forward_hooks for module in model.modules())
    x, y = torch.randn(9, 5, dtype=torch.float64), torch.randint(3, (9,))
    forward = torch.compile(model, fullgraph=True, backend="aot_eager")
    cross_entropy(forward(x), y).backward()
    square = model[0].weight.grad.square()
    optimizer.step()
    state = optimizer.state[model[0].weight]
    torch.testing.assert_close(state["S"], square.mean(1))
    torch.testing.assert_close(state["H"], square.mean(0) / square.mean())
    torch.testing.assert_close(optimizer.state[model[0].bias]["H"], torch.ones(1, dtype=torch.float64))
    assert {row.source for row in optimizer.coverage()} == {"gradient"}


def test_diagnostics() -> None:
    model = network()
    optimizer = AdaFisher(model, rule="released", update_interval=2)
    train(model, optimizer, 6)
    rows = optimizer.diagnostics()
    assert rows.keys() == {name for name, _ in model.named_parameters()}
    weight = rows["6.weight"]
    assert 0 < weight["share"] < 0.11
    assert (
        1e-3
        <= weight["preconditioner_min"]
        <= weight["preconditioner_median"]
        <= weight["preconditioner_max"]
    )
    assert weight["age"] == 1
    before = model[6].weight.detach().clone()
    optimizer.param_groups[0]["weight_decay"] = 0.0
    train(model, optimizer, 1, 6)
    ratio = (model[6].weight - before).norm() / model[6].weight.norm()
    assert optimizer.diagnostics()["6.weight"]["update_ratio"] == pytest.approx(ratio.item(), rel=1e-3)


def test_share_is_that_of_the_curvature_in_the_preconditioner() -> None:
    model = network()
    optimizer = AdaFisher(model, rule="calibrated", damping=0.01)
    train(model, optimizer, 1)
    rows = optimizer.diagnostics()
    for name, param in model.named_parameters():
        share = 1 - 0.01 / optimizer.preconditioner(param).mean().item()
        assert rows[name]["share"] == pytest.approx(share, rel=1e-5), name
    # with a bias, the curvature of weight and bias together has mean one
    assert rows["0.weight"]["share"] == pytest.approx(1 / 1.01, rel=1e-5)


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "papr"}, "Invalid rule: 'papr'"),
        ({"rule": "calibrated", "roles": {"*": 64}}, "roles under rule='orthogonal' only"),
        (
            {"rule": "orthogonal", "roles": {"0.*": "flat"}},
            r"Invalid roles\['0.\*'\]: 'flat', must be a number",
        ),
        (
            {"rule": "orthogonal", "roles": {"*": 0}},
            r"Invalid roles\['\*'\]: 0, must be a number of rows >= 1",
        ),
        ({"rule": "orthogonal", "roles": {"tail*": 64}}, "no parameter of the model is named 'tail\\*'"),
        ({"update_interval": 0}, "Invalid update_interval: 0"),
        ({"lr": -1.0}, "Invalid lr: -1.0"),
        ({"momentum": 1.0}, "Invalid momentum: 1.0"),
        ({"lr": "1e-3"}, "^Invalid lr: '1e-3', must be a number >= 0$"),
        ({"update_interval": 2.5}, "^Invalid update_interval: 2.5, must be an integer >= 1$"),
        ({"gamma": -0.1}, "Invalid gamma"),
        ({"damping": 0.0}, "Invalid damping: 0.0"),
        ({"weight_decay": -1.0}, "Invalid weight_decay"),
        ({"capture": "magic"}, "Invalid capture"),
        ({"fused": "triton"}, "Invalid fused"),
        ({"decoupled": False}, "always decouples"),
    ],
)
def test_invalid_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaFisher(network(), **options)


def test_errors_about_the_model() -> None:
    model = network()
    with pytest.raises(TypeError, match="first argument is the model"):
        AdaFisher(model.parameters())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the model that owns the parameters"):
        AdaFisher(model, network().parameters())
    with pytest.raises(ValueError, match="more than one parameter group"):
        AdaFisher(model, [{"params": model.parameters()}, {"params": model[0].parameters()}])
    lazy = nn.LazyLinear(3)
    with pytest.raises(ValueError, match="run the model once"):
        AdaFisher(lazy)


def test_nothing_captured_is_an_error() -> None:
    model = network()
    x, y = batch()
    loss = cross_entropy(model(x), y)
    optimizer = AdaFisher(model)  # too late for that forward
    loss.backward()
    with pytest.raises(RuntimeError, match="has captured no layer"):
        optimizer.step()


def test_adafisherw_is_decoupled() -> None:
    assert AdaFisherW(network(), rule="paper").decoupled
    assert not AdaFisher(network(), rule="paper").decoupled


def test_state_layout() -> None:
    model = network()
    model.add_module("embedding", nn.Embedding(5, 4))
    model.add_module("scalar", nn.ParameterList([torch.tensor(1.0)]))
    optimizer = AdaFisher(model)
    factor, sharded_factor = StateLayout(True, False), StateLayout(True, True)
    own = {"step": StateLayout(False, False), "exp_avg": StateLayout(False, True)}
    for param, state in optimizer.state.items():
        tensors = {key for key, value in state.items() if isinstance(value, Tensor)}
        assert optimizer.state_layout(param).keys() == tensors
    assert optimizer.state_layout(model[3].weight) == {**own, "H": factor, "S": sharded_factor}
    assert optimizer.state_layout(model.embedding.weight) == {**own, "H": factor, "S": factor}
    scalar = {**own, "exp_avg": StateLayout(False, False), "H": factor, "S": factor}
    assert optimizer.state_layout(model.scalar[0]) == scalar
