"""Hydra's command line: flags and overrides, parsed but not yet composed."""

import argparse
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from trainer._private import get_args_parser
from trainer.errors import ConfigError

CONF = Path(__file__).resolve().parents[2] / "conf"
"""The directory of the config groups."""


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Parses Hydra's command line: overrides and ``--multirun``, ``--cfg``, ``--config-dir`` and so on.

    Raises:
        ConfigError: a flag is unknown or lacks its value.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise ConfigError(
            f"{message} (flags: --help --hydra-help --cfg --multirun --config-dir --config-path)"
        )

    parser.error = refuse
    args = parser.parse_args(argv)
    args.overrides = join_dry_run(args.overrides)
    if args.config_path:
        args.config_path = str(Path(args.config_path).resolve())
        if not Path(args.config_path, f"{args.config_name or 'config'}.yaml").is_file():
            raise ConfigError(
                f"{args.config_path} has no {args.config_name or 'config'}.yaml: give a run directory"
            )
    return args


def join_dry_run(overrides: list[str]) -> list[str]:
    """Makes of ``dry_run.world_size=64`` a value of ``dry_run``, which may also be ``true``."""
    options = [
        o.removeprefix("dry_run.").replace("=", ": ", 1) for o in overrides if o.startswith("dry_run.")
    ]
    if not options:
        return overrides
    others = [o for o in overrides if not o.startswith(("dry_run.", "dry_run="))]
    return [*others, f"dry_run={{{', '.join(options)}}}"]


def parse_overrides(overrides: list[str]) -> list[Any]:
    """Parses overrides as Hydra does.

    Returns:
        Hydra's ``Override`` objects.

    Raises:
        ConfigError: one cannot be read.
    """
    try:
        return OverridesParser.create().parse_overrides(overrides)
    except OverrideParseException as error:
        raise ConfigError(f"cannot read {error.override!r}: {first_line(error)}; write key=value") from None


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message that is not empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
