"""Every optimizer of the pytorch-optimizer package that trains with an ordinary loop."""

import inspect
from typing import Any

from torch import nn
from torch.optim import Optimizer

from trainer.errors import ConfigError, MissingExtra, nearest, one_line
from trainer.optim.base import OPTIMIZERS, Groups, is_sharded
from trainer.optim.muon import split_matrices
from trainer.options import NonNegative

CREATE_GRAPH = {"adahessian", "sophiah"}
"""Those that differentiate the gradient once more."""

MUONS = {"adago", "adamuon", "muon", "muonclip", "normuon"}
"""Those that read from ``use_muon`` which groups are matrices."""

_CLOSURE = "step() needs a closure that computes the loss again"
_MODEL = "it takes the model instead of its parameters"
_EVAL = "its weights must be switched by eval() and train() around each evaluation"
_OBJECTS = "it keeps Python objects, which a checkpoint does not hold"

UNSUPPORTED = {
    "a2grad": "it has no learning rate",
    "adalomo": "it updates inside the backward pass",
    "adammini": _MODEL,
    "alig": _CLOSURE,
    "bsam": _CLOSURE,
    **dict.fromkeys(("sam", "friendlysam", "gsam", "looksam", "wsam"), _CLOSURE),
    "conda": _OBJECTS,
    "demo": "it exchanges the gradients between ranks itself",
    "distributedmuon": "it exchanges the gradients between ranks itself",
    "lbfgs": _CLOSURE,
    "lomo": "it updates inside the backward pass",
    "lorarite": "it takes pairs of low-rank matrices only",
    "magma": "it wraps another optimizer",
    "scalableshampoo": _OBJECTS,
    "schedulefreeadamw": _EVAL,
    "schedulefreeradam": _EVAL,
    "schedulefreesgd": _EVAL,
    "spectralsphere": "it takes matrices only, and models have biases and norms too",
    "splus": _EVAL,
}
"""Those that an ordinary loop of forward, backward, step cannot train, and why."""

# fmt: off
SHARDABLE = {
    "accsgd", "adabelief", "adabound", "adadelta", "adai", "adam", "adamax", "adamc", "adamg", "adamod",
    "adams", "adamuon", "adamw", "adamwsn", "adapnm", "ademamix", "aggmo", "amos", "ano", "apollo", "bcos",
    "dualadam", "emolynx", "emonavi", "exadam", "fira", "focus", "fromage", "galore", "grams", "grokfastadamw",
    "kate", "laprop", "lion", "madgrad", "msvag", "muon", "muonclip", "nadam", "padam", "pid", "pnm", "qhm",
    "radam", "rmsprop", "sgd", "sgdw", "signsgd", "simplifiedademamix", "tiger", "vsgd", "yogi",
}
# fmt: on
"""Those that were seen to train shards as whole parameters, and to go on to the bit (the trial ``FSDP2`` of
tests/optim/trials.py). The others fail in a step, or take the norms and matrices of shards for those of parameters."""


@OPTIMIZERS.register("pytorch_optimizer")
def pytorch_optimizer(
    model: nn.Module,
    params: Groups,
    *,
    algorithm: str = "soap",
    lr: NonNegative | None = None,
    weight_decay: NonNegative | None = None,
    options: dict[str, Any] = {},  # noqa: B006 (an option's default; it is copied, never changed)
) -> Optimizer:
    """Builds the optimizer that ``pytorch_optimizer.load_optimizer(algorithm)`` names.

    Args:
        model: read by algorithms that treat hidden matrices in their own way.
        params: groups of named parameters.
        algorithm: its name, in any case.
        lr, weight_decay: None is the algorithm's default.
        options: its other arguments; those left out have the algorithm's defaults.

    Raises:
        MissingExtra: the package is not installed.
        ConfigError: the algorithm is unknown, needs more than an ordinary loop or whole parameters, or does not take
            an option.
    """
    try:
        from pytorch_optimizer import get_supported_optimizers, load_optimizer
    except ImportError:
        raise MissingExtra("optimizer=pytorch_optimizer", "pytorch-optimizer", "zoo") from None
    name = algorithm.lower()
    if name in UNSUPPORTED:
        raise ConfigError(f"optimizer.algorithm={algorithm} is not supported: {UNSUPPORTED[name]}")
    if name not in get_supported_optimizers():
        known = set(get_supported_optimizers()) - UNSUPPORTED.keys()
        raise ConfigError(f"unknown optimizer.algorithm={algorithm}{nearest(name, known)}")
    optimizer_class = load_optimizer(name)
    if (
        is_sharded(params) and name not in SHARDABLE | CREATE_GRAPH
    ):  # the latter are refused parallel=ddp, too
        raise ConfigError(
            f"optimizer.algorithm={algorithm} does not train sharded parameters: use parallel=ddp"
        )
    given = _accepted(algorithm, optimizer_class, lr, weight_decay, options)
    try:
        optimizer = optimizer_class(split_matrices(model, params) if name in MUONS else params, **given)
    except Exception as error:  # each algorithm checks its own options in its own way
        raise ConfigError(f"optimizer.algorithm={algorithm}: {one_line(error)}") from error
    optimizer.needs_create_graph = name in CREATE_GRAPH  # type: ignore[attr-defined]
    return optimizer


def _accepted(
    algorithm: str, target: type, lr: float | None, weight_decay: float | None, options: dict[str, Any]
) -> dict[str, Any]:
    """The keyword arguments for the algorithm, which must take every one of them."""
    signature = list(inspect.signature(target).parameters.values())[1:]  # the first takes the parameters
    taken = {p.name: p for p in signature if p.kind is not p.VAR_KEYWORD}
    own = {"lr": lr, "weight_decay": weight_decay}
    for key in options:
        if key in own:
            raise ConfigError(f"optimizer.options.{key} is set twice: use optimizer.{key} only")
        if key not in taken:
            known = nearest(key, taken.keys() - own.keys())
            raise ConfigError(f"unknown option optimizer.options.{key} of {algorithm}{known}")
    for key, value in own.items():
        if value is not None and key not in taken:
            raise ConfigError(f"{algorithm} has no {key}: leave optimizer.{key} null")
    given = {key: value for key, value in own.items() if value is not None} | options
    if missing := [p.name for p in taken.values() if p.default is p.empty and p.name not in given]:
        raise ConfigError(f"{algorithm} needs optimizer.options.{missing[0]}")
    return given
