"""Distillation: a model learns the outputs of a trained one beside the targets."""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.data import Batch
from trainer.objectives.base import OBJECTIVES, Network, Objective, wide
from trainer.objectives.cross_entropy import CrossEntropy
from trainer.objectives.next_token import NextToken
from trainer.options import MAY_DIFFER, Positive, Range

Share = Annotated[float, Range(ge=0, le=1)]


@OBJECTIVES.register("distillation", runs=("teacher",))
class Distillation(Objective):
    """``(1 - weight) CE(student, targets) + weight T² KL(teacher_T || student_T)`` (arXiv 1503.02531).

    The index stands for probabilities of logits that are divided by the temperature T; the factor T² keeps the
    gradient's size. Evaluation is by the base alone.

    Args:
        teacher: a run, of which the newest checkpoint is taken, or one of its checkpoints, such as
            RUN/checkpoints/best. Each rank holds all of it. A student goes on with the same checkpoint only.
        temperature: T.
        weight: of the teacher, from 0 to 1.
        base: the objective of the targets: ``cross_entropy`` of classes or ``next_token`` of tokens.
    """

    def __init__(
        self,
        *,
        teacher: Annotated[str, MAY_DIFFER],
        temperature: Positive = 2.0,
        weight: Share = 0.5,
        base: Literal["cross_entropy", "next_token"] = "cross_entropy",
    ) -> None:
        self.run, self.temperature, self.weight = teacher, temperature, weight
        self.base = NextToken() if base == "next_token" else CrossEntropy()
        self.primary = self.base.primary
        self.logits_of = self.base.logits_of

    def attach(self, network_of: Callable[[str], nn.Module]) -> None:
        """Takes the teacher."""
        self.teacher = network_of(self.run)

    def loss(self, model: Network, batch: Batch) -> tuple[Tensor, Tensor]:
        """As of the base objective; its totals, whose loss is the one that is minimised."""
        inputs, targets = batch
        outputs = model(inputs)
        with torch.no_grad():
            taught = self.teacher(inputs)
        if taught.shape != outputs.shape:
            raise ValueError(
                f"the teacher's outputs are {list(taught.shape)}, the model's {list(outputs.shape)}"
            )
        loss, totals = self.base.of_outputs(outputs, inputs, targets)
        loss = (1 - self.weight) * loss + self.weight * self.divergence(wide(outputs), wide(taught))
        return loss, torch.cat([(loss.detach() * totals[-1])[None], totals[1:]])

    def divergence(self, outputs: Tensor, taught: Tensor) -> Tensor:
        """T² times the mean Kullback-Leibler divergence of the student from the teacher, [..., K] both."""
        T = self.temperature
        student, teacher = (F.log_softmax(logits.flatten(0, -2) / T, -1) for logits in (outputs, taught))
        return T**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)

    def metrics(self, totals: Tensor) -> dict[str, float]:
        """Those of the base objective."""
        return self.base.metrics(totals)

    def for_evaluation(self) -> Objective:
        """The base objective."""
        return self.base
