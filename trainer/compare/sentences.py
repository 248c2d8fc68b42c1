"""Sentences on how a comparison was made, for its report."""

import shlex
from collections.abc import Sequence

from trainer.compare.arguments import Command
from trainer.compare.contenders import Options
from trainer.compare.tuning import Cost, Tuned
from trainer.formatting import duration, percent


def protocol_sentences(
    command: Command, seconds: float | None, tuned: Tuned, untuned: Sequence[str]
) -> list[str]:
    """All of them.

    Args:
        command: the comparison.
        seconds: the budget of each contender; None: that of its config.
        tuned: what the tuning has found.
        untuned: labels of contenders that are not compared, since their trials failed.
    """
    if seconds is None:
        sentences = ["Each contender had the budget of its own config."]
    else:
        sentences = [
            f"Each contender trained for {seconds:g} s, as long as {command.reference} took for its budget."
        ]
    if command.trials_of_each:
        metric = tuned.curves[0].metric.name if tuned.curves else "the validation split"
        sentences.append(
            f"{' and '.join(command.tuned_options)} of each: the best of {command.trials_of_each} trials by {metric}, "
            f"with seed {command.tuning_seed}, on {command.contenders[0].config.loader.holdout:.0%} of the "
            f"training set, held out in all runs."
        )
    if command.search:
        sentences.append(command.search.sentence())
    elif tuned.best:
        found = [f"{name} {options_text(options)}" for name, options in sorted(tuned.best.items())]
        sentences.append(f"The best: {', '.join(found)}.")
    sentences += [search_sentence(name, tuned.best.get(name), cost) for name, cost in tuned.costs.items()]
    sentences += [failed_trials(name) for name in untuned]
    return [*sentences, f"Command: python -m trainer.compare {shlex.join(command.words)}"]


def search_sentence(name: str, best: Options | None, cost: Cost) -> str:
    """What the search of a contender has found, and what it has cost.

    Args:
        name: the contender's label.
        best: its best options; None: no trial finished.
        cost: of its search.
    """
    found = options_text(best) if best else "nothing"
    trials = f"{cost.trials} trials in {duration(cost.seconds)} of training"
    pruned = f"{cost.pruned} pruned, with {percent(cost.pruned_share)} of the training time"
    return f"{name}: {found}; {trials}, {pruned}, {cost.failed} failed."


def options_text(options: Options) -> str:
    """``lr=0.01 momentum=0.9``."""
    return " ".join(f"{key}={value}" for key, value in options.items())


def failed_trials(label: str) -> str:
    """A sentence on a contender that is not compared."""
    return f"{label} is not compared, since all of its trials failed."
