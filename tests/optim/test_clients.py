"""The blocks of docs/optimizer.md that show AdaFisher in other programs train, with factors from the rows of layers."""

import re
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.distributed.ranks import on_ranks
from trainer.optim import AdaFisher

PAGE = (Path(__file__).parents[2] / "docs/optimizer.md").read_text()
LIBRARIES = {
    "Lightning": "lightning",
    "accelerate": "accelerate",
    "Hugging Face Trainer": "transformers",
    "timm": "timm",
    "pytorch-optimizer": "pytorch_optimizer",
}


def blocks(heading: str) -> list[str]:
    """The blocks of Python under a heading of docs/optimizer.md."""
    (section,) = re.findall(rf"^### {heading}\n(.*?)(?=^##)", PAGE, re.MULTILINE | re.DOTALL)
    return re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def sections() -> list[str]:
    (part,) = re.findall(r"^## In other programs\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
    return re.findall(r"^### (.*)$", part, re.MULTILINE)


def names(rank: int = 0) -> dict[str, Any]:
    """What the blocks take for granted: a model, and batches of points of three colours."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3))
    torch.manual_seed(rank + 1)
    y = torch.randint(3, (1600,))
    x = torch.randn(1600, 2) + 3 * torch.stack([y - 1.0, (y == 1) * 2.0], 1)
    return {
        "torch": torch,
        "AdaFisher": AdaFisher,
        "device": "cpu",
        "model": model,
        "batches": DataLoader(TensorDataset(x, y), batch_size=16),
        "loss_of": nn.functional.cross_entropy,
        "x": x,
        "y": y,
    }


def loss(model: nn.Module, known: dict[str, Any]) -> float:
    with torch.no_grad():
        return nn.functional.cross_entropy(model(known["x"]), known["y"]).item()


def sources(optimizer: Any) -> set[str]:
    """Where the curvature comes from, of an optimizer or of what a library has wrapped around it."""
    return {row.source for row in getattr(optimizer, "optimizer", optimizer).coverage()}


def check(heading: str, optimizer: Callable[[dict[str, Any]], Any] = itemgetter("optimizer")) -> None:
    """Runs a section: the loss falls, and every factor comes from rows."""
    before = names()
    first = loss(before["model"], before)
    after = dict(before)
    exec(blocks(heading)[0], after)
    assert sources(optimizer(after)) == {"Linear", "LayerNorm"}
    assert loss(after["model"], before) < first / 2


def test_every_section_is_run() -> None:
    here = Path(__file__).read_text()
    assert len(sections()) == 9
    assert all(f'"{section}"' in here for section in sections())


@pytest.mark.parametrize("heading", ["A plain loop", "Mixed precision"])
def test_alone(heading: str) -> None:
    check(heading)


def _on_rank(ranks: Any, heading: str) -> tuple[set[str], float, float, list[Tensor]]:
    ranks.start(torch.device("cpu"), timeout=60)
    before = names(ranks.rank)
    first = loss(before["model"], before)
    after = dict(before)
    (block,) = blocks(heading)
    exec(block, after)
    params = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in after["model"].parameters()]
    return sources(after["optimizer"]), first, loss(after["model"], before), [p.detach() for p in params]


@pytest.mark.ranks
@pytest.mark.parametrize("heading", ["DDP", "FSDP2"])
def test_on_two_ranks(heading: str) -> None:
    results = on_ranks(2, _on_rank, heading)
    for found, first, last, _ in results:
        assert found == {"Linear", "LayerNorm"}
        assert last < first / 2
    torch.testing.assert_close(results[0][3], results[1][3], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("heading", ["Lightning", "accelerate", "timm"])
def test_libraries(heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(LIBRARIES[heading], reason="it is in the extra clients")
    monkeypatch.chdir(tmp_path)
    if heading == "Lightning":
        check(heading, lambda after: after["trainer"].optimizers[0])
    else:
        check(heading)


@pytest.mark.slow
@pytest.mark.parametrize("heading", ["timm", "pytorch-optimizer"])
def test_factories(heading: str) -> None:
    pytest.importorskip(LIBRARIES[heading], reason="it is in the extra clients")
    known = names()
    exec(blocks(heading)[-1], known)
    optimizer = known["optimizer"]
    assert isinstance(optimizer, AdaFisher)
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.0, 0.05]


@pytest.mark.slow
def test_hugging_face_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heading = "Hugging Face Trainer"
    transformers = pytest.importorskip(LIBRARIES[heading], reason="it is in the extra clients")
    pytest.importorskip("accelerate", reason="it is in the extra clients")
    monkeypatch.chdir(tmp_path)
    config = transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=8, n_positions=8)
    model = transformers.GPT2LMHeadModel(config)
    tokens = (torch.arange(8) + torch.arange(480)[:, None]) % 8  # counting
    dataset = [{"input_ids": row, "labels": row} for row in tokens]
    known = {**names(), "model": model, "dataset": dataset}
    (block,) = blocks(heading)
    exec(block, known)
    optimizer = known["trainer"].optimizer
    optimizer = getattr(optimizer, "optimizer", optimizer)  # as accelerate has wrapped it
    assert sources(optimizer) == {"Conv1D", "LayerNorm", "Embedding", "Embedding + Linear"}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    logits = model(tokens[:8]).logits
    assert nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:8, 1:].flatten()) < 1.0
