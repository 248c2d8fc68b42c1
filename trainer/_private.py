"""Private parts of other packages, all in one place: what each is needed for, with no public way to do it.

`tests/test_private.py` holds them to the names and signatures that are used. Each is imported when it is called, so
that who needs one does not load the others' packages.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.tensorboard import SummaryWriter

# torch


def unflatten_state_dict(flat: Mapping[str, Any], paths: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """A nested state dict from the flat one that a checkpoint holds, as torch's own planner makes it.

    The public ``dcp.load`` does it only into a state dict that has all entries already; a checkpoint is read here
    without one.
    """
    from torch.distributed.checkpoint._nested_dict import unflatten_state_dict

    return unflatten_state_dict(dict(flat), dict(paths))


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """A nested structure with the function applied to its leaves: torch has no public module of pytrees."""
    from torch.utils._pytree import tree_map

    return tree_map(function, tree)


def worker_shutdown(batches: Iterator[Any]) -> Callable[[], None]:
    """What ends the worker processes of a DataLoader's iterator, which else end only when it is deleted."""
    shutdown: Callable[[], None] = batches._shutdown_workers  # type: ignore[attr-defined]
    return shutdown


def event_file_writer(writer: "SummaryWriter") -> Any:
    """What writes a SummaryWriter's events: plugin data of its own kind cannot be added in another way."""
    return writer._get_file_writer()


def is_batch_or_instance_norm(module: "nn.Module") -> bool:
    """Whether a layer is one of torch's batch or instance norms: they share a base, which has no public name."""
    from torch.nn.modules.batchnorm import _NormBase

    return isinstance(module, _NormBase)


# submitit

SUBMITIT_WORKER = "submitit.core._submit"
"""The module that a submitted job executes: it stands in the script that ``script`` shows without submitting it."""


def sbatch_script(command: str, folder: Path, parameters: Mapping[str, Any]) -> str:
    """The script that submitit would hand to sbatch: its public way is to submit it."""
    from submitit.slurm.slurm import _make_sbatch_string

    return _make_sbatch_string(command=command, folder=folder, **parameters)
