"""What layers see counts only if it belongs to the gradients that ``step`` takes, and is finite."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.func import functional_call, grad, vmap

from tests.optim.adafisher.small import Net, backward, batch, everything, same, train
from trainer.optim.adafisher import AdaFisher

# Zero rows


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 3), (0, 4)),
        (nn.Conv2d(2, 3, 3), (0, 2, 5, 5)),
        (nn.Conv2d(2, 3, 1), (0, 2, 5, 5)),
        (nn.ConvTranspose2d(2, 3, 2), (0, 2, 5, 5)),
        (nn.LayerNorm(4), (0, 4)),
        (nn.GroupNorm(1, 2), (0, 2, 4)),
        (nn.BatchNorm2d(2), (0, 2, 4, 4)),
        (nn.Embedding(5, 4), (0,)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_layers_without_rows(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """As an expert without tokens has, beside layers with rows."""
    model = nn.ModuleList([copy.deepcopy(layer), nn.Linear(5, 3)])
    optimizer = AdaFisher(model, update_interval=1)
    before = everything(model, optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        x = torch.zeros(shape, dtype=torch.long if isinstance(layer, nn.Embedding) else torch.float32)
        (model[0](x).sum() + model[1](torch.randn(6, 5)).square().sum()).backward()
        optimizer.step()
    after = everything(model, optimizer)
    assert all(value.isfinite().all() for value in after.values())
    assert torch.equal(before["0.weight H"], after["0.weight H"])
    assert not torch.equal(before["1.weight"], after["1.weight"])


# Backward passes that are dropped


def discarded(model: nn.Module, how: str) -> None:
    """A backward pass that is not finite, or of another loss, whose gradients are dropped without the optimizer."""
    x, y = batch(100)
    loss = nn.functional.cross_entropy(model(x), y)
    (loss * (float("nan") if "nan" in how else 1e3)).backward()
    for p in model.parameters():
        if "None" in how:
            p.grad = None
        elif "zero_" in how:
            p.grad.zero_()  # type: ignore[union-attr]


@pytest.mark.parametrize("how", ["None", "None of nan", "zero_", "zero_ of nan"])
def test_discarded_gradients_leave_nothing_behind(how: str) -> None:
    """``model.zero_grad()``, ``p.grad = None`` and zeroed gradients, as when a step is skipped."""
    plain, busy = Net(), Net()
    a, b = AdaFisher(plain, update_interval=1), AdaFisher(busy, update_interval=1)
    for step in range(3):
        plain.zero_grad()
        backward(plain, step)
        a.step()
        busy.zero_grad(set_to_none="None" in how)
        discarded(busy, how)
        backward(busy, step)
        b.step()
    same(everything(plain, a), everything(busy, b))


def test_gradients_made_finite_leave_the_factors_alone() -> None:
    model = Net()
    optimizer = AdaFisher(model, update_interval=1)
    train(model, optimizer, range(2))
    before = everything(model, optimizer)
    optimizer.zero_grad()
    x, y = batch(2)
    x[0, 0] = float("inf")
    nn.functional.cross_entropy(model(x), y).backward()
    for p in model.parameters():
        p.grad.nan_to_num_(0.0, 0.0, 0.0)  # type: ignore[union-attr]
    optimizer.step()
    after = everything(model, optimizer)
    assert all(value.isfinite().all() for value in after.values())
    assert torch.equal(before["head.weight H"], after["head.weight H"])
    assert not torch.equal(before["head.weight"], after["head.weight"])  # by its momentum


@pytest.mark.parametrize("capture", ["hooks", "gradient"])
def test_a_first_step_that_is_not_finite(capture: Any) -> None:
    """Parameters whose gradients are finite stay so."""
    model = Net()
    optimizer = AdaFisher(model, capture=capture, update_interval=1)
    x, y = batch(0)
    x[0, 0] = float("nan")
    nn.functional.cross_entropy(model(x), y).backward()
    for p in model.parameters():
        p.grad.nan_to_num_(0.0)  # type: ignore[union-attr]
    optimizer.step()
    train(model, optimizer, range(1, 3))
    assert all(value.isfinite().all() for value in everything(model, optimizer).values())


# Backward passes that are not the loss's


def saliency(model: nn.Module) -> None:
    x = batch(50)[0].requires_grad_()
    torch.autograd.grad(model(x).sum() * 1e3, x)


def hessian_vector(model: nn.Module) -> None:
    params = [*model.parameters()]
    gradients = torch.autograd.grad(model(batch(50)[0]).square().sum(), params, create_graph=True)
    torch.autograd.grad(gradients, params, [torch.ones_like(g) for g in gradients])


def batched(model: nn.Module) -> None:
    x = batch(50, 2)[0].requires_grad_()
    torch.autograd.grad(model(x), x, torch.eye(6).view(6, 2, 3), is_grads_batched=True)


def vectorized_jacobian(model: nn.Module) -> None:
    jacobian(model, batch(50, 2)[0], vectorize=True)


def per_sample(model: nn.Module) -> None:
    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, params, (x,)).square().sum()

    params = {name: p.detach() for name, p in model.named_parameters()}
    vmap(grad(loss), (None, 0))(params, batch(50)[0])


def vector_jacobian(model: nn.Module) -> None:
    out, pull = torch.func.vjp(model, batch(50)[0])
    pull(torch.ones_like(out))


def in_eval(model: nn.Module) -> None:
    model.eval()
    with torch.inference_mode():
        model(batch(50)[0])
    model(batch(50)[0].requires_grad_())
    model.train()


OTHERS = [saliency, hessian_vector, batched, vectorized_jacobian, per_sample, vector_jacobian, in_eval]


@pytest.mark.parametrize("between", ["forward and step", "backward and step"])
@pytest.mark.parametrize("other", OTHERS, ids=lambda f: f.__name__)
def test_other_derivatives_do_not_count(other: Callable[[nn.Module], None], between: str) -> None:
    plain, busy = Net(), Net()
    a, b = AdaFisher(plain, update_interval=1), AdaFisher(busy, update_interval=1)
    for step in range(3):
        train(plain, a, range(step, step + 1))
        b.zero_grad()
        if between == "forward and step":
            other(busy)
        backward(busy, step)
        other(busy)
        b.step()
    same(everything(plain, a), everything(busy, b))


def test_a_gradient_penalty_counts_as_part_of_the_loss() -> None:
    """Its inner backward pass, of a sum over samples, does not: S would be that of another loss."""
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(5, 1, bias=False)).double()
    optimizer = AdaFisher(critic, update_interval=1)
    x = batch(0)[0].double().requires_grad_()
    out = critic(x)
    (inner,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    (out.mean() + 10 * (inner.norm(dim=1) - 1).square().mean()).backward()
    optimizer.step()
    # s of each sample is the derivative of its loss by its output, 1; the penalty's gradient does not depend on it
    torch.testing.assert_close(optimizer.state[critic[0].weight]["S"], torch.ones(1, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
def test_a_graph_of_the_gradient_is_a_gradient_still() -> None:
    """``loss.backward(create_graph=True)`` adds to the gradients that the optimizer takes."""
    plain, graph = Net(), Net()
    a, b = AdaFisher(plain), AdaFisher(graph)
    train(plain, a, range(1))
    x, y = batch(0)
    nn.functional.cross_entropy(graph(x), y).backward(create_graph=True)
    b.step()
    graph.zero_grad()
    same(everything(plain, a), everything(graph, b))


def test_a_generators_pass_through_the_discriminator_does_not_count() -> None:
    """As in DCGAN's tutorial: its gradients are dropped by the discriminator's ``zero_grad``."""

    def train_discriminator(with_generator: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        discriminator, generator = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)), nn.Linear(3, 4)
        own = AdaFisher(discriminator, update_interval=1)
        for step in range(3):
            torch.manual_seed(step)
            real, fake = torch.randn(5, 4), generator(torch.randn(5, 3))
            discriminator.zero_grad()
            nn.functional.softplus(-discriminator(real)).mean().backward()
            nn.functional.softplus(discriminator(fake.detach())).mean().backward()
            own.step()
            if with_generator:
                nn.functional.softplus(-discriminator(fake)).mean().backward()
        return everything(discriminator, own)

    same(train_discriminator(False), train_discriminator(True))


def test_micro_batches_add_up() -> None:
    """What must go on counting: gradients that are there when the next backward pass begins."""
    whole, parts = Net().double(), Net().double()
    a, b = AdaFisher(whole), AdaFisher(parts)
    x, y = batch(0)
    nn.functional.cross_entropy(whole(x.double()), y).backward()
    a.step()
    for part in range(4):
        inputs, targets = x.double().chunk(4)[part], y.chunk(4)[part]
        (nn.functional.cross_entropy(parts(inputs), targets) / 4).backward()
    b.step()
    expected, found = everything(whole, a), everything(parts, b)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value.double(), rtol=1e-9, atol=1e-12)


# Layers that are called in other ways


def test_replicas_count_as_their_layers() -> None:
    """As `nn.DataParallel` makes them on several devices: copies that share attributes, run by threads."""
    torch.manual_seed(0)
    single, parallel = Net().double(), Net().double()
    a, b = AdaFisher(single), AdaFisher(parallel)
    x, y = batch(0)
    nn.functional.cross_entropy(single(x.double()), y).backward()
    a.step()
    outputs = [
        replica(part) for replica, part in zip(replicas(parallel, 2), x.double().chunk(2), strict=True)
    ]
    nn.functional.cross_entropy(torch.cat(outputs), y).backward()
    b.step()
    assert {row.source for row in b.coverage()} == {"Linear", "LayerNorm"}
    expected, found = everything(single, a), everything(parallel, b)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value.double(), rtol=1e-9, atol=1e-12)


def replicas(model: Net, count: int) -> Iterator[nn.Module]:
    """What `torch.nn.parallel.replicate` does, on one device."""
    for _ in range(count):
        copies = {module: module._replicate_for_data_parallel() for module in model.modules()}
        for module, replica in copies.items():
            for name, child in module._modules.items():
                setattr(replica, name, copies[child])  # type: ignore[index]
            for name, param in module._parameters.items():
                setattr(replica, name, param * 1)  # type: ignore[operator]
        yield copies[model]


def test_hooks_of_the_user() -> None:
    """A layer's rows are those that its weight multiplies and makes, whatever hooks do before and after."""
    model = Net()
    optimizer = AdaFisher(model)
    model.first.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    model.head.register_forward_hook(lambda module, args, output: (3 * output, "more"))
    x, y = batch(0)
    out, more = model(x)
    nn.functional.cross_entropy(out, y).backward()
    expected = (
        3 * 8 * torch.autograd.grad(nn.functional.cross_entropy(o := out.detach().requires_grad_(), y), o)[0]
    )
    optimizer.step()
    assert more == "more"
    torch.testing.assert_close(optimizer.state[model.first.weight]["H"][:-1], (2 * x).square().mean(0))
    torch.testing.assert_close(optimizer.state[model.head.weight]["S"], expected.square().mean(0))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_patched_forward_is_not_the_layers(when: str) -> None:
    model = Net()

    def patch() -> None:
        weight = model.first.weight
        model.first.forward = lambda x: nn.functional.linear(x.abs(), weight)  # type: ignore[method-assign]

    if when == "before":
        patch()
    optimizer = AdaFisher(model)
    patch()
    train(model, optimizer, range(2))
    sources = {row.parameter: row.source for row in optimizer.coverage()}
    assert sources["first.weight"] == "gradient"
    assert sources["head.weight"] == "Linear"


def test_a_frozen_layer_does_no_work() -> None:
    model = Net()
    optimizer = AdaFisher(model)
    model.head.requires_grad_(False)
    backward(model, 0)
    assert model.head not in optimizer._capture.collect(1.0, per_sample=True)


# Factors that grow old


def test_training_in_eval_warns_once() -> None:
    model = Net()
    optimizer = AdaFisher(model, update_interval=2)
    train(model, optimizer, range(4))
    model.eval()
    with pytest.warns(UserWarning, match=r"such as first\.weight, keep .* call model\.train\(\)") as found:
        train(model, optimizer, range(4, 20))
    assert len(found) == 1


def test_a_head_put_in_later_warns_once() -> None:
    model = Net()
    optimizer = AdaFisher(model, update_interval=2)
    train(model, optimizer, range(2))
    model.head = nn.Linear(6, 3)
    with pytest.warns(UserWarning, match=r"2 .* head\.weight, were put into .*add_param_group") as found:
        train(model, optimizer, range(2, 42))
    assert len(found) == 1
    optimizer.add_param_group({"params": model.head.parameters()})
    before = model.head.weight.detach().clone()
    train(model, optimizer, range(42, 44))
    assert not torch.equal(before, model.head.weight)


@pytest.mark.filterwarnings("error")
def test_what_does_not_warn() -> None:
    """A layer that is skipped now and then, one that is frozen, another optimizer's parameters."""
    model = Net()
    optimizer = AdaFisher(model, [*model.first.parameters(), *model.norm.parameters()], update_interval=1)
    for step in range(6):
        model.norm.requires_grad_(step < 2)
        train(model, optimizer, range(step, step + 1))
