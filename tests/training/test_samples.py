"""Predictions and samples that are shown at evaluations, and that showing them changes nothing."""

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from tests.training.helpers import parts_of
from trainer.cli.train import main
from trainer.models import MODELS
from trainer.models.base import Cache
from trainer.training.generation import generate
from trainer.training.samples import wrong_and_right

VOCABULARY = 7


@pytest.mark.parametrize(
    ("correct", "count", "chosen"),
    [
        ([1, 0, 1, 0, 1, 1], 4, [1, 3, 0, 2]),
        ([1, 1, 1, 0, 1, 1], 4, [3, 0, 1, 2]),
        ([0, 0, 0, 0, 0, 1], 4, [0, 1, 2, 5]),
        ([0, 0], 4, [0, 1]),
        ([1, 1, 1], 2, [0, 1]),
    ],
)
def test_half_are_wrong_where_there_are_as_many(correct: list[int], count: int, chosen: list[int]) -> None:
    assert wrong_and_right(torch.tensor(correct).bool(), count).tolist() == chosen


def facts_of(context_length: int) -> dict[str, int]:
    return {"context_length": context_length, "vocab_size": VOCABULARY}


def test_generate_draws_what_the_model_believes() -> None:
    """A model that is certain of the next number, and never sees more than its context."""
    lengths = []

    def outputs(tokens: Tensor) -> Tensor:
        lengths.append(tokens.shape)
        following = (tokens + 1) % VOCABULARY
        return 100.0 * torch.nn.functional.one_hot(following, VOCABULARY)

    tokens = generate(outputs, torch.tensor([2, 3]), 6, facts_of(4), torch.Generator())
    assert tokens.tolist() == [2, 3, 4, 5, 6, 0, 1, 2]
    assert lengths == [(1, 2), (1, 3), (1, 4), (1, 4), (1, 4), (1, 4)]


def test_generate_draws_in_proportion() -> None:
    shares = torch.tensor([0.1, 0.6, 0.3])
    drawn = generate(
        lambda tokens: shares.log().expand(1, tokens.shape[1], 3),
        torch.tensor([0]),
        4000,
        facts_of(2),
        torch.Generator().manual_seed(0),
    )
    counted = drawn[1:].bincount() / 4000
    torch.testing.assert_close(counted, shares, atol=0.03, rtol=0)


def test_outputs_that_stand_for_no_token_are_not_drawn() -> None:
    """As of a model whose vocabulary is larger than the data's, for the sake of speed."""
    logits = torch.zeros(1, 1, 9).index_fill(2, torch.tensor([7, 8]), 9.0)
    for temperature, top_k in ((1.0, None), (1.0, 3), (0.0, None)):
        drawn = generate(
            lambda tokens: logits.expand(1, tokens.shape[1], 9),
            torch.tensor([0]),
            50,
            facts_of(2),
            torch.Generator().manual_seed(0),
            temperature=temperature,
            top_k=top_k,
        )
        assert drawn.max() < VOCABULARY


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("To be, or not to be, that is the question:\n" * 40)
    return path


def train(run: Path, *overrides: str) -> int:
    return main([*overrides, "device=cpu", "loop.eval_every=3", "loop.max_steps=6", f"hydra.run.dir={run}"])


def language(text: Path) -> list[str]:
    small = ["model=gpt", "model.layers=1", "model.width=16", "model.heads=2", "model.dropout=0.1"]
    return ["data=text", f"data.path={text}", "data.context_length=16", "data.batch_size=8", *small]


def test_samples_go_on_from_the_prompt(tmp_path: Path, text: Path) -> None:
    prompt = "monitor.sample_prompt='to be'"
    assert (
        train(tmp_path / "run", *language(text), "optimizer.lr=0.1", "monitor.sample_tokens=20", prompt) == 0
    )
    shown = EventAccumulator(str(tmp_path / "run")).Reload().Tensors("val/sample/text_summary")
    assert [event.step for event in shown] == [3, 6]
    # lines are indented by four, so that they are shown as they are
    first, second = (
        "\n".join(line[4:] for line in event.tensor_proto.string_val[0].decode().splitlines())
        for event in shown
    )
    assert first.startswith("to be")
    assert len(first) == len(second) == len("to be") + 20
    assert first != second
    assert set(first) <= set(text.read_text())


@pytest.mark.parametrize("kind", ["images", "text"])
def test_showing_changes_nothing(tmp_path: Path, text: Path, kind: str) -> None:
    given = language(text) if kind == "text" else ["model=cnn", "model.widths=[4]", "model.dropout=0.1"]
    nothing = ["monitor.predictions=0", "monitor.sample_tokens=0"]
    assert train(tmp_path / "shown", *given, "monitor.sample_tokens=5") == 0
    assert train(tmp_path / "not", *given, *nothing) == 0
    shown, not_shown = (tmp_path / name / "metrics.jsonl" for name in ("shown", "not"))
    assert shown.read_bytes() == not_shown.read_bytes()
    tags = [EventAccumulator(str(tmp_path / name)).Reload().Tags() for name in ("shown", "not")]
    if kind == "images":
        assert [set(tag["images"]) for tag in tags] == [{"train/batch", "test/predictions"}, {"train/batch"}]
    else:
        assert [("val/sample/text_summary" in tag["tensors"]) for tag in tags] == [True, False]


def test_a_prompt_that_the_data_lacks(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", *language(text), "monitor.sample_prompt='être'") == 2
    assert capsys.readouterr().err == (
        "error: monitor.sample_prompt='être' has 'ê', which does not occur in the data\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seed", [-1, 99999999999999999999])
def test_any_seed_can_draw(seed: int, text: Path) -> None:
    line = [
        "data=text",
        f"data.path={text}",
        "data.context_length=8",
        "model=gpt",
        "model.width=8",
        "model.heads=2",
    ]
    assert parts_of(*line, "model.layers=1", f"seed={seed}").samples.sample(3)


def test_a_cache_makes_the_same_text_and_computes_each_token_once() -> None:
    model = MODELS.build(
        MODELS.check({"name": "gpt", "vocab_size": VOCABULARY, "context_length": 8, "position": "rope"})
    ).eval()
    prompt, lengths = torch.tensor([2, 3, 4]), []

    def outputs(tokens: Tensor, *cache: object) -> Tensor:
        lengths.append(tokens.shape[1])
        with torch.no_grad():
            return model(tokens, *cache)

    def written(cache: Cache | None = None) -> Tensor:
        return generate(outputs, prompt, 9, facts_of(8), torch.Generator().manual_seed(1), cache)

    plain = written()
    assert lengths == [3, 4, 5, 6, 7, 8, 8, 8, 8]
    lengths.clear()
    cached = written(model.new_cache())
    assert lengths == [3, 1, 1, 1, 1, 1, 8, 8, 8]
    assert torch.equal(cached, plain)
