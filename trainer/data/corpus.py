"""Token shards, one folder or a mixture of several, as samples of a fixed length in a pseudo-random order."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from trainer.data.base import DATA, Batch, Data, LazySplit, OrderedSplit, Split
from trainer.data.mixture import PARTS, Schedule
from trainer.data.random import mix, permute
from trainer.data.shards import TOKENIZER_FILE, TokenShards
from trainer.data.tokenizers import Tokenizer, load_tokenizer
from trainer.errors import ConfigError, DataError, UserError
from trainer.options import KEYS_MAY_DIFFER, MAY_DIFFER, Count, Positive, Range, check_value


@dataclass(frozen=True)
class Stretch:
    """Consecutive tokens of a folder, cut into samples of equal length without gaps."""

    shards: TokenShards
    start: int
    stop: int
    context_length: int

    def __len__(self) -> int:
        return max(0, self.stop - self.start - 1) // self.context_length

    def divide(self, share: float) -> tuple["Stretch", "Stretch"]:
        """The stretch without its end, and its end, which is that share of its tokens.

        Raises:
            DataError: there is not one sample in each.
        """
        cut = self.stop - round((self.stop - self.start) * share)
        parts = replace(self, stop=cut), replace(self, start=cut)
        if not all(parts):
            raise DataError(
                f"{self.shards.folder}: {self.stop - self.start:,} tokens leave no sample of data.context_length + 1 = "
                f"{self.context_length + 1} to each of training and validation: tokenize more, or take a shorter "
                "context or another share"
            )
        return parts


class TokenSamples(LazySplit):
    """The samples of stretches, one after the other, read when they are asked for."""

    def __init__(self, stretches: Sequence[Stretch], device: torch.device) -> None:
        self.stretches = stretches
        self.device = device
        self.sizes = np.array([len(stretch) for stretch in stretches])
        self.firsts = np.cumsum(self.sizes) - self.sizes
        """The number of each stretch's first sample."""
        starts = np.array([stretch.start for stretch in stretches])
        self._shifts = starts - self.firsts * stretches[0].context_length
        """Of each stretch, what is to be added to a sample's number times its length for its first token."""

    def __len__(self) -> int:
        return int(self.sizes.sum())

    def read(self, indices: Tensor, key: int | None) -> Batch:
        """Reads tokens and the tokens after each of them, int32 [B, T] each."""
        first, numbers = self.stretches[0], indices.numpy()
        tokens = np.empty((len(numbers), first.context_length + 1), dtype=first.shards.dtype)
        sources = np.searchsorted(self.firsts, numbers, side="right") - 1
        starts = numbers * first.context_length + self._shifts[sources]
        content, size = tokens.reshape(-1).view(np.uint8).data, tokens[:1].nbytes
        for place, source, start in zip(count(0, size), sources.tolist(), starts.tolist(), strict=False):
            self.stretches[source].shards.read(start, content[place : place + size])
        both = torch.from_numpy(tokens.astype(np.int32))
        return both[:, :-1], both[:, 1:]

    def finish(self, inputs: Tensor, targets: Tensor) -> Batch:
        """Brings them to the device, as int64 [B, T] each."""
        return tuple(  # type: ignore[return-value]
            part.to(self.device, torch.int64, non_blocking=True).contiguous() for part in (inputs, targets)
        )


class Mixture(TokenSamples, OrderedSplit):
    """Samples of stretches in proportion to weights, each stretch in a new permutation after each pass through it.

    Args:
        stretches: of the sources.
        weights: of the sources.
        device: where batches go.

    Raises:
        ValueError: a weight is too small.
    """

    def __init__(self, stretches: Sequence[Stretch], weights: Sequence[float], device: torch.device) -> None:
        super().__init__(stretches, device)
        self.weights = weights
        self.schedule = Schedule(weights)

    def draw(self, seed: int, places: Tensor) -> Tensor:
        """Returns the numbers of the samples at these places; the sequence never ends."""
        sources, counts = self.schedule.draws(places.numpy())
        passes, within = np.divmod(counts, self.sizes[sources])
        numbers = np.empty_like(within)
        for source, number in set(zip(sources.tolist(), passes.tolist(), strict=True)):
            chosen = (sources == source) & (passes == number)
            order = permute(within[chosen], int(self.sizes[source]), mix(seed, source, number))
            numbers[chosen] = self.firsts[source] + order
        return torch.from_numpy(numbers)

    def hold_out(self, share: float) -> tuple[Split, Split]:
        """Returns the mixture without the end of each stretch, and these ends."""
        kept, held = zip(*(stretch.divide(share) for stretch in self.stretches), strict=True)
        return Mixture(kept, self.weights, self.device), TokenSamples(held, self.device)


@DATA.register("tokens")
def tokens(
    device: torch.device,
    seed: int,
    *,
    path: Annotated[str | None, MAY_DIFFER] = None,
    sources: Annotated[dict | None, KEYS_MAY_DIFFER] = None,
    context_length: Count = 1024,
    val_fraction: Annotated[float, Range(gt=0, lt=1)] = 0.01,
    document_mask: bool = False,
) -> Data:
    """Folders of token shards; the end of each is what is evaluated on.

    Args:
        path: one folder.
        sources: or several, each with its weight.
        document_mask: the model tells the documents of a sample apart.
    """
    if (path is None) == (not sources):
        raise ConfigError(
            "data.path=DIR or data.sources={DIR: WEIGHT, ...} is required: folders of token shards"
        )
    weights: dict[str, float] = {
        str(name): check_value(Positive, weight, f"data.sources: the weight of {name}")
        for name, weight in (sources or {path: 1.0}).items()
    }
    where = "data.sources: " if sources else "data.path="
    folders = [TokenShards(Path(name), where) for name in weights]
    first = folders[0].manifest
    for folder in folders[1:]:
        if folder.manifest.tokenizer_hash != first.tokenizer_hash:
            raise ConfigError(
                f"data.sources: {folder.folder} is not tokenized as {folders[0].folder} is "
                f"({folder.manifest.tokenizer}, {first.tokenizer}): use one tokenizer, in one version"
            )
    stretches = [Stretch(folder, 0, len(folder), context_length) for folder in folders]
    try:
        everything = Mixture(stretches, list(weights.values()), device)
    except ValueError as error:
        raise ConfigError(
            f"data.sources: {error}: leave out what is less than 1 of {PARTS} samples"
        ) from None
    train, val = everything.hold_out(val_fraction)
    facts = {"vocab_size": first.vocab_size, "context_length": context_length}
    if document_mask:
        facts["document_end"] = document_end(folders)
    text = SavedTokenizer(folders[0])
    return Data(
        train=train,
        evals={"val": val},
        model_defaults=facts,
        kind="tokens",
        encode=text.encode,
        decode=text.decode,
        fingerprint={
            f"tokens of source {number}": folder.manifest.fingerprint
            for number, folder in enumerate(folders, 1)
        },
    )


def document_end(folders: Sequence[TokenShards]) -> int:
    """The token that ends each document of all folders.

    Raises:
        ConfigError: there is no more than one document in any of them, or their tokens differ.
    """
    ends = {folder.manifest.end_token: folder.folder for folder in folders}
    if len(ends) > 1:
        one, other = (f"{folder} by token {end}" for end, folder in list(ends.items())[:2])
        raise ConfigError(f"data.document_mask=true: documents end in {one}, in {other}: use one --end-token")
    if all(folder.manifest.documents < 2 for folder in folders):
        raise ConfigError(
            f"data.document_mask=true: {folders[0].folder} has no documents to tell apart, it is one: leave it at false"
        )
    return next(iter(ends))


class SavedTokenizer:
    """The tokenizer of a folder of shards, loaded when it is first needed, which may take a second."""

    def __init__(self, shards: TokenShards) -> None:
        name, end = shards.manifest.tokenizer, shards.manifest.end_token
        self.name = str(shards.folder / name) if name == TOKENIZER_FILE else name
        self.load = cache(lambda: load_tokenizer(self.name, "tokenizer ", end))

    def encode(self, text: str) -> Tensor:
        """Text to tokens, int64 [T].

        Raises:
            UserError: the tokenizer cannot be loaded here.
        """
        return torch.tensor(np.asarray(self.load().encode([text])[0], dtype=np.int64))

    def decode(self, ids: Tensor) -> str:
        """Tokens to text; without the tokenizer, to their numbers, since showing samples must not end a run."""
        try:
            loaded: Tokenizer = self.load()
        except UserError as error:
            return f"({error})\n{ids.tolist()}"
        return loaded.decode(ids.tolist())
