"""What the package uses of torch beyond its documented interface is there, and does what is relied on."""

import inspect
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.nn.functional import conv2d, pad

from trainer.optim.adafisher import _torch_private as private

FOLDER = Path(private.__file__).parent


@pytest.mark.parametrize("name", private.__all__)
def test_is_there_and_used(name: str) -> None:
    assert hasattr(private, name)
    assert any(name in file.read_text() for file in FOLDER.glob("*.py") if file.name != "_torch_private.py")


def test_backward_passes_are_numbered() -> None:
    seen = []
    x = torch.ones(2, requires_grad=True)
    for _ in range(2):
        y = x * 2
        y.register_hook(lambda g: seen.append(private.current_backward()))
        y.sum().backward()
    assert private.current_backward() == private.NO_BACKWARD
    assert len({*seen, private.NO_BACKWARD}) == 3


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
def test_a_backward_pass_knows_whether_it_adds_to_a_gradient() -> None:
    layer, x, seen = nn.Linear(2, 2), torch.ones(1, 2, requires_grad=True), []
    node = torch.autograd.graph.get_gradient_edge(layer.weight).node
    for gradient in (
        lambda y: y.backward(),
        lambda y: y.backward(create_graph=True),
        lambda y: torch.autograd.grad(y, x),
        lambda y: torch.autograd.grad(y, layer.weight),
        lambda y: y.backward(inputs=[x]),
    ):
        y = layer(x)
        y.register_hook(lambda s: seen.append(private.adds_to_gradient(node)))
        gradient(y.sum())
        layer.zero_grad()
    assert seen == [True, True, False, False, False]


def test_what_is_called_in_place_of_a_module_is_not_saved_with_it() -> None:
    layer, called = nn.Linear(2, 2), []

    def call(x: torch.Tensor) -> torch.Tensor:
        called.append(private.calling_module())
        return layer._call_impl(x)

    vars(layer)[private.CALL] = call
    layer(torch.ones(1, 2))
    assert called == [layer]
    assert private.CALL not in layer.__getstate__()


def test_a_compiled_function_says_what_it_is_of() -> None:
    seen = []

    class Stance:
        skip_guard_eval_unsafe, backend = False, None

        @property
        def stance(self) -> str:
            seen.append(private.called_module())
            return "force_eager"

    model, before = nn.Linear(2, 2), private.stance()
    private.set_stance(Stance())
    try:
        for target in (torch.compile(model), torch.compile(lambda x: model(x))):
            target(torch.ones(1, 2))
    finally:
        private.set_stance(before)
    assert seen[0] == (True, model)
    assert seen[-1] == (True, None)


@pytest.mark.parametrize("padding", [(1, 2), "same"])
def test_padding(padding: tuple[int, int] | str) -> None:
    layer = nn.Conv2d(1, 1, (3, 4), padding=padding, bias=False)
    x = torch.randn(2, 1, 6, 6)
    torch.testing.assert_close(conv2d(pad(x, private.padding_of(layer)), layer.weight), layer(x))


def test_mesh_functions_take_what_is_given() -> None:
    assert next(iter(inspect.signature(DeviceMesh._flatten).parameters)) == "self"
    parameters = [*inspect.signature(compute_local_shape_and_global_offset).parameters]
    assert parameters[:3] == ["global_shape", "mesh", "placements"]


@pytest.mark.parametrize(
    ("base", "layers"),
    [
        (private.Convolution, [nn.Conv1d, nn.Conv3d, nn.ConvTranspose2d]),
        (private.TransposedConvolution, [nn.ConvTranspose1d, nn.ConvTranspose3d]),
        (private.BatchNorm, [nn.BatchNorm1d, nn.BatchNorm3d]),
        (private.InstanceNorm, [nn.InstanceNorm1d, nn.InstanceNorm3d]),
    ],
)
def test_bases(base: type, layers: list[type]) -> None:
    assert all(issubclass(layer, base) for layer in layers)
