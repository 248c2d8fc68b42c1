"""The config that a run directory holds, and what another command may change of it."""

from collections.abc import Iterator, Mapping
from typing import Any

from trainer.callbacks import CALLBACKS, check_callbacks
from trainer.config.schema import REGISTRIES, Config, LoopOptions
from trainer.options import Option, options_of, to_dict

BUDGET = ("max_epochs", "max_steps", "max_time", "patience")
"""The options of ``loop`` that say where a run ends."""


def differences(stored: Mapping[str, Any], config: Config) -> list[str]:
    """The options of a config that are not those of the run, though what is learnt depends on them.

    Args:
        stored: the frozen config of the run; what it leaves out has its default.
        config: of the command.

    Returns:
        For each its name with both values.
    """
    return [
        f"{name}={_text(then)} there, {_text(now)} here"
        for name, then, now in _walk(options_of(Config), stored, to_dict(config))
        if name != "checkpoint.resume" or {then, now} != {"auto", "none"}
    ]


def budget_changes(stored: Mapping[str, Any], config: Config) -> list[str]:
    """How the budget of a config, and what ends its run before, differ from those of the run, option by option."""
    then = stored.get("loop") or {}
    options, loop = options_of(LoopOptions), to_dict(config.loop)
    changes = [
        (f"loop.{name}", then.get(name, options[name].default), loop[name])
        for name in BUDGET
        if loop[name] != then.get(name, options[name].default)
    ]
    callbacks = check_callbacks(stored.get("callbacks") or {})
    for name in {**callbacks, **config.callbacks}:
        if CALLBACKS.get(name).tags.get("ends_run"):
            changes += _walk_callback(name, callbacks, config.callbacks)
    return [f"{name}={_text(new)} instead of {_text(old)}" for name, old, new in changes]


def _walk(
    options: Mapping[str, Option], then: Any, now: Mapping[str, Any], where: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """The options that differ: name, value of the run, value of the command."""
    then = then if isinstance(then, Mapping) else {}
    for name, option in options.items():
        full = f"{where}.{name}" if where else name
        old, new = then.get(name, option.default), now[name]
        if option.may_differ:
            continue
        if name in REGISTRIES and not where:
            yield from _walk_component(name, old, new)
        elif name == "callbacks" and not where:
            yield from _walk_callbacks(check_callbacks(old or {}), new)
        elif isinstance(option.type, type) and isinstance(new, Mapping) and option.type is not dict:
            yield from _walk(options_of(option.type), old, new, full)
        elif _plain(option.compared(old)) != _plain(option.compared(new)):
            yield full, old, new


def _walk_component(group: str, then: Any, now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    old = then.get("name") if isinstance(then, Mapping) else then
    if old != now["name"]:
        yield group, old, now["name"]
    else:
        registry = REGISTRIES[group]
        yield from _walk({**registry.common, **registry.get(now["name"]).options}, then, now, group)


def _walk_callbacks(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in {**then, **now}:
        if not CALLBACKS.get(name).tags.get("may_differ"):
            yield from _walk_callback(name, then, now)


def _walk_callback(
    name: str, then: Mapping[str, Any], now: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    full = f"callbacks.{name}"
    if name in then and name in now:
        yield from _walk(CALLBACKS.get(name).options, then[name], now[name], full)
    else:
        yield full, name in then, name in now


def _plain(value: Any) -> Any:
    """A value as YAML gives it back."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _text(value: Any) -> str:
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(_plain(value))


def optimizer_differences(stored: Mapping[str, Any], config: Config) -> list[str]:
    """What makes an optimizer another one than that of a stored config: its name, and options that are no numbers."""
    then = stored.get("optimizer")
    return [
        f"{name}={_text(old)} there, {_text(new)} here"
        for name, old, new in _walk_component("optimizer", then, config.optimizer)
        if name == "optimizer"
        or (name.partition(".")[2] not in REGISTRIES["optimizer"].common and not _is_setting(old, new))
    ]


def _is_setting(*values: Any) -> bool:
    return not any(isinstance(value, bool | str) for value in values)
