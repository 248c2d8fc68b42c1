"""The table at the end of a sweep."""

import pytest

from trainer.cli.train import show_sweep
from trainer.training.run import Result


def test_overrides_are_shown_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever of them rich would take for markup, and a terminal for a command."""
    monkeypatch.setenv("COLUMNS", "200")
    overrides = "data.root=[/nothing] monitor.sinks=[console,jsonl] plugins=[a.b] name=\x1b[31m"
    show_sweep(
        [(overrides, Result(2, {}, "test/loss")), ("seed=1", Result(0, {"test/loss": 0.5}, "test/loss"))]
    )
    out = capsys.readouterr().out
    assert overrides.replace("\x1b", r"\x1b") in out
    assert "\x1b" not in out
    assert "refused" in out
    assert "0.5000" in out


def test_numbers_and_names_are_shown_as_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A share is a percentage, and a terminal that is too narrow for a name cuts nothing off."""
    monkeypatch.setenv("COLUMNS", "40")
    show_sweep([("optimizer.weight_decay=0.12345", Result(0, {"test/accuracy": 0.875}, "test/accuracy"))])
    out = capsys.readouterr().out
    assert "…" not in out
    assert "87.50%" in "".join(out.split())
