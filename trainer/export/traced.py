"""A model as a program that runs without this package: by torch.export, or in the format ONNX.

Both take batches of any size, and language models texts of any length up to their context.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from trainer.cli.stored_run import TrainedModel
from trainer.errors import UserError, one_line
from trainer.rundir.files import atomic_path

TOLERANCE = 1e-5
"""Largest difference of an output from the model's, in units of the largest output if that is above 1."""


def write_torch_export(trained: TrainedModel, out: Path) -> float:
    """Writes a program that ``torch.export.load`` reads; returns its largest difference from the model.

    Raises:
        UserError: the model cannot be traced, the file cannot be written, or its outputs differ.
    """
    program = trace(trained)
    content = io.BytesIO()
    torch.export.save(program, content)
    with writing(out), atomic_path(out) as part:
        part.write_bytes(content.getvalue())
    loaded = torch.export.load(out).module()
    return largest_difference(trained, out, loaded)


def write_onnx(trained: TrainedModel, out: Path) -> float:
    """Writes an ONNX file; returns the largest difference from the model when onnxruntime runs it.

    Raises:
        UserError: the model cannot be traced or has no form in ONNX, the file cannot be written, or its outputs differ.
    """
    import onnxruntime  # a second, and an extra

    program = trace(trained)
    with quiet(), failing(trained, "ONNX"):
        converted = torch.onnx.export(program, example(trained, 2), dynamo=True, verbose=False)
    assert converted is not None
    with writing(out):
        converted.save(out)  # above 2 GB, weights go to a second file beside it
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    [name] = [each.name for each in session.get_inputs()]
    return largest_difference(
        trained, out, lambda inputs: torch.from_numpy(session.run(None, {name: inputs.numpy()})[0])
    )


def example(trained: TrainedModel, samples: int) -> tuple[Tensor]:
    """Inputs of the model: so many of the first samples that are evaluated."""
    split = next(iter(trained.data.evals.values()))
    numbers = torch.arange(samples) % len(split)
    return (split.batch(numbers, None)[0],)


def trace(trained: TrainedModel) -> ExportedProgram:
    """The model as torch.export sees it, for any size of the batch and any length of a text.

    Raises:
        UserError: it cannot be traced.
    """
    sizes = {0: Dim.AUTO, 1: Dim.AUTO} if trained.data.kind == "tokens" else {0: Dim.AUTO}
    with quiet(), failing(trained, "torch.export"):
        return torch.export.export(trained.model, example(trained, 2), dynamic_shapes=(sizes,), strict=False)


@torch.no_grad()
def largest_difference(trained: TrainedModel, out: Path, exported: Callable[[Tensor], Tensor]) -> float:
    """The largest difference of outputs from the model's, for one sample and for three.

    Raises:
        UserError: it is above `TOLERANCE`.
    """
    largest = 0.0
    for samples in (1, 3):
        (inputs,) = example(trained, samples)
        expected = trained.model(inputs)
        difference = (exported(inputs) - expected).abs().max().item()
        if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
            raise UserError(f"{out} was written, but its outputs differ from the model's by {difference:.2g}")
        largest = max(largest, difference)
    return largest


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A context in which torch does not tell what it does: its warnings are about its own code."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def failing(trained: TrainedModel, what: str) -> Iterator[Any]:
    """A context whose errors, of which torch has many, say in one line that the model cannot be exported.

    Raises:
        UserError: anything failed.
    """
    try:
        yield
    except Exception as error:
        cause = f"{type(error).__name__}: {one_line(error)[:200]}"
        raise UserError(f"model={trained.config.model['name']} has no form in {what}: {cause}") from error


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """A context in which a file is written.

    Raises:
        UserError: it cannot be.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{out} cannot be written: {one_line(error)}: choose another --out") from None
