"""The average of weights against its sum written out."""

import torch
from torch import nn

from trainer.optim.ema import EMA


def model_of() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()


def change(model: nn.Module) -> None:
    """Gives all weights, and the buffers with them, new values."""
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.copy_(torch.randn(tensor.shape) * 10)


def test_it_is_the_weighted_sum_of_all_weights_so_far() -> None:
    model = model_of()
    ema = EMA(model, decay=0.25)
    seen = [{name: tensor.clone() for name, tensor in model.state_dict().items()}]
    for _ in range(5):
        change(model)
        ema.update()
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    decays = [2 / 11, 3 / 12, 0.25, 0.25, 0.25]  # (1 + t) / (10 + t) until it is as large as the decay
    shares = [1.0]  # of the start and of each step in the average
    for decay in decays:
        shares = [share * decay for share in shares] + [1 - decay]
    with ema.applied():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                expected = sum(share * weights[name] for share, weights in zip(shares, seen, strict=True))
                torch.testing.assert_close(tensor, expected, rtol=1e-12, atol=1e-12)
            else:
                assert torch.equal(tensor, seen[-1][name]), "a number of batches is not averaged"


def test_the_model_has_its_own_weights_again_even_after_an_error() -> None:
    model = model_of()
    ema = EMA(model, decay=0.9)
    change(model)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        with ema.applied():
            assert not torch.equal(model.state_dict()["0.weight"], own["0.weight"])
            raise RuntimeError
    except RuntimeError:
        pass
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())


def test_a_loaded_average_continues_as_the_saved_one() -> None:
    first, second = model_of(), model_of()
    saved = EMA(first, decay=0.9)
    for _ in range(3):
        change(first)
        saved.update()
    loaded = EMA(second, decay=0.9)
    loaded.load_state_dict(saved.state_dict())
    change(first)
    second.load_state_dict(first.state_dict())
    saved.update()
    loaded.update()
    for name, tensor in saved.average.items():
        assert torch.equal(tensor, loaded.average[name])
        assert tensor is not loaded.average[name]
