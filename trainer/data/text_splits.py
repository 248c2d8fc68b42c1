"""Text that comes in files of its own for training, validation and test, as WikiText-2 and Penn Treebank do."""

from pathlib import Path

import torch

from trainer.data.base import DATA, Data
from trainer.data.text import encode_all, pack, read_file, split_of
from trainer.errors import ConfigError, DataError
from trainer.options import Count

SPLITS = ("train", "val", "test")


@DATA.register("text_splits")
def text_splits(
    device: torch.device,
    seed: int,
    *,
    path: str | tuple[str, str, str] | None = None,
    tokenizer: str = "chars",
    context_length: Count = 256,
) -> Data:
    """Three files; ``val`` picks the best checkpoint, and ``test`` is what is reported.

    Args:
        path: a folder of three files whose names say train, valid (or val, dev) and test, or these files in this order.
        tokenizer: as of the data set ``text``; the vocabulary of ``chars`` is that of all three files.
        context_length: tokens of a sample. What is left over at the end of a file is neither trained nor evaluated on.
    """
    if path is None:
        raise ConfigError(
            "data.path is required: a folder with the files train, valid and test, or the three files"
        )
    files = find_splits(Path(path)) if isinstance(path, str) else [Path(file) for file in path]
    sequences, *vocabulary = encode_all([read_file(file) for file in files], tokenizer, str(path))
    return pack(dict(zip(SPLITS, sequences, strict=True)), vocabulary, context_length, str(path), device)


def find_splits(folder: Path) -> list[Path]:
    """The files of a folder for training, validation and test.

    Raises:
        DataError: it has not exactly one of each.
    """
    found: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if file.is_file() and (split := split_of(file)):
            found[split].append(file)
    for split, files in found.items():
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "no file"
            raise DataError(
                f"data.path={folder} has {names} for the split {split}: give a folder with one file for each of train, "
                f"valid and test, or the three files as data.path=[TRAIN,VALID,TEST]"
            )
    return [files[0] for files in found.values()]
