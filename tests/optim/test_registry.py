"""Every optimizer, on one small model: a convolution, a norm, attention's kind of matrices, a classifier."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from trainer.errors import ConfigError, MissingExtra
from trainer.optim import OPTIMIZERS, AdaFisher, param_groups
from trainer.optim.muon import split_matrices
from trainer.optim.pytorch_optimizer import UNSUPPORTED
from trainer.options import options_of

pytorch_optimizer = pytest.importorskip("pytorch_optimizer")

OWN = ["adafisher", "adafisherw", "sgd", "adam", "adamw", "nadam", "adafactor", "muon"]
OWN += ["schedulefree_adamw", "schedulefree_sgd", "sam_sgd", "sam_adamw"]
PLAIN = OWN[2:]
PRECONDITIONED = ["kfac", "foof", "eva", "shampoo", "adahessian"]
"""Of `trainer.optim.kronecker`; that they learn is shown in tests/optim/kronecker/, on data that can be learnt."""


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), nn.Linear(8, 10)
    )


def build(model, decay_norms_and_biases=False, **config):
    checked = OPTIMIZERS.check({**config, "decay_norms_and_biases": decay_norms_and_biases})
    return OPTIMIZERS.build(checked, model, param_groups(model, decay_norms_and_biases))


def train(model, optimizer, steps, seed=0):
    torch.manual_seed(seed)  # AdaHessian draws random signs
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        images = torch.randn(8, 1, 8, 8, generator=generator)
        loss = nn.functional.cross_entropy(model(images), torch.arange(8))
        optimizer.zero_grad()
        loss.backward(create_graph=getattr(optimizer, "needs_create_graph", False))
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", OWN)
def test_moves_every_parameter_and_learns(name):
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    losses = train(model, build(model, name=name), 20)
    assert losses[-1] < losses[0]
    assert all(not torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", [*OWN, *PRECONDITIONED])
def test_options_left_out_have_their_defaults(name):
    """As in a program that takes an optimizer from the registry without a configuration."""
    model, twin = small_model(), small_model()
    optimizer = OPTIMIZERS.get(name).target(model, param_groups(model, False), lr=1e-3)
    configured = build(twin, name=name, lr=1e-3)
    assert train(model, optimizer, 3) == train(twin, configured, 3)


@pytest.mark.parametrize("name", [*OWN, *PRECONDITIONED])
def test_a_loaded_state_goes_on_as_if_never_interrupted(name):
    model = small_model()
    optimizer = build(model, name=name)
    train(model, optimizer, 3)
    again = small_model()
    again.load_state_dict(model.state_dict())
    resumed = build(again, name=name)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 2, seed=1)
    train(again, resumed, 2, seed=1)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def state_by_name(optimizer, model):
    """Name and tensor of each parameter with its state, as the optimizer's state dict gives them."""
    state = optimizer.state_dict()
    groups = state["param_groups"]
    indices = [index for group in groups for index in group["params"]]
    names = [name for group in groups for name in group["param_names"]]
    named = dict(model.named_parameters())
    assert sorted(names) == sorted(named)
    return [(name, named[name], state["state"][index]) for index, name in zip(indices, names, strict=True)]


@pytest.mark.parametrize("name", [name for name in PLAIN if name != "adafactor"])
def test_state_has_the_shapes_of_the_named_parameters(name):
    model = small_model()
    optimizer = build(model, name=name)
    train(model, optimizer, 1)
    for parameter_name, parameter, state in state_by_name(optimizer, model):
        shapes = {key: value.shape for key, value in state.items() if getattr(value, "ndim", 0)}
        assert shapes == dict.fromkeys(shapes, parameter.shape), parameter_name


def test_adafactors_state_is_a_row_and_a_column_of_each_parameter():
    model = small_model()
    optimizer = build(model, name="adafactor")
    train(model, optimizer, 1)
    for name, parameter, state in state_by_name(optimizer, model):
        shapes = {key: value.shape for key, value in state.items() if getattr(value, "ndim", 0)}
        row, column = (*parameter.shape[:-1], 1), (*parameter.shape[:-2], 1, parameter.shape[-1])
        expected = (
            {"row_var": row, "col_var": column} if parameter.ndim > 1 else {"variance": parameter.shape}
        )
        assert shapes == expected, name


@pytest.mark.parametrize("name", ["muon", *PRECONDITIONED])
def test_parameters_that_come_later_are_refused_in_one_line(name):
    optimizer = build(small_model(), name=name)
    groups = len(optimizer.param_groups)
    expected = r"^\w+ takes no parameters later: build the optimizer with all parameters$"
    with pytest.raises(ValueError, match=expected):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert len(optimizer.param_groups) == groups


@pytest.mark.parametrize("name", [*OWN, *PRECONDITIONED])
def test_norms_and_biases_are_exempt_from_decay(name):
    model = small_model()
    optimizer = build(model, name=name, weight_decay=0.5)
    decay = {n: g["weight_decay"] for g in optimizer.param_groups for n in g["param_names"]}
    assert decay == {n: 0.5 if p.ndim >= 2 else 0.0 for n, p in model.named_parameters()}


def test_adafishers_options_reach_it():
    optimizer = build(small_model(), name="adafisher", rule="paper", lr=0.02, gamma=0.7, update_interval=3)
    (group, _) = optimizer.param_groups
    assert (optimizer.rule, optimizer.update_interval, optimizer.decoupled) == ("paper", 3, False)
    assert (group["lr"], group["gamma"], group["damping"]) == (0.02, 0.7, 1e-3)
    assert build(small_model(), name="adafisherw", rule="paper").decoupled


@pytest.mark.parametrize(("name", "missing"), [("adafisher", set()), ("adafisherw", {"decoupled"})])
def test_adafishers_options_mirror_its_constructor(name, missing):
    constructor = options_of(AdaFisher)
    registered = OPTIMIZERS.get(name).options
    assert set(registered) == set(constructor) - missing
    assert all(option.default == constructor[key].default for key, option in registered.items())


def test_adafishers_own_rules_are_always_decoupled():
    message = (
        r"^optimizer=adafisher: Invalid decoupled: False, rule='orthogonal' always decouples weight decay$"
    )
    with pytest.raises(ConfigError, match=message):
        build(small_model(), name="adafisher", decoupled=False)


def test_fused_and_plain_updates_agree():
    for name in ("sgd", "adam", "adamw", "muon"):
        models = [small_model(), small_model()]
        for model, fused in zip(models, (True, False), strict=True):
            train(model, build(model, name=name, fused=fused), 3)
        for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(a, b)


def test_muon_is_torchs_muon_and_adamw():
    ours, theirs = small_model(), small_model()
    optimizer = build(ours, name="muon", lr=0.02, adamw_lr=0.003, adjust_lr_fn="original", weight_decay=0.1)
    kernel = theirs[0].weight  # torch's Muon takes matrices only: give it this one flattened
    flat = nn.Parameter(kernel.detach().flatten(1))
    matrices = [flat, theirs[4].weight]
    rest = [p for p in theirs.parameters() if p is not kernel and p is not theirs[4].weight]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1)
    adamw = torch.optim.AdamW(
        [{"params": [p], "weight_decay": 0.1 * (p.ndim > 1)} for p in rest], lr=0.003, betas=(0.9, 0.95)
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        images = torch.randn(8, 1, 8, 8, generator=generator)
        for model in (ours, theirs):
            model.zero_grad()
            nn.functional.cross_entropy(model(images), torch.arange(8)).backward()
        flat.grad = kernel.grad.flatten(1)
        for each in (optimizer, muon, adamw):
            each.step()
        kernel.data.copy_(flat.detach().view_as(kernel))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-2)  # torch's Newton-Schulz runs in bfloat16


def test_muons_adamw_goes_along_with_its_rate():
    assert {group["lr"] for group in build(small_model(), name="muon", lr=0.02).param_groups} == {0.02}
    rates = build(small_model(), name="muon", lr=0.02, adamw_lr=0.003).param_groups
    assert {group["use_muon"]: group["lr"] for group in rates} == {True: 0.02, False: 0.003}


def test_muon_updates_weights_in_any_memory_format():
    plain, last = small_model(), small_model().to(memory_format=torch.channels_last)
    for model in (plain, last):
        train(model, build(model, name="muon"), 2)
    for a, b in zip(plain.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-2)


def test_muon_takes_the_hidden_matrices_only():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(7, 4)
            self.positions = nn.Parameter(torch.zeros(1, 5, 4))
            self.attention = nn.MultiheadAttention(4, 2)
            self.depthwise = nn.Conv1d(4, 4, 3, groups=4)
            self.hidden = nn.Linear(4, 4)
            self.head = nn.Linear(4, 7)

    def taken(model, **options):
        groups = split_matrices(model, param_groups(model, True), **options)
        return {name for group in groups if group["use_muon"] for name, _ in group["params"]}

    matrices = {"attention.in_proj_weight", "attention.out_proj.weight", "hidden.weight"}
    net = Net()
    assert taken(net) == matrices
    assert taken(net, output_layer=True) == {*matrices, "head.weight"}
    net.head.weight = net.embedding.weight
    assert taken(net) == taken(net, output_layer=True) == matrices


def test_muon_takes_the_projections_of_attention_that_are_not_fused():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2, kdim=4, vdim=4), "head": nn.Linear(8, 7)})
    (muon, *others) = split_matrices(model, param_groups(model, True), split_qkv=True)
    projections = {f"attention.{one}_proj_weight" for one in "qkv"}
    assert {name for name, _ in muon["params"]} == {*projections, "attention.out_proj.weight"}
    assert "rows" not in muon
    assert [group["use_muon"] for group in others] == [False]


def test_muon_takes_queries_keys_and_values_apart():
    """As if each were a matrix of its own; grouped queries make the three of different heights."""
    parts = {"query": 8, "key": 4, "value": 4}

    def model(shapes):
        return nn.ModuleDict({name: nn.Linear(8, rows, bias=False) for name, rows in shapes.items()})

    fused, apart = model({"qkv": 16, "head": 3}), model({**parts, "head": 3})
    with torch.no_grad():
        for at, name in zip((0, 8, 12), parts, strict=True):
            apart[name].weight.copy_(fused["qkv"].weight[at : at + parts[name]])
    optimizers = [build(fused, name="muon", split_qkv=True), build(apart, name="muon")]
    assert [group.get("rows") for group in optimizers[0].param_groups] == [(8, 4, 4), None]
    for _ in range(3):
        gradient = torch.randn(16, 8)
        fused["qkv"].weight.grad = gradient
        for name, part in zip(parts, gradient.split([*parts.values()]), strict=True):
            apart[name].weight.grad = part
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(fused["qkv"].weight, torch.cat([apart[name].weight for name in parts]))


@pytest.mark.parametrize("name", PLAIN)
def test_an_overflow_under_a_grad_scaler_changes_nothing(name):
    model = small_model()
    optimizer = build(model, name=name)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = copy.deepcopy(model.state_dict())
    scaler.scale(model(torch.randn(2, 1, 8, 8)).sum()).backward()
    model[5].weight.grad[0, 0] = torch.inf
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert scaler.get_scale() == 2.0


SLOW_STARTERS = {"adashift", "radam"}
"""Their first 10 and 5 steps only gather gradients; the first step of some others does."""


@pytest.mark.parametrize("algorithm", pytorch_optimizer.get_supported_optimizers())
@pytest.mark.filterwarnings("ignore")
def test_every_algorithm_of_pytorch_optimizer_steps_or_says_why_not(algorithm):
    model = small_model()
    options = {"num_iterations": 10} if algorithm == "ranger21" else {}
    if algorithm in UNSUPPORTED:
        with pytest.raises(ConfigError, match=r"^optimizer.algorithm=\w+ is not supported: .+$"):
            build(model, name="pytorch_optimizer", algorithm=algorithm, options=options)
        return
    optimizer = build(model, name="pytorch_optimizer", algorithm=algorithm, options=options)
    before = copy.deepcopy(model.state_dict())
    train(model, optimizer, 12 if algorithm in SLOW_STARTERS else 2)
    after = model.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(before[key], value) for key, value in after.items())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"algorithm": "sopa"}, "unknown optimizer.algorithm=sopa; did you mean"),
        ({"algorithm": "sam"}, "is not supported: step() needs a closure"),
        (
            {"algorithm": "lion", "options": {"beta": 1}},
            "options.beta of lion; did you mean betas?",
        ),
        ({"algorithm": "lion", "options": {"lr": 1}}, "use optimizer.lr"),
        ({"algorithm": "lion", "options": {"betas": [2.0, 0.9]}}, "optimizer.algorithm=lion: "),
        ({"algorithm": "fromage", "weight_decay": 0.1}, "fromage has no weight_decay"),
        ({"algorithm": "ranger21"}, "ranger21 needs optimizer.options.num_iterations"),
    ],
)
def test_a_wrong_option_is_one_line(config, message):
    with pytest.raises(ConfigError) as error:
        build(small_model(), name="pytorch_optimizer", **config)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pytorch_optimizer", None)
    with pytest.raises(MissingExtra, match=r"pip install '\.\[zoo\]'"):
        build(small_model(), name="pytorch_optimizer")


def test_second_order_algorithms_ask_for_the_graph():
    asked = {
        name: build(small_model(), name="pytorch_optimizer", algorithm=name).needs_create_graph
        for name in ("adahessian", "sophiah", "lion")
    }
    assert asked == {"adahessian": True, "sophiah": True, "lion": False}


@pytest.fixture
def mesh():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", [name for name in PLAIN if name != "adafactor"])
def test_updates_sharded_parameters_as_plain_ones(name, mesh):
    plain, sharded = small_model(), small_model()
    fully_shard(sharded, mesh=mesh)
    for model in (plain, sharded):
        train(model, build(model, name=name), 3)
    for a, b in zip(plain.parameters(), sharded.parameters(), strict=True):
        torch.testing.assert_close(a, b.full_tensor())


def test_adafactor_says_that_it_takes_no_sharded_parameters(mesh):
    model = small_model()
    fully_shard(model, mesh=mesh)
    with pytest.raises(ConfigError, match="use parallel=ddp"):
        build(model, name="adafactor")


def test_an_algorithm_that_is_not_known_to_take_sharded_parameters_is_refused(mesh):
    model = small_model()
    fully_shard(model, mesh=mesh)
    build(model, name="pytorch_optimizer", algorithm="lion")
    with pytest.raises(ConfigError, match=r"^optimizer.algorithm=SOAP does not train sharded .*=ddp$"):
        build(model, name="pytorch_optimizer", algorithm="SOAP")
