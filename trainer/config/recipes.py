"""What a recipe of ``experiment=`` says of its own optimizer, and another one would take over."""

import argparse
import sys
from collections.abc import Collection, Iterable
from typing import Any

from omegaconf import OmegaConf

from trainer._private import Hydra
from trainer.config.command_line import parse_overrides
from trainer.config.compose import compose, hydra_session


def warn_of_kept_options(
    args: argparse.Namespace, runs: Iterable[list[str]], tuned: Collection[str] = ()
) -> None:
    """Prints a warning for each recipe whose optimizer options apply to another optimizer than its own.

    Args:
        args: the command line, for its flags.
        runs: the overrides of each run, which have been composed without a mistake.
        tuned: names of options, such as ``lr``, that are set later.
    """
    relevant = {run for overrides in runs if (run := tuple(of_recipe(overrides)))}
    if not relevant:
        return
    with hydra_session(args) as hydra:
        found = (kept_options(hydra, args, list(run), tuned) for run in sorted(relevant))
        for warning in dict.fromkeys(filter(None, found)):
            print(f"warning: {warning}", file=sys.stderr)


def of_recipe(overrides: list[str]) -> list[str]:
    """The overrides that choose a recipe and an optimizer and set options of that; none unless there are both."""
    keys = [override.key_or_group for override in parse_overrides(overrides)]
    if not {"experiment", "optimizer"} <= set(keys):
        return []
    texts = zip(overrides, keys, strict=True)
    return [text for text, key in texts if key.partition(".")[0] in ("experiment", "optimizer")]


def kept_options(
    hydra: Hydra, args: argparse.Namespace, overrides: list[str], tuned: Collection[str]
) -> str | None:
    """A sentence on what the recipe sets for its own optimizer and the chosen one keeps; None if that is nothing."""
    typed = {o.key_or_group: text for o, text in zip(parse_overrides(overrides), overrides, strict=True)}
    recipe, own = optimizer_of(hydra, args, [typed["experiment"]])
    chosen, usual = optimizer_of(hydra, args, [typed["optimizer"]])
    _, taken = optimizer_of(hydra, args, overrides)
    kept = [
        f"optimizer.{name}={value}"
        for name, value in taken.items()
        if value == own.get(name) and value != usual.get(name)
        if f"optimizer.{name}" not in typed and name not in tuned
    ]
    if recipe == chosen or not kept:
        return None
    return (
        f"{typed['experiment']} sets {', '.join(kept)} for optimizer={recipe}, and {typed['optimizer']} keeps it: "
        f"set what suits it"
    )


def optimizer_of(hydra: Hydra, args: argparse.Namespace, overrides: list[str]) -> tuple[str, dict[str, Any]]:
    """The optimizer that overrides lead to, by the name of its config file, and its options."""
    config = compose(hydra, args, overrides)
    options: Any = OmegaConf.to_container(config.optimizer)
    return config.hydra.runtime.choices.optimizer, options
