"""``loop.accumulate=auto``: the fewest micro-batches whose memory fits, found by trial steps before a run begins."""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from trainer.config.schema import Config
from trainer.distributed.ranks import Ranks
from trainer.errors import ConfigError
from trainer.formatting import memory
from trainer.rundir.files import CONFIG
from trainer.rundir.frozen_config import read_frozen
from trainer.training.build import build, load_data, pick_device
from trainer.training.step import TrainStep

USABLE = 0.9
"""The share of a GPU's free memory that a run may plan with."""


class Peak(NamedTuple):
    """Bytes on the rank that needs most."""

    before: int
    """At the beginning of a step."""
    within: int
    """The most within one."""


def settle_accumulate(config: Config, run: Path | None, ranks: Ranks) -> Config:
    """The config with a number of micro-batches in place of ``auto``; all ranks call it.

    Args:
        config: of the run.
        run: its directory; a number that is in its frozen config stays.
        ranks: agree on the number.

    Raises:
        ConfigError: the batch does not divide into the ranks, or a single sample a rank does not fit.
    """
    if config.loop.accumulate != "auto":
        return config
    number = ranks.run_on_rank0(lambda: frozen_accumulate(run)) if run is not None else None
    if number is None:
        number = find_accumulate(config, ranks)
    return replace(config, loop=replace(config.loop, accumulate=number))


def frozen_accumulate(run: Path) -> int | None:
    """The number of micro-batches in a run's frozen config; None if there is none."""
    if not (run / CONFIG).exists():
        return None
    number = (read_frozen(run / CONFIG).get("loop") or {}).get("accumulate")
    return number if isinstance(number, int) else None


def find_accumulate(config: Config, ranks: Ranks) -> int:
    """The fewest micro-batches that fit, as `largest_fitting` tells; 1 where memory has no limit that torch knows."""
    device = pick_device(config.device, ranks)
    limits = [limit for limit in ranks.all_gather_object(usable_memory(device)) if limit is not None]
    local, rest = divmod(config.loader.batch_size, ranks.world_size)
    if not limits or rest or not local:  # an odd batch is refused by the loader
        return 1
    group = ranks.run_on_all(lambda: load_data(config, device).train.group)
    sizes = [size for size in range(group, local + 1, group) if local % size == 0]
    if not sizes:
        return 1
    size = largest_fitting(sizes, lambda size: trial(config, ranks, device, size), min(limits))
    if size is None:
        raise ConfigError(
            f"loop.accumulate=auto: not even one sample a rank fits into {memory(min(limits) / 2**20)}: "
            "try loop.activation_checkpointing=full, precision=bf16, parallel=fsdp or a smaller model"
        )
    return local // size


def usable_memory(device: torch.device) -> int | None:
    """The bytes of a GPU that this process may plan with; None on other devices."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return int(USABLE * (free + torch.cuda.memory_reserved(device)))


def largest_fitting(sizes: list[int], measure: Callable[[int], Peak], limit: int) -> int | None:
    """The largest size whose peak is within a limit; None if that of the smallest is not.

    A size is tried only if it will fit by what the sizes before show, since running out of memory on one of several
    ranks leaves the others waiting: peaks grow linearly, with all of a step's memory at first, then as the last two.

    Args:
        sizes: ascending.
        measure: gives the peak of a size.
        limit: bytes.
    """
    fitting = None
    points: list[tuple[int, int]] = []
    for size in sizes:
        if points:
            (x0, y0), (x1, y1) = points[-2:]
            if y1 + (size - x1) * max(0, y1 - y0) / (x1 - x0) > limit:
                break
        peak = measure(size)
        if peak.within > limit:
            break
        fitting = size
        points = [*(points or [(0, peak.before)]), (size, peak.within)]
    return fitting


def trial(config: Config, ranks: Ranks, device: torch.device, size: int) -> Peak:
    """The memory of two steps with micro-batches of that many samples a rank, of parts that are thrown away.

    Raises:
        ConfigError: a micro-batch of one sample does not fit.
    """
    local = config.loader.batch_size // ranks.world_size
    number = min(2, local // size)  # with more, each is like the second
    small = replace(
        config,
        data={**config.data, "batch_size": number * size * ranks.world_size},
        loop=replace(config.loop, accumulate=number),
    )
    parts = step = None
    try:
        parts = build(small, ranks)
        step = TrainStep(parts)
        step()
        before = torch.cuda.memory_allocated(device)
        step()
        own = (before, torch.cuda.max_memory_reserved(device))
    except torch.OutOfMemoryError:  # on one rank of several: its end is that of all
        raise ConfigError(
            f"loop.accumulate=auto: {size} samples a rank do not fit, set it to a number"
        ) from None
    finally:
        if parts is not None:
            parts.state.loader.close()
        parts = step = None
        if (
            config.loop.compile
        ):  # else the run's own batches would make the compiler take their size for a variable
            torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    peaks = ranks.all_gather_object(own)
    return Peak(max(peak[0] for peak in peaks), max(peak[1] for peak in peaks))
