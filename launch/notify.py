"""One message when a sweep has ended, by apprise: to a phone, a chat, a mailbox, or whatever its URLs name."""

import json
import logging
import sys
import zlib
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launch.run_states import QueueEntry, RunState, state_of
from launch.sweep_dir import Sweep, read_sweep
from trainer.errors import ConfigError, MissingExtra, UserError, one_line
from trainer.formatting import printable
from trainer.rundir.status import STATES

MOST_REASONS = 10
"""Runs that a message lists with the reason why they have not finished."""


def check_urls(urls: Sequence[str]) -> None:
    """Refuses what cannot be sent to, without printing it: a URL holds secrets.

    Args:
        urls: of apprise; ``${oc.env:NAME}`` stands for the value of an environment variable.

    Raises:
        ConfigError: a variable is not set here, or apprise does not know such a URL.
        MissingExtra: apprise is not installed.
    """
    if not urls:
        return
    if find_spec("apprise") is None:
        raise MissingExtra("launch.notify", "apprise", "notify")
    from apprise import Apprise

    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    for number, url in enumerate(urls):
        if Apprise.instantiate(resolved(url, number)) is None:
            raise ConfigError(
                f"launch.notify[{number}] is wrong: it must be a URL that apprise knows, such as json://HOST/PATH; "
                "put it into double quotes"
            )


def resolved(url: str, number: int) -> str:
    """A URL with the values of environment variables in it.

    Raises:
        ConfigError: a variable is not set, or it refers to anything else.
    """
    try:
        return str(OmegaConf.to_container(OmegaConf.create([url]), resolve=True)[0])  # type: ignore[index]
    except OmegaConfBaseException:
        raise ConfigError(
            f"launch.notify[{number}] is wrong: it refers to an environment variable that is not set"
        ) from None


def notify_once(directory: Path) -> None:
    """Sends the message from a Slurm job, if all runs have ended and no other job has sent it for the same jobs.

    Each job comes here after it has written how its runs ended, so that the last one sees all of them.

    Args:
        directory: of the sweep.
    """
    try:
        sweep = read_sweep(directory)
        if sweep.options.notify and have_ended(sweep):
            jobs = json.dumps([run.jobs for run in sweep.runs])
            (sweep.jobs / f"notified_{zlib.crc32(jobs.encode()):08x}").touch(exist_ok=False)
            notify(sweep)
    except FileExistsError:
        return
    except (UserError, OSError) as error:
        print(f"warning: launch.notify was not looked at: {one_line(error)}", file=sys.stderr)


def have_ended(sweep: Sweep) -> bool:
    """Whether no run waits, trains, or is preempted and will be started again."""
    states = {state.state for state in ended_states(sweep)}
    return not states & {"vanished", "unknown"} and not (sweep.options.max_requeues and "preempted" in states)


def ended_states(sweep: Sweep) -> list[RunState]:
    """The states of the runs as their files have them; one that has not ended is vanished."""
    return [state_of(sweep, run, QueueEntry(None)) for run in sweep.runs]


def notify(sweep: Sweep) -> None:
    """Sends a message on the end of a sweep to each URL; what cannot be sent is one line of warning."""
    if not sweep.options.notify:
        return
    title, body, is_success = message(sweep, ended_states(sweep))
    for number, url in enumerate(sweep.options.notify):
        try:
            sent = send(resolved(url, number), title, body, is_success)
            reason = "it was not accepted, or nobody answered"
        except ConfigError as error:
            sent, reason = False, str(error)
        except Exception as error:  # of a plugin of apprise; its words may contain the URL
            sent, reason = False, type(error).__name__
        if not sent:
            print(f"warning: launch.notify[{number}] got no message: {reason}", file=sys.stderr)


def message(sweep: Sweep, states: Sequence[RunState]) -> tuple[str, str, bool]:
    """Title and text on the end of a sweep, and whether all runs have finished."""
    counts = Counter(state.state for state in states)
    summary = ", ".join(f"{counts[name]} {name}" for name in STATES if counts[name])
    others = [state for state in states if state.state != "finished"]
    lines = [f"{state.name}: {state.state}{f', {state.reason}' if state.reason else ''}" for state in others]
    more = [f"and {len(lines) - MOST_REASONS} more"] if len(lines) > MOST_REASONS else []
    body = [str(sweep.path), *lines[:MOST_REASONS], *more]
    return printable(f"{sweep.path.name}: {summary}"), "\n".join(map(printable, body)), not others


def send(url: str, title: str, body: str, is_success: bool) -> bool:
    """Sends a message to a URL of apprise; whether it was accepted."""
    from apprise import Apprise, NotifyFormat, NotifyType

    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)  # it logs URLs
    service = Apprise.instantiate(url)
    if service is None:
        return False
    services = Apprise()
    services.add(service)
    kind = NotifyType.SUCCESS if is_success else NotifyType.FAILURE
    return bool(services.notify(body=body, title=title, notify_type=kind, body_format=NotifyFormat.TEXT))
