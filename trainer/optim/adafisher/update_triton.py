"""The updates of `update` on a GPU, in Triton: all parameters of a group in one or two launches.

A parameter is a matrix in memory, or several where its factors are not one outer product (a convolution in groups).
A job is a stretch of a matrix. One launch sums u² over each job, another one updates.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from .kernel_triton import run
from .matrices import Matrix, is_dense, matrices_of, order_of
from .update import UPDATE_RMS, floored_rms
from .views import Pair

_STRETCH = 2**12  # elements of a job
_BLOCK = 2**10  # elements that a job has in registers at a time
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def fits(params: Sequence[Tensor], exp_avgs: Sequence[Tensor]) -> bool:
    """Whether the kernel can update them: on one device, of one type, without gaps in memory."""
    first = params[0]
    return first.dtype in _TYPES and all(
        (p.device, p.dtype, m.dtype, m.stride()) == (first.device, first.dtype, first.dtype, p.stride())
        and p.numel() < 2**31
        and is_dense(p.shape, p.stride())
        for p, m in zip(params, exp_avgs, strict=True)
    )


class Kernels:
    """Updates parameters with the factors of one refresh.

    Its methods do what the functions of these names in `update` do, given the gradients.
    """

    def __init__(
        self,
        params: list[Tensor],
        exp_avgs: list[Tensor],
        factors: Sequence[Sequence[Pair]],
        dampings: Sequence[float],
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
        matrix_dampings, pointers, strides = [], [], []
        self.owners: list[tuple[int, int]] = []  # of each matrix: its parameter, and where in it, in bytes
        for owner, (param, pairs, damping) in enumerate(zip(params, factors, dampings, strict=True)):
            order = order_of(param.stride())
            shape = tuple(param.shape[axis] for axis in order)
            laid = tuple(
                tuple(f.stride(axis) if f.shape[axis] > 1 else 0 for axis in order)
                for pair in pairs
                for f in pair
            )
            for matrix in matrices_of(shape, laid):
                matrices.append(matrix)
                self.owners.append((owner, matrix.offset * param.element_size()))
                matrix_dampings.append(damping)
                for (H, S), (h, s) in zip(pairs, matrix.places, strict=True):
                    pointers.append((H.data_ptr() + 4 * h, S.data_ptr() + 4 * s))
                nothing = self.uses - len(pairs)
                pointers += [(self.zero.data_ptr(), self.zero.data_ptr())] * nothing
                strides += [*matrix.strides, *[(0, 0, 0, 0)] * nothing]
        self.places = [
            (place, params[place[0]].data_ptr(), exp_avgs[place[0]].data_ptr()) for place in self.owners
        ]
        self.shapes = self._table([(matrix.numel, matrix.columns) for matrix in matrices])
        self.strides, self.dampings = self._table(strides), self._table(matrix_dampings, torch.float32)
        self.pointers = self._table(pointers, torch.int64)
        self._make_jobs([matrix.numel for matrix in matrices])

    def _make_jobs(self, numels: list[int]) -> None:
        """Jobs in the order of matrices; where those of each parameter begin; the parameter of each matrix."""
        counts = torch.tensor([-(-numel // _STRETCH) for numel in numels], dtype=torch.int64)
        matrix = torch.repeat_interleave(torch.arange(len(numels)), counts)
        start = (torch.arange(len(matrix)) - (counts.cumsum(0) - counts)[matrix]) * _STRETCH
        self.jobs = torch.stack([matrix, start], 1).to(self.device, torch.int32)
        per_param = [0] * len(self.params)
        for (owner, _), count in zip(self.owners, counts.tolist(), strict=True):
            per_param[owner] += count
        ends = [*accumulate(per_param, initial=0)]
        self.offsets = self._table(ends, torch.int64)
        self.owner_index = self._table([owner for owner, _ in self.owners])

    def _table(self, rows: Sequence[Any], dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.tensor(rows, dtype=dtype).to(self.device, non_blocking=True)

    def sum_of_squares(self, grads: list[Tensor], *, beta: float) -> Tensor:
        """Σ u² of each parameter over the rows on this rank, [parameters]."""
        grads = self._point_to(grads)
        if not len(self.jobs):
            return self.zero.expand(len(self.params))
        sums = torch.empty(len(self.jobs), device=self.device)
        self._launch(sums=sums, beta=beta)
        return torch.segment_reduce(sums, "sum", offsets=self.offsets, initial=0)

    def bias_corrected_update(
        self,
        grads: list[Tensor],
        *,
        corrections: Sequence[float],
        lr: float,
        beta: float,
        weight_decay: float,
        decoupled: bool,
    ) -> None:
        """`update.bias_corrected_update`."""
        grads = self._point_to(grads)
        steps = [lr / correction for correction in corrections]
        if steps != self.steps:
            self.steps = steps
            self.step_sizes = self._table([steps[owner] for owner, _ in self.owners], torch.float32)
        decay: dict[str, Any] = {"shrink": 1 - lr * weight_decay} if decoupled else {"l2": weight_decay}
        self._launch(self.step_sizes, beta=beta, **decay)

    def normalized_update(
        self,
        grads: list[Tensor],
        sizes: Tensor,
        expected: Tensor,
        *,
        lr: float,
        beta: float,
        weight_decay: float,
        sums: Tensor | None = None,
    ) -> None:
        """`update.normalized_update`."""
        grads = self._point_to(grads)
        if sums is None:
            sums = self.sum_of_squares(grads, beta=beta)
        step_sizes = (lr * UPDATE_RMS / floored_rms(sums, sizes, expected).float())[self.owner_index]
        self._launch(step_sizes, beta=beta, shrink=1 - lr * weight_decay, look_ahead=True)

    def _point_to(self, grads: list[Tensor]) -> list[Tensor]:
        """Takes the addresses of gradients, which may lie elsewhere at every step, or of copies laid out as parameters.

        Returns:
            the gradients or their copies, which must not be freed before the launch.
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

    def _launch(
        self,
        step_sizes: Tensor | None = None,
        sums: Tensor | None = None,
        *,
        beta: float,
        shrink: float = 1.0,
        l2: float = 0.0,
        look_ahead: bool = False,
    ) -> None:
        """Updates by these steps, [matrices], or takes the sums, [jobs]."""
        if not len(self.jobs):
            return
        with torch.cuda.device_of(self.jobs):  # where Triton launches
            run[(len(self.jobs),)](
                self.jobs,
                self.shapes,
                self.dampings,
                self.pointers,
                self.strides,
                self.addresses,
                self.zero if step_sizes is None else step_sizes,
                self.zero if sums is None else sums,
                beta,
                shrink,
                l2,
                UPDATE=step_sizes is not None,
                TYPE=_TYPES[self.dtype],
                USES=self.uses,
                LOOK_AHEAD=look_ahead,
                STRETCH=_STRETCH,
                BLOCK=max(_BLOCK >> (self.uses - 1), 128),
            )
