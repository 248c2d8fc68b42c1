"""What a recipe sets for its own optimizer, where another one is chosen."""

import pytest

from trainer.config.command_line import parse_arguments
from trainer.config.compose import compose_run
from trainer.config.recipes import warn_of_kept_options

RECIPE = ["experiment=cifar_cnn_sgd"]  # which sets two options of SGD
OTHER = [*RECIPE, "optimizer=adamw"]


def test_another_optimizer_keeps_them_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    args = parse_arguments(OTHER)
    assert compose_run(args)[0].optimizer["lr"] == 0.1
    warn_of_kept_options(args, [OTHER, OTHER])
    assert capsys.readouterr().err == (
        "warning: experiment=cifar_cnn_sgd sets optimizer.lr=0.1, optimizer.weight_decay=0.0005 for optimizer=sgd, "
        "and optimizer=adamw keeps it: set what suits it\n"
    )
    warn_of_kept_options(args, [OTHER], tuned={"lr"})
    assert "sets optimizer.weight_decay=0.0005 for optimizer=sgd" in capsys.readouterr().err


def test_nothing_is_said_where_nothing_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    own = [*OTHER, "optimizer.lr=1e-3", "optimizer.weight_decay=0.01"]
    lines = [RECIPE, [*RECIPE, "optimizer=sgd"], ["optimizer=adamw"], own]
    warn_of_kept_options(parse_arguments([]), lines)
    assert capsys.readouterr().err == ""
