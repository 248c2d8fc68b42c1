"""The kernel of `update_triton`: a job sums u² over a stretch of a matrix, or updates it.

Sums are taken in a fixed order, whatever the order in which jobs run.
"""

import triton
import triton.language as tl


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
def run(
    jobs,  # [jobs, 2]: matrix, first element
    shapes,  # [matrices, 2]: elements, columns
    dampings,  # [matrices]
    factors,  # [matrices, uses, 2]: addresses of H' and S'
    strides,  # [matrices, uses, 4]
    addresses,  # [matrices, 3]: of the parameter, its gradient, its momentum
    step_sizes,  # [matrices]
    sums,  # [jobs]: Σ u²
    beta,
    shrink,
    l2,
    UPDATE: tl.constexpr,
    TYPE: tl.constexpr,
    USES: tl.constexpr,
    LOOK_AHEAD: tl.constexpr,
    STRETCH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One job: takes Σ u², or with UPDATE θ ← shrink θ − step size n / F̃, as `update_blocked._update` does."""
    job = tl.program_id(0)
    if UPDATE:  # what was read last is still in the cache
        job = tl.num_programs(0) - 1 - job
    matrix, start = tl.load(jobs + 2 * job), tl.load(jobs + 2 * job + 1)
    numel, columns = tl.load(shapes + 2 * matrix), tl.load(shapes + 2 * matrix + 1)
    damping = tl.load(dampings + matrix)
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
        for at in range(start, end, BLOCK):
            i = at + tl.arange(0, BLOCK)
            mask = i < numel
            param = tl.load(params + i, mask=mask, other=0.0).to(tl.float32)
            g = tl.load(grads + i, mask=mask, other=0.0).to(tl.float32) + l2 * param
            m = tl.load(exp_avgs + i, mask=mask, other=0.0).to(tl.float32)
            m += (1 - beta) * (g - m)
            n = m
            if LOOK_AHEAD:
                n += (1 - beta) * (g - m)
            F = _preconditioner(i, mask, columns, damping, matrix, factors, strides, USES)
            tl.store(exp_avgs + i, m.to(TYPE), mask=mask)
            tl.store(params + i, (param * shrink - step_size * n / F).to(TYPE), mask=mask)
