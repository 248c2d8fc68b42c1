"""The run directories of a comparison, each with its frozen config before the run is started."""

from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer.compare.contenders import Contender, Options, variant
from trainer.config.compose import file_name, resolve
from trainer.config.schema import Config
from trainer.errors import ConfigError, UserError
from trainer.options import to_dict
from trainer.rundir.files import CONFIG
from trainer.rundir.frozen_config import freeze


@dataclass(frozen=True)
class PlannedRun:
    """A run whose config is frozen in its directory."""

    path: Path
    label: str
    seconds: float | None
    """Its budget of training seconds; None: it has another budget."""
    config: Config
    """Of the run."""
    untuned: Config
    """The same with the contender's own options of the optimizer."""


def plan(place: Path, each: Contender, options: Options, seed: int, seconds: float | None) -> PlannedRun:
    """A run of a contender, with its config frozen in its directory if it is not there yet.

    Args:
        place: the first part of its directory's path, which ends in a number: no two runs have the same.
        each: the contender.
        options: of the optimizer, in place of the contender's.
        seed: of the run.
        seconds: its budget; None: that of the contender's config.

    Raises:
        UserError: there is another run in its directory.
    """
    words = words_of(options, seed)
    path = run_path(place, each, options, seed)
    config = variant(each.config, options, seed, seconds)
    if not (path / CONFIG).exists():
        budget = [] if seconds is None else [f"loop.max_time={seconds}"]
        overrides = [*each.overrides, *(f"optimizer.{word}" for word in words[:-1]), words[-1], *budget]
        path.mkdir(parents=True, exist_ok=True)
        freeze(path, to_dict(config), overrides)
    elif not is_of(config, frozen_config(path)):
        raise UserError(f"{path} holds another run than that of this comparison: move it away")
    untuned = variant(each.config, {}, seed, seconds)
    return PlannedRun(path, " ".join([each.label, *words]), seconds, config, untuned)


def is_of(config: Config, frozen: Config | None) -> bool:
    """Whether a frozen config is that of a planned run, which puts there the micro-batches that ``auto`` has found, and
    that it resumes from then on.
    """
    if frozen is None:
        return False
    loop, checkpoint = config.loop, config.checkpoint
    if loop.accumulate == "auto":
        loop = replace(loop, accumulate=frozen.loop.accumulate)
    if checkpoint.resume == "none":
        checkpoint = replace(checkpoint, resume=frozen.checkpoint.resume)
    return frozen == replace(config, loop=loop, checkpoint=checkpoint)


def run_path(place: Path, each: Contender, options: Options, seed: int) -> Path:
    """The directory of a run; the arguments are those of `plan`."""
    return place.with_name(f"{place.name}_{file_name(','.join([each.label, *words_of(options, seed)]))}")


def words_of(options: Options, seed: int) -> list[str]:
    """What tells a run of a contender from its others."""
    return [*(f"{key}={value}" for key, value in options.items()), f"seed={seed}"]


def frozen_config(path: Path) -> Config | None:
    """The config in a run's directory; None if it cannot be read as one."""
    try:
        values = yaml.safe_load((path / CONFIG).read_text())
        return resolve(OmegaConf.create(values)) if isinstance(values, dict) else None
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException, ConfigError):
        return None
