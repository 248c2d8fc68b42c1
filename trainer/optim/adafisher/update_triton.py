"""The update on a GPU, in Triton: all parameters of a group in one or two launches.

A parameter is a matrix in memory, or several where its factors are not one outer product (a convolution in groups).
Jobs are stretches of matrices, which a launch measures (Σ u²) or updates. Sums are taken in a fixed order, whatever
the order in which jobs run.
"""

from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from trainer.optim.adafisher.update import TINY, UPDATE_RMS, Pair

_STRETCH = 2**12  # elements of a job
_BLOCK = 2**10  # elements that a job has in registers at a time
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class Matrix(NamedTuple):
    """A part of a parameter in which S' ⊗ H' is an outer product. In elements, as the parameter lies in memory."""

    offset: int
    numel: int
    columns: int
    places: list[tuple[int, int]]
    """Of each use: where H' and S' begin."""
    strides: list[tuple[int, int, int, int]]
    """Of each use: of H' over rows and columns, of S' over rows and columns."""


@triton.jit
def _preconditioner(i, mask, columns, damping, matrix, factors, strides, USES: tl.constexpr):
    row = i // columns
    column = i - row * columns
    F = tl.zeros_like(i).to(tl.float32) + damping
    for use in tl.static_range(USES):
        of_use = matrix * USES + use
        H = tl.load(factors + 2 * of_use).to(tl.pointer_type(tl.float32))
        S = tl.load(factors + 2 * of_use + 1).to(tl.pointer_type(tl.float32))
        at = strides + 4 * of_use
        h = tl.load(H + row * tl.load(at) + column * tl.load(at + 1), mask=mask, other=1.0)
        s = tl.load(S + row * tl.load(at + 2) + column * tl.load(at + 3), mask=mask, other=1.0)
        F += s * h
    return F


@triton.jit
def _run(
    jobs,  # [jobs, 2]: matrix, first element
    shapes,  # [matrices, 2]: elements, columns
    numbers,  # [matrices, 2]: damping, elements of the whole parameter
    factors,  # [matrices, uses, 2]: addresses of H' and S'
    strides,  # [matrices, uses, 4]
    addresses,  # [matrices, 3]: of the parameter, its gradient, its momentum
    step_sizes,  # [matrices]
    sums,  # Σ u² of jobs that measure, or of parameters
    ranges,  # [matrices, 2]: those that belong to the parameter, if its updates are to have a length
    beta,
    shrink,
    l2,
    UPDATE: tl.constexpr,
    TYPE: tl.constexpr,
    USES: tl.constexpr,
    CALIBRATED: tl.constexpr,
    RMS: tl.constexpr,
    SMALLEST: tl.constexpr,
    STRETCH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    job = tl.program_id(0)
    if UPDATE:  # what was measured last is still in the cache
        job = tl.num_programs(0) - 1 - job
    matrix, start = tl.load(jobs + 2 * job), tl.load(jobs + 2 * job + 1)
    numel, columns = tl.load(shapes + 2 * matrix), tl.load(shapes + 2 * matrix + 1)
    damping = tl.load(numbers + 2 * matrix)
    params = tl.load(addresses + 3 * matrix).to(tl.pointer_type(TYPE))
    grads = tl.load(addresses + 3 * matrix + 1).to(tl.pointer_type(TYPE))
    exp_avgs = tl.load(addresses + 3 * matrix + 2).to(tl.pointer_type(TYPE))
    end = tl.minimum(start + STRETCH, numel)
    if not UPDATE:
        total = tl.zeros([BLOCK], tl.float32)
        for at in range(start, end, BLOCK):
            i = at + tl.arange(0, BLOCK)
            mask = i < numel
            g = tl.load(grads + i, mask=mask, other=0.0).to(tl.float32)
            m = tl.load(exp_avgs + i, mask=mask, other=0.0).to(tl.float32)
            n = m + (1 - beta * beta) * (g - m)  # of the new momentum, in one step from the old one
            u = n / _preconditioner(i, mask, columns, damping, matrix, factors, strides, USES)
            total += u * u
        tl.store(sums + job, tl.sum(total, 0))
    else:
        step_size = tl.load(step_sizes + matrix)
        if CALIBRATED:
            last = tl.load(ranges + 2 * matrix + 1)
            square = tl.zeros([BLOCK], tl.float32)
            for at in range(tl.load(ranges + 2 * matrix), last, BLOCK):
                slot = at + tl.arange(0, BLOCK)
                square += tl.load(sums + slot, mask=slot < last, other=0.0)
            rms = tl.sqrt(tl.sum(square, 0) / tl.load(numbers + 2 * matrix + 1))
            step_size *= RMS / tl.maximum(rms, SMALLEST)
        for at in range(start, end, BLOCK):
            i = at + tl.arange(0, BLOCK)
            mask = i < numel
            param = tl.load(params + i, mask=mask, other=0.0).to(tl.float32)
            g = tl.load(grads + i, mask=mask, other=0.0).to(tl.float32) + l2 * param
            m = tl.load(exp_avgs + i, mask=mask, other=0.0).to(tl.float32)
            m += (1 - beta) * (g - m)
            n = m
            if CALIBRATED:
                n += (1 - beta) * (g - m)
            F = _preconditioner(i, mask, columns, damping, matrix, factors, strides, USES)
            tl.store(exp_avgs + i, m.to(TYPE), mask=mask)
            tl.store(params + i, (param * shrink - step_size * n / F).to(TYPE), mask=mask)


def fits(params: Sequence[Tensor], exp_avgs: Sequence[Tensor]) -> bool:
    """Whether the kernel can update them: on one device, of one type, without gaps in memory."""
    first = params[0]
    return first.dtype in _TYPES and all(
        (p.device, p.dtype, m.dtype, m.stride()) == (first.device, first.dtype, first.dtype, p.stride())
        and p.numel() < 2**31
        and _is_dense(p.shape, p.stride())
        for p, m in zip(params, exp_avgs, strict=True)
    )


class Kernels:
    """Updates parameters with the factors of one refresh.

    Its methods do what the functions of these names in ``update`` do, given the gradients.

    Args:
        sizes: elements of whole parameters, of which ``params`` may be shards.
    """

    def __init__(
        self,
        params: list[Tensor],
        exp_avgs: list[Tensor],
        factors: list[list[Pair]],
        dampings: list[float],
        sizes: list[int],
    ) -> None:
        self.params, self.exp_avgs = params, exp_avgs
        self.factors = factors  # they own the memory that the tables point to
        self.device, self.dtype = params[0].device, params[0].dtype
        self.uses = max(map(len, factors))
        self.zero = torch.zeros(1, device=self.device)
        self.layouts = [p.stride() for p in params]
        self.found: list[int] = []
        self.steps: list[float] = []

        matrices: list[Matrix] = []
        numbers, pointers, strides = [], [], []
        self.owners: list[tuple[int, int]] = []  # of each matrix: its parameter, and where in it, in bytes
        for owner, (param, pairs, damping) in enumerate(zip(params, factors, dampings, strict=True)):
            order = _order(param.stride())
            shape = tuple(param.shape[axis] for axis in order)
            laid = tuple(
                tuple(f.stride(axis) if f.shape[axis] > 1 else 0 for axis in order)
                for pair in pairs
                for f in pair
            )
            for matrix in _matrices(shape, laid):
                matrices.append(matrix)
                self.owners.append((owner, matrix.offset * param.element_size()))
                numbers.append((damping, float(sizes[owner])))
                for (H, S), (h, s) in zip(pairs, matrix.places, strict=True):
                    pointers.append((H.data_ptr() + 4 * h, S.data_ptr() + 4 * s))
                nothing = self.uses - len(pairs)
                pointers += [(self.zero.data_ptr(), self.zero.data_ptr())] * nothing
                strides += [*matrix.strides, *[(0, 0, 0, 0)] * nothing]
        self.places = [
            (place, params[place[0]].data_ptr(), exp_avgs[place[0]].data_ptr()) for place in self.owners
        ]
        self.shapes = self._table([(matrix.numel, matrix.columns) for matrix in matrices])
        self.strides, self.numbers = self._table(strides), self._table(numbers, torch.float32)
        self.pointers = self._table(pointers, torch.int64)
        self._make_jobs([matrix.numel for matrix in matrices])

    def _make_jobs(self, numels: list[int]) -> None:
        """Jobs in the order of matrices, and the ranges of those of each parameter."""
        counts = torch.tensor([-(-numel // _STRETCH) for numel in numels], dtype=torch.int64)
        matrix = torch.repeat_interleave(torch.arange(len(numels)), counts)
        start = (torch.arange(len(matrix)) - (counts.cumsum(0) - counts)[matrix]) * _STRETCH
        self.jobs = torch.stack([matrix, start], 1).to(self.device, torch.int32)
        per_param = [0] * len(self.params)
        for (owner, _), count in zip(self.owners, counts.tolist(), strict=True):
            per_param[owner] += count
        ends = [*accumulate(per_param, initial=0)]
        self.offsets = self._table(ends, torch.int64)
        self.ranges = self._table([(ends[owner], ends[owner + 1]) for owner, _ in self.owners])
        self.own = self._table([(owner, owner + 1) for owner, _ in self.owners])

    def _table(self, rows: Sequence[Any], dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.tensor(rows, dtype=dtype).to(self.device, non_blocking=True)

    def measured(self, grads: list[Tensor], *, beta: float) -> Tensor:
        """Σ u² of the rows here of each parameter, [parameters]."""
        grads = self._point_to(grads)
        if not len(self.jobs):
            return self.zero.expand(len(self.params))
        sums = torch.empty(len(self.jobs), device=self.device)
        self._launch(sums=sums, beta=beta)
        return torch.segment_reduce(sums, "sum", offsets=self.offsets, initial=0)

    def momentum(
        self,
        grads: list[Tensor],
        *,
        lr: float,
        step_sizes: list[float],
        beta: float,
        weight_decay: float,
        decoupled: bool,
    ) -> None:
        grads = self._point_to(grads)
        self._set_steps(step_sizes)
        decay: dict[str, Any] = {"shrink": 1 - lr * weight_decay} if decoupled else {"l2": weight_decay}
        self._launch(update=True, beta=beta, **decay)

    def calibrated(
        self,
        grads: list[Tensor],
        *,
        squares: Tensor | None = None,
        lr: float,
        beta: float,
        weight_decay: float,
    ) -> None:
        grads = self._point_to(grads)
        self._set_steps([lr] * len(self.params))
        options: dict[str, Any] = {"beta": beta, "shrink": 1 - lr * weight_decay, "calibrated": True}
        if squares is not None:
            self._launch(update=True, sums=squares.float(), ranges=self.own, **options)
            return
        sums = torch.empty(len(self.jobs), device=self.device)
        self._launch(sums=sums, beta=beta)
        self._launch(update=True, sums=sums, ranges=self.ranges, **options)

    def _point_to(self, grads: list[Tensor]) -> list[Tensor]:
        """Takes the addresses of gradients, which may lie elsewhere at every step, or of copies laid out as parameters.

        Returns:
            what must live until the launch.
        """
        if [g.stride() for g in grads] != self.layouts or {g.dtype for g in grads} != {self.dtype}:
            grads = [
                g if (g.dtype, g.stride()) == (p.dtype, p.stride()) else torch.empty_like(p).copy_(g)
                for g, p in zip(grads, self.params, strict=True)
            ]
        found = [g.data_ptr() for g in grads]
        if found != self.found:
            self.found = found
            table = [(p + at, found[owner] + at, m + at) for (owner, at), p, m in self.places]
            self.addresses = self._table(table, torch.int64)
        return grads

    def _set_steps(self, steps: list[float]) -> None:
        if steps != self.steps:
            self.steps = steps
            self.step_sizes = self._table([steps[owner] for owner, _ in self.owners], torch.float32)

    def _launch(
        self,
        *,
        update: bool = False,
        sums: Tensor | None = None,
        ranges: Tensor | None = None,
        beta: float,
        shrink: float = 1.0,
        l2: float = 0.0,
        calibrated: bool = False,
    ) -> None:
        if not len(self.jobs):
            return
        with torch.cuda.device_of(self.jobs):  # where Triton launches
            _run[(len(self.jobs),)](
                self.jobs,
                self.shapes,
                self.numbers,
                self.pointers,
                self.strides,
                self.addresses,
                self.step_sizes if update else self.zero,
                self.zero if sums is None else sums,
                self.own if ranges is None else ranges,
                beta,
                shrink,
                l2,
                UPDATE=update,
                TYPE=_TYPES[self.dtype],
                USES=self.uses,
                CALIBRATED=calibrated,
                RMS=UPDATE_RMS,
                SMALLEST=TINY,
                STRETCH=_STRETCH,
                BLOCK=max(_BLOCK >> (self.uses - 1), 128),
            )


def _order(strides: tuple[int, ...]) -> list[int]:
    """The axes as they lie in memory."""
    return sorted(range(len(strides)), key=lambda axis: -strides[axis])


@cache
def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for axis in reversed(_order(strides)):
        if shape[axis] != 1 and strides[axis] != expected:
            return False
        expected *= shape[axis]
    return True


@cache
def _matrices(shape: tuple[int, ...], strides: tuple[tuple[int, ...], ...]) -> list[Matrix]:
    """Cuts what has this shape and is contiguous into as few matrices as there can be.

    Args:
        strides: of H' and S' of each use by turns, over the axes of the shape.
    """
    if 0 in shape:
        return []
    axes: list[tuple[int, ...]] = []  # the size, and the stride of each factor
    for axis in zip(shape, *strides, strict=True):
        if axis[0] == 1:
            continue
        if axes and all(
            outer == inner * axis[0] for outer, inner in zip(axes[-1][1:], axis[1:], strict=True)
        ):
            axes[-1] = (axes[-1][0] * axis[0], *axis[1:])
        else:
            axes.append(axis)
    none = (0,) * len(strides)
    *outer, rows, columns = [*[(1, *none)] * (2 - len(axes)), *axes]
    places = [none]
    for size, *steps in outer:
        places = [
            tuple(at + i * step for at, step in zip(place, steps, strict=True))
            for place in places
            for i in range(size)
        ]
    numel = rows[0] * columns[0]
    by_use = [(*rows[k : k + 2], *columns[k : k + 2]) for k in range(1, len(rows), 2)]
    return [
        Matrix(
            number * numel,
            numel,
            columns[0],
            [*zip(place[::2], place[1::2], strict=True)],
            [(H_row, H_column, S_row, S_column) for H_row, S_row, H_column, S_column in by_use],
        )
        for number, place in enumerate(places)
    ]
