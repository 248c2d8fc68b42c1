import math

import torch

from trainer.data import DATA, Data


def build(name: str, seed: int = 0, **options) -> Data:
    return DATA.build(DATA.check({"name": name, **options}), torch.device("cpu"), seed)


def test_images_are_the_same_for_every_seed_and_can_be_told_apart():
    options = {"train_samples": 400, "test_samples": 100, "num_classes": 5, "channels": 1, "image_size": 12}
    data = build("synthetic_images", seed=0, **options)
    assert data.model_defaults == {"num_classes": 5, "in_channels": 1, "image_size": 12}
    inputs, targets = data.train.batch(torch.arange(400), None)
    assert torch.equal(
        inputs, build("synthetic_images", seed=1, **options).train.batch(torch.arange(400), None)[0]
    )
    assert abs(inputs.mean()) < 0.1
    assert abs(inputs.std() - 1) < 0.1

    means = torch.stack([inputs[targets == label].mean(0) for label in range(5)])
    test, labels = data.evals["test"].batch(torch.arange(100), None)
    nearest = torch.cdist(test.flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == labels).float().mean() > 0.95


def test_tokens_have_the_entropy_of_their_branching():
    data = build(
        "synthetic_tokens", vocab_size=20, context_length=32, branching=3, train_samples=500, val_samples=50
    )
    assert (len(data.train), len(data.evals["val"])) == (500, 50)
    assert data.model_defaults == {"vocab_size": 20, "context_length": 32}
    inputs, targets = data.train.batch(torch.arange(500), None)
    counts = torch.zeros(20, 20).index_put_(
        (inputs.flatten(), targets.flatten()), torch.ones(()), accumulate=True
    )
    share = (counts + 1e-6) / (counts + 1e-6).sum(1, keepdim=True)
    val, following = data.evals["val"].batch(torch.arange(50), None)
    loss = -share[val, following].log().median()
    assert loss < math.log(3) + 0.1
