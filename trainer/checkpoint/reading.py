"""Reading a checkpoint: nothing in it is executed, whoever wrote it."""

import json
import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.tensor import DTensor

from trainer.checkpoint.encoding import DTYPES, Place, decode, tensor_places
from trainer.checkpoint.manifest import Damaged, failure, read_manifest, verify
from trainer.checkpoint.state import TrainState
from trainer.checkpoint.writing import RANDOM, VALUES
from trainer.errors import CheckpointError, MachineError, one_line

METADATA_PARTS = {
    "torch": {"Size", "device"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
}
"""By module, all that the metadata of torch.distributed.checkpoint consists of, besides data types."""


class MetadataUnpickler(pickle.Unpickler):
    """Unpickles the metadata of torch.distributed.checkpoint and refuses all else, which could execute code."""

    def find_class(self, module: str, name: str) -> Any:
        """A class that the metadata consists of, or a data type.

        Raises:
            UnpicklingError: it is another.
        """
        if name in METADATA_PARTS.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        raise pickle.UnpicklingError(f"its metadata names {module}.{name}, which does not belong there")


class Reader(dcp.FileSystemReader):
    """Reads the files of a manifest, and metadata with a `MetadataUnpickler`."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(checkpoint)
        self._checkpoint = checkpoint

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """The metadata of the checkpoint.

        Raises:
            UnpicklingError: it is something else, or leads to a file that the manifest does not name.
        """
        with (self._checkpoint / ".metadata").open("rb") as file:
            metadata = MetadataUnpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError("it has no metadata")
        files = {info.relative_path for info in (metadata.storage_data or {}).values()}
        if unknown := files - read_manifest(self._checkpoint).keys():
            raise pickle.UnpicklingError(f"its manifest does not name {min(map(str, unknown))}")
        return metadata


def read_verified(checkpoint: Path, state: TrainState | None = None, part: str = "") -> dict[str, Any]:
    """What `read` returns, of a checkpoint whose checksums hold.

    Raises:
        CheckpointError: it is damaged.
        UserError: it has another format.
        MachineError: it cannot be read.
    """
    try:
        verify(checkpoint)
    except Damaged as damage:
        raise CheckpointError(f"{checkpoint} is damaged: {damage}") from None
    except (OSError, MemoryError) as error:
        raise MachineError(f"{checkpoint} cannot be read: {failure(error)}") from None
    return read(checkpoint, state, part)


def read(checkpoint: Path, state: TrainState | None = None, part: str = "") -> dict[str, Any]:
    """What was written, in fresh memory on the CPU: nothing has changed when this raises.

    Args:
        checkpoint: its directory; its checksums hold.
        state: tensors that are sharded in it are read in the same shards; all others, and all without it, as a whole.
        part: the entry to read, such as ``model``; left out, all.

    Raises:
        MachineError: it cannot be read.
    """
    try:
        return _read(checkpoint, state, part)
    except (Exception, CheckpointException) as error:
        below = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        cause = f"{type(below).__name__}: {one_line(below)[:200]}"
        raise MachineError(f"{checkpoint} cannot be read, though its checksums hold: {cause}") from error


def _read(checkpoint: Path, state: TrainState | None, part: str) -> dict[str, Any]:
    reader = Reader(checkpoint)
    stored = reader.read_metadata().state_dict_metadata
    values = json.loads((checkpoint / VALUES).read_bytes())
    if part:
        values = {part: values[part]} if part in values else {}
    ours = state.tensors() if state else {}
    tensors = {
        name: _allocate_like(stored[name], _template_for(ours, place), order)
        for name, place, order in tensor_places(values)
    }
    if not part:
        tensors |= {name: _allocate_like(stored[name], None) for name in stored if name.startswith(RANDOM)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    content = decode(values, tensors)
    if not part:
        content[RANDOM] = {
            name.removeprefix(f"{RANDOM}/"): json.loads(tensor.numpy().tobytes())
            for name, tensor in tensors.items()
            if name.startswith(RANDOM)
        }
    return content


def _template_for(ours: Mapping[str, Any], place: Place) -> Any:
    """What a state has in a place; for what an optimizer has not made yet, the parameter that it belongs to."""
    value: Any = ours
    for key in place:
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None and place[:2] == ("optimizer", "state"):
        return ours.get("model", {}).get(place[2])
    return value


def _allocate_like(entry: Any, template: Any, order: Sequence[int] | None = None) -> Tensor:
    """Memory for a saved tensor, with its axes in the same order; a shard where its template is one."""
    if not isinstance(entry, TensorStorageMetadata):
        raise pickle.UnpicklingError("its metadata holds something else than tensors")
    dtype, size = entry.properties.dtype, entry.size
    if not isinstance(template, DTensor) or template.shape != size:
        order = order or range(len(size))
        places = [order.index(axis) for axis in range(len(size))]
        return torch.empty([size[axis] for axis in order], dtype=dtype).permute(places)
    shard = torch.empty(template.to_local().shape, dtype=dtype)
    return DTensor.from_local(
        shard,
        template.device_mesh,
        template.placements,
        run_check=False,
        shape=template.shape,
        stride=template.stride(),
    )
