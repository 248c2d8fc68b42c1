"""The embedded iris flowers, two numbers each, for landscapes that can be drawn; iris.md says where they are from."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainer.data.base import DATA, Batch, Data, Split
from trainer.data.digits import stratified_split

FILE = Path(__file__).with_name("iris.npz")
TEST_PER_CLASS = 10
CLASSES = ("setosa", "versicolor", "virginica")


@DATA.register("iris")
def iris(device: torch.device, seed: int) -> Data:
    """120 training and 30 test flowers in 3 classes; the split is always the same.

    A flower is an image [1, 1, 2]: its first two principal components, of mean 0 and variance 1 over the training set.
    """
    with np.load(FILE) as file:
        features = torch.from_numpy(file["features"]).double()  # [150, 4]
        labels = torch.from_numpy(file["labels"]).long()
    train, test = stratified_split(labels, TEST_PER_CLASS)
    inputs = principal_components(features, features[train]).float().view(-1, 1, 1, 2)
    return Data(
        train=Samples(inputs[train], labels[train], device),
        evals={"test": Samples(inputs[test], labels[test], device)},
        model_defaults={"num_classes": 3, "in_channels": 1, "image_size": (1, 2)},
        kind="images",
        classes=CLASSES,
    )


def principal_components(features: Tensor, fitted: Tensor) -> Tensor:
    """The first two principal components, scaled to unit variance.

    Args:
        features: [N, D].
        fitted: [M, D], the samples that the components, means and variances are those of.

    Returns:
        [N, 2]; of each component, the feature with the greatest weight counts positive.
    """
    mean = fitted.mean(0)
    axes = torch.linalg.svd(fitted - mean, full_matrices=False).Vh[:2]  # [2, D]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    scale = ((fitted - mean) @ axes.T).std(0, correction=0)
    return (features - mean) @ axes.T / scale


class Samples(Split):
    """Inputs and targets that live on the device as they are."""

    def __init__(self, inputs: Tensor, targets: Tensor, device: torch.device) -> None:
        self.inputs, self.targets = inputs.to(device), targets.to(device)

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: Tensor, key: int | None) -> Batch:
        """Returns the samples of these numbers; there is nothing to augment."""
        indices = indices.to(self.targets.device)
        return self.inputs[indices], self.targets[indices]
