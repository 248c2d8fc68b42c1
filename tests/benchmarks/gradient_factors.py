"""How well factors from the gradient alone agree with those from the rows of the layers.

Trains a GPT of 0.6 M parameters on the bytes of LICENSE, then holds it still and takes both kinds of factors from the
same batches. Prints the correlation of the logarithms of S[i] H[j] over the entries of a parameter, as the median over
parameters of a kind, after some numbers of refreshes.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from trainer.models.gpt import GPT
from trainer.optim import AdaFisher

TEXT = Path(__file__).parents[2] / "LICENSE"
CONTEXT, BATCH = 64, 16
REFRESHES = (1, 5, 20, 60)


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    data = torch.tensor(list(TEXT.read_bytes()))
    while True:
        starts = torch.randint(len(data) - CONTEXT - 1, (BATCH,))
        rows = torch.stack([data[start : start + CONTEXT + 1] for start in starts.tolist()])
        yield rows[:, :-1], rows[:, 1:]


def backward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> float:
    model.zero_grad()
    loss = nn.functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())
    loss.backward()
    return loss.item()


def kind_of(name: str, param: Tensor) -> str:
    if "positions" in name or "tokens" in name:
        return "embeddings"
    if param.dim() == 2:
        return "weights"
    return "biases" if name.endswith("bias") else "scales of norms"


def correlation(a: Tensor, b: Tensor) -> float:
    both = torch.stack([a.flatten().log(), b.flatten().log()])
    return torch.corrcoef(both[:, both.isfinite().all(0)])[0, 1].item()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200, help="of training before the measurement")
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    model = GPT(layers=3, width=128, heads=4, vocab_size=256, context_length=CONTEXT)
    data = batches()
    optimizer = AdaFisher(model, rule="calibrated", lr=1e-2)
    for batch, _ in zip(data, range(steps), strict=False):
        loss = backward(model, batch)
        optimizer.step()
    print(f"loss after {steps} steps: {loss:.2f}")
    still = {"lr": 0.0, "weight_decay": 0.0, "update_interval": 1}
    rows, gradient = AdaFisher(model, **still), AdaFisher(model, capture="gradient", **still)
    print(f"{'refreshes':<18}" + "".join(f"{count:>8}" for count in REFRESHES))
    found: dict[str, list[float]] = {}
    for count in range(1, REFRESHES[-1] + 1):
        backward(model, next(data))
        rows.step()
        gradient.step()
        if count not in REFRESHES:
            continue
        of_kind: dict[str, list[float]] = {}
        for name, param in model.named_parameters():
            a, b = (of.preconditioner(param) - of.param_groups[0]["damping"] for of in (rows, gradient))
            of_kind.setdefault(kind_of(name, param), []).append(correlation(a, b))
        for kind, values in of_kind.items():
            found.setdefault(kind, []).append(median(values))
    for kind, values in found.items():
        print(f"{kind:<18}" + "".join(f"{value:8.2f}" for value in values))


if __name__ == "__main__":
    main()
