"""AdaFisher touches its model's forward and backward in steps that refresh, and nothing else in the process."""

import copy
import gc
import io
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.optim.adafisher.small import Net, backward, batch, everything, same, train
from trainer.optim.adafisher import AdaFisher

compiles = pytest.mark.compile


class Counter:
    """Counts the calls of compiled graphs. ``counter(model)`` compiles a model."""

    def __init__(self) -> None:
        self.calls = 0
        self.graphs = 0

    def backend(self, graph: Any, example: Any) -> Callable[..., Any]:
        self.graphs += 1

        def call(*args: Any) -> Any:
            self.calls += 1
            return graph(*args)

        return call

    def __call__(self, target: Any) -> Any:
        return torch.compile(target, backend=self.backend, fullgraph=True)

    def taken(self) -> int:
        """How many calls there were since it was last asked."""
        calls, self.calls = self.calls, 0
        return calls


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    gc.collect()  # optimizers of other tests, whose models are in training mode still
    torch._dynamo.reset()
    yield
    assert stance() == "default"
    torch._dynamo.reset()


def stance() -> str:
    from torch._dynamo import eval_frame

    return eval_frame._stance.stance


class Layers(nn.Sequential):
    """A model whose class is torch's own: the compiler wraps it in another way."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def wrapped(model: nn.Module, counter: Counter) -> Callable[[Tensor], Tensor]:
    return counter(model)


def in_place(model: nn.Module, counter: Counter) -> Callable[[Tensor], Tensor]:
    model.compile(backend=counter.backend, fullgraph=True)
    return model


def as_function(model: nn.Module, counter: Counter) -> Callable[[Tensor], Tensor]:
    return counter(lambda x: model(x))


def inside(model: nn.Module, counter: Counter) -> Callable[[Tensor], Tensor]:
    return counter(nn.Sequential(nn.Identity(), model))


@compiles
@pytest.mark.parametrize("model_of", [Net, Layers])
@pytest.mark.parametrize("compiled", [wrapped, in_place, as_function, inside])
def test_only_the_forward_of_a_refresh_is_eager(
    compiled: Callable[[nn.Module, Counter], Callable[[Tensor], Tensor]], model_of: Callable[[], nn.Module]
) -> None:
    """Evaluation stays compiled, just before a refresh, too; the steps are those without a compiler."""
    eager, model, counter = model_of(), model_of(), Counter()
    b = AdaFisher(model, update_interval=3)
    forward = compiled(model, counter)
    if compiled is in_place and model_of is Layers and torch.__version__ < "2.13":
        pytest.skip("Module.compile skips a module whose forward is torch's own")
    trained, evaluated = [], []
    for step in range(7):
        x, y = batch(step)
        b.zero_grad()
        cross_entropy(forward(x), y).backward()
        b.step()
        trained.append(counter.taken())
        model.eval()
        with torch.no_grad():
            forward(x)
        model.train()
        with torch.no_grad():
            forward(x)
        evaluated.append(counter.taken())
    assert trained == [0, 1, 1, 0, 1, 1, 0]
    assert evaluated == [2] * 7
    assert counter.graphs <= 3  # with gradients, and without in both modes
    a = AdaFisher(eager, update_interval=3)
    train(eager, a, range(7))
    same_up_to_rounding(everything(eager, a), everything(model, b))


def same_up_to_rounding(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=1e-4, atol=1e-5)


@compiles
def test_other_models_stay_compiled() -> None:
    """Also one with an AdaFisher of its own that has not come to step; only its own forward is eager then."""
    counter, first, second, teacher = Counter(), Net(), Net(1), Net(2)
    a, waiting = AdaFisher(first, rule="paper"), AdaFisher(second)
    forward, forward_teacher = counter(first), counter(teacher)
    trained, taught = 0, 0
    for step in range(4):
        x, y = batch(step)
        forward_teacher(x)
        taught += counter.taken()
        a.zero_grad()
        cross_entropy(forward(x), y).backward()
        a.step()
        trained += counter.taken()
    assert (trained, taught) == (0, 4)  # the paper's rule refreshes in every step
    del a
    forward(batch(0)[0])
    assert counter.taken() == 1
    counter(second)(batch(0)[0])
    assert counter.taken() == 0
    del waiting
    counter(second)(batch(0)[0])
    assert counter.taken() == 1


@compiles
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_the_users_own_stance_stays(steps: int) -> None:
    model, counter = Net(), Counter()
    optimizer = AdaFisher(model, update_interval=3)
    forward = counter(model)
    with torch.compiler.set_stance("eager_on_recompile"):
        assert stance() == "eager_on_recompile"
        train(model, optimizer, range(steps))
        assert stance() == "eager_on_recompile"
    assert stance() == "default"
    with torch.no_grad():
        forward(batch(0)[0])
    assert counter.taken() == 1
    train(model, optimizer, range(steps, 6))
    del optimizer
    assert stance() == "default"
    forward(batch(0)[0])
    assert counter.taken() == 1


@pytest.mark.parametrize("first_to_go", [0, 1])
def test_two_optimizers_of_one_model(first_to_go: int) -> None:
    """Both see the layers, in whatever order they come and go."""
    alone, shared = [Net(), Net()], Net()
    parts = [("first", "norm"), ("head",)]

    def params(model: Net, names: tuple[str, ...]) -> list[nn.Parameter]:
        return [p for name in names for p in model.get_submodule(name).parameters()]

    own = [AdaFisher(model, params(model, names)) for model, names in zip(alone, parts, strict=True)]
    both = [AdaFisher(shared, params(shared, names)) for names in parts]
    for model, optimizer in zip(alone, own, strict=True):
        train(model, optimizer, range(1))
    backward(shared, 0)
    for optimizer in both:
        optimizer.step()
    for index, names in enumerate(parts):
        for one, other in zip(params(alone[index], names), params(shared, names), strict=True):
            torch.testing.assert_close(other, one, rtol=0, atol=0)
            H = [o[index].state[p]["H"] for o, p in ((own, one), (both, other))]
            torch.testing.assert_close(*H, rtol=0, atol=0)
    again = [AdaFisher(shared), AdaFisher(shared)]
    assert "_compiled_call_impl" in vars(shared.first)
    del again[first_to_go]
    assert "_compiled_call_impl" in vars(shared.first)
    del again[0]
    assert "_compiled_call_impl" not in vars(shared.first)


@compiles
def test_layers_that_are_compiled_themselves() -> None:
    eager, model, counter = Net(), Net(), Counter()
    for layer in model.children():
        layer.compile(backend=counter.backend)
    before = vars(model.first)["_compiled_call_impl"]
    a, b = AdaFisher(eager, update_interval=2), AdaFisher(model, update_interval=2)
    train(eager, a, range(3))
    calls = []
    for step in range(3):
        train(model, b, range(step, step + 1))
        calls.append(counter.taken())
    assert calls == [0, 3, 0]
    same_up_to_rounding(everything(eager, a), everything(model, b))
    with torch.no_grad():
        model(batch(0)[0])
    assert counter.taken() == 3
    assert vars(model.first)["_compiled_call_impl"] is before


# Whatever looks at the model does not meet AdaFisher


@pytest.fixture
def model() -> Iterator[Net]:
    """At a moment when its layers are watched."""
    model = Net()
    optimizer = AdaFisher(model)
    assert optimizer.needs_refresh
    yield model
    backward(model, 0)
    optimizer.step()
    assert optimizer.coverage()[0].source == "Linear"
    assert "trainer" not in str([*map(type, vars(model.first).values())])


def test_a_saved_model_loads_without_the_trainer(model: Net, tmp_path: Path) -> None:
    plain = nn.Sequential(model.first, model.norm)
    torch.save(plain, tmp_path / "model.pt")
    pickle.loads(pickle.dumps(plain))
    assert b"trainer" not in (tmp_path / "model.pt").read_bytes()
    allowed = [nn.Sequential, nn.Linear, nn.LayerNorm]
    with torch.serialization.safe_globals(allowed):
        loaded = torch.load(tmp_path / "model.pt", weights_only=True)
    assert not vars(loaded[0])["_forward_hooks"]


@pytest.mark.slow
def test_a_saved_model_loads_in_another_process(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    AdaFisher(model)
    torch.save(model, tmp_path / "model.pt")
    code = f"import torch; torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False)(torch.ones(1, 2))"
    subprocess.run([sys.executable, "-I", "-c", code], check=True, timeout=60, cwd=tmp_path)


@pytest.mark.filterwarnings("ignore:.*deprecated.*")
@pytest.mark.parametrize("train_mode", [True, False])
def test_scripts_traces_and_exports(model: Net, train_mode: bool) -> None:
    x = batch(0)[0]
    model.train(train_mode)
    expected = model(x)
    for other in (
        torch.jit.script(model),
        torch.jit.trace(model, x),
        torch.export.export(model, (x,), strict=True).module(),
        torch.export.export(model, (x,), strict=False).module(),
        torch.fx.symbolic_trace(model),
        copy.deepcopy(model),
    ):
        torch.testing.assert_close(other(x), expected)
    model.train()


def test_a_copied_model_is_not_watched() -> None:
    model = Net()
    optimizer = AdaFisher(model)
    for other in (copy.deepcopy(model), copy.copy(model.first), pickle.loads(pickle.dumps(model))):
        other(batch(0)[0]).sum().backward()
    assert not optimizer._capture.collect(1.0, per_sample=True)


# The compiled step


@compiles
@pytest.mark.parametrize("capture", ["hooks", "gradient"])
def test_a_compiled_step(capture: Any) -> None:
    """``torch.compile(optimizer.step)`` is the step itself, which has compiled parts and kernels of its own."""
    a_model, b_model = Net(), Net()
    a, b = (AdaFisher(model, capture=capture, update_interval=3) for model in (a_model, b_model))
    step = torch.compile(b.step, backend="aot_eager")
    for index in range(7):
        train(a_model, a, range(index, index + 1))
        b.zero_grad()
        backward(b_model, index)
        step()
    same(everything(a_model, a), everything(b_model, b))


@compiles
def test_a_compiled_training_step() -> None:
    a_model, b_model = Net(), Net()
    a, b = AdaFisher(a_model, update_interval=3), AdaFisher(b_model, update_interval=3)

    @torch.compile(backend="aot_eager")
    def step(x: Tensor, y: Tensor) -> None:
        b.zero_grad()
        cross_entropy(b_model(x), y).backward()
        b.step()

    for index in range(7):
        train(a_model, a, range(index, index + 1))
        step(*batch(index))
    same(everything(a_model, a), everything(b_model, b))


def test_an_optimizer_that_goes_takes_everything_with_it() -> None:
    model = Net()
    optimizer = AdaFisher(model)
    assert "_compiled_call_impl" in vars(model.first)
    del optimizer
    assert "_compiled_call_impl" not in vars(model.first)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
