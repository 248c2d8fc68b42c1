"""Text from a trained language model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainer.generate import main
from trainer.models.gpt import GPT
from trainer.training.generation import draw, generate

Refused = Callable[[int, str], None]


def written(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert main([*map(str, argv)]) == 0
    return capsys.readouterr().out.removesuffix("\n")


def test_a_text_goes_on(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = written(capsys, text, "a quick", "--tokens", 50)
    assert first.startswith("a quick")
    assert len(first) == 7 + 50
    assert written(capsys, text, "a quick", "--tokens", 50) == first
    assert written(capsys, text, "a quick", "--tokens", 50, "--seed", 1) != first
    greedy = written(capsys, text, "a quick", "--tokens", 50, "--temperature", 0)
    assert greedy == written(capsys, text, "a quick", "--tokens", 50, "--top-k", 1, "--seed", 5)


def test_the_cache_changes_nothing(
    text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beyond the context, 24 tokens, too."""
    arguments = [text, "over a", "--tokens", 40, "--temperature", 0.7]
    cached = written(capsys, *arguments)
    monkeypatch.setattr("trainer.generate.CachingModel", int)
    assert written(capsys, *arguments) == cached


def test_logits_are_equal_with_a_cache() -> None:
    model = GPT(
        layers=2, width=16, heads=4, kv_heads=2, position="rope", vocab_size=11, context_length=9
    ).eval()
    tokens = torch.randint(11, (1, 9))
    cache = model.new_cache()
    with torch.no_grad():
        whole = model(tokens)
        parts = [model(tokens[:, :4], cache), *(model(tokens[:, i : i + 1], cache) for i in range(4, 9))]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-6)


def test_draws_have_the_distribution() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 0.0])
    generator = torch.Generator().manual_seed(0)
    for temperature, top_k in ((1.0, None), (0.5, 3), (2.0, 2), (1.0, 99)):
        drawn = torch.cat([draw(logits, generator, temperature, top_k) for _ in range(3000)])
        kept = logits.clone()
        kept[logits.argsort(descending=True)[top_k or 4 :]] = -torch.inf
        shares = torch.bincount(drawn, minlength=4) / 3000
        torch.testing.assert_close(shares, (kept / temperature).softmax(-1), atol=0.03, rtol=0)
    assert draw(logits, generator, 0.0, None).tolist() == [1]


def test_the_first_token_moves_out_of_the_context() -> None:
    def outputs(tokens: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot((tokens + 1) % 7, 7).float() * 99

    facts = {"context_length": 2, "vocab_size": 7}
    drawn = generate(outputs, torch.tensor([3]), 9, facts, torch.Generator(), temperature=0.0)
    assert drawn.tolist() == [3, 4, 5, 6, 0, 1, 2, 3, 4, 5]


def test_mistakes(digits: Path, text: Path, tmp_path: Path, refused: Refused) -> None:
    for arguments, hint in (
        ([digits, "a"], "trainer.generate needs a language model: model=cnn is none"),
        ([text, "aÄ"], "has 'Ä', which does not occur in the data"),
        ([text, ""], "the text is empty"),
        ([text, "a", "--temperature", "-1"], "'-1' is not a number of at least 0"),
        ([text, "a", "--tokens", "x"], "'x' is not an integer of at least 1"),
        ([text, "a", "--ema"], "has no averaged weights"),
        ([text, "a", "--set", "data.path=/none"], "/none"),
        ([tmp_path / "none", "a"], "does not exist"),
    ):
        refused(main([*map(str, arguments)]), hint)
