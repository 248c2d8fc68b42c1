from torch import nn

from trainer.optim import param_groups


def model():
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 5, bias=False))
    net[3].weight = net[0].weight  # tied
    return net


def names(group):
    return [name for name, _ in group["params"]]


def test_each_parameter_once_and_named():
    net = model()
    (group,) = param_groups(net, True)
    assert names(group) == ["0.weight", "1.weight", "1.bias", "2.weight", "2.bias"]
    assert [p for _, p in group["params"]] == list(net.parameters())


def test_norms_and_biases_may_be_exempt_from_decay():
    decaying, exempt = param_groups(model(), False)
    assert names(decaying) == ["0.weight", "1.weight"]
    assert "weight_decay" not in decaying
    assert names(exempt) == ["1.bias", "2.weight", "2.bias"]
    assert exempt["weight_decay"] == 0.0


def test_frozen_parameters_are_left_out():
    net = model()
    net[1].requires_grad_(False)
    (group,) = param_groups(net, True)
    assert names(group) == ["0.weight", "2.weight", "2.bias"]


def test_no_group_is_empty():
    assert len(param_groups(nn.Linear(2, 2, bias=False), False)) == 1
