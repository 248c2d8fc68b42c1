"""What a classifier predicts for each sample of a split, and how often that is right, class by class."""

from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.cli.stored_run import class_names
from trainer.data import Split, eval_batches
from trainer.objectives.base import wide
from trainer.training.parts import RunParts


@dataclass(frozen=True)
class Predictions:
    """Of a split, in the order of its samples."""

    split: str
    targets: Tensor
    """True classes, int64 [N]."""
    predicted: Tensor
    """The most probable ones, int64 [N]."""
    probabilities: Tensor
    """Theirs, float32 [N]."""
    classes: list[str]
    """Names of all K classes."""

    @property
    def confusion(self) -> Tensor:
        """Samples by true (row) and predicted (column) class, int64 [K, K]."""
        size = len(self.classes)
        return torch.bincount(self.targets * size + self.predicted, minlength=size * size).view(size, size)

    def per_class(self) -> list[dict[str, Any]]:
        """Of each class: ``class``, ``precision``, ``recall`` and ``count``, its samples.

        Precision is None of a class that is never predicted, recall of one without samples.
        """
        table = self.confusion
        right, true, guessed = (part.tolist() for part in (table.diagonal(), table.sum(1), table.sum(0)))
        return [
            {
                "class": name,
                "precision": hits / guesses if guesses else None,
                "recall": hits / count if count else None,
                "count": count,
            }
            for name, hits, count, guesses in zip(self.classes, right, true, guessed, strict=True)
        ]

    def rows(self) -> list[dict[str, Any]]:
        """A flat record of each sample."""
        columns = (self.targets.tolist(), self.predicted.tolist(), self.probabilities.tolist())
        return [
            {
                "split": self.split,
                "sample": number,
                "target": self.classes[target],
                "predicted": self.classes[guess],
                "probability": probability,
                "correct": target == guess,
            }
            for number, (target, guess, probability) in enumerate(zip(*columns, strict=True))
        ]


def predict_split(parts: RunParts, name: str) -> Predictions | None:
    """The predictions of the model, with the weights that it has, for a split; None if it is no classifier."""
    if parts.objective.logits_of != "classes":
        return None
    parts.model.eval()
    split: Split = parts.data.evals[name]
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    size = 0
    with parts.strategy.inference(), closing(eval_batches(split, parts.config.loader)) as batches:
        for inputs, targets in batches:
            with parts.precision.autocast():
                outputs = parts.model(inputs)
            size = outputs.shape[-1]
            best = wide(outputs).softmax(-1).max(-1)
            # the argmax of what the objective's accuracy counts: rounding in softmax can make two of them equal
            found.append((targets.cpu(), outputs.argmax(-1).cpu(), best.values.float().cpu()))
    targets, predicted, probabilities = (torch.cat(part) for part in zip(*found, strict=True))
    return Predictions(name, targets, predicted, probabilities, class_names(parts.data.classes, size))
