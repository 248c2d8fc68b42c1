"""``python -m trainer.generate RUN "text"``: a run's language model goes on with a text."""

import sys
from argparse import Namespace
from typing import Any

import torch
from torch import Tensor

from trainer.cli.common import Parser, count, exit_code, nonnegative
from trainer.cli.stored_run import TrainedModel, add_override_argument, add_run_arguments, open_model
from trainer.errors import ConfigError
from trainer.models.base import CachingModel
from trainer.rundir.status import FINISHED
from trainer.training.generation import generate


def parser() -> Parser:
    """The command line's options."""
    parser = Parser(
        prog="python -m trainer.generate",
        description="Prints a text and its continuation by a run's language model, in the tokens of the run's data.",
    )
    add_run_arguments(parser, ema="write with the averaged weights")
    parser.add_argument("text", help="to go on with")
    parser.add_argument(
        "--tokens", type=count, default=200, metavar="N", help="how many to write (%(default)s)"
    )
    parser.add_argument(
        "--temperature",
        type=nonnegative,
        default=1.0,
        metavar="T",
        help="logits are divided by it: below 1 the likely is likelier, 0 takes the likeliest (%(default)s)",
    )
    parser.add_argument(
        "--top-k", type=count, metavar="K", help="draw from the K likeliest tokens (default: from all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (%(default)s)")
    add_override_argument(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit code."""
    return exit_code(lambda: run(parser().parse_args(argv)))


def run(args: Namespace) -> int:
    """Writes the text; returns the exit code.

    Raises:
        UserError: there is no such run, its model writes no text, or the text has what the vocabulary lacks.
    """
    print(continuation(open_model(args), args))
    return FINISHED


def continuation(trained: TrainedModel, args: Namespace) -> str:
    """The text and how the model goes on with it.

    Raises:
        ConfigError: the model writes no text, or the text is empty or has what the vocabulary lacks.
    """
    config, data, model = trained.config, trained.data, trained.model
    if trained.logits_of != "tokens":
        raise ConfigError(f"trainer.generate needs a language model: model={config.model['name']} is none")
    if data.encode is None or data.decode is None:
        raise ConfigError(f"trainer.generate needs text: the tokens of data={config.data['name']} are none")
    try:
        prompt = data.encode(args.text)
    except ValueError as error:
        raise ConfigError(f"the text {args.text!r} {error}") from None
    if not len(prompt):
        raise ConfigError("the text is empty: give at least one character to go on with")

    @torch.inference_mode()
    def outputs(*inputs: Any) -> Tensor:
        with trained.precision.autocast():
            logits: Tensor = model(*inputs)
            return logits

    tokens = generate(
        outputs,
        prompt.to(trained.device),
        args.tokens,
        data.model_defaults,
        torch.Generator().manual_seed(args.seed % 2**63),
        model.new_cache() if isinstance(model, CachingModel) else None,
        temperature=args.temperature,
        top_k=args.top_k,
    )
    return data.decode(tokens.cpu())


if __name__ == "__main__":
    sys.exit(main())
