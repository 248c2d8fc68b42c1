"""What rule="orthogonal" does with each parameter: orthogonalises it in blocks of rows, roots it, or neither.

A parameter [out, ...] counts as a matrix of ``out`` rows, one of three axes that no convolution has as a stack of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from math import ceil, prod
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ._torch_private import Convolution, TransposedConvolution
from .layers import own_parameters
from .views import View

BLOCK_ROWS = 128
"""The most rows of a block, unless ``roles`` says otherwise."""

SMALLEST_SIDE = 4
"""Rows and columns under which a matrix has too few directions to be worth an orthogonalisation."""

FUSED = ("qkv", "Wqkv", "in_proj", "c_attn")
"""Words in a module's name that say that a linear layer is the queries, keys and values of attention."""

POSITIONS = ("pos", "wpe")
"""Parts of a module's name that say that an embedding is of positions, none of which is rarer than another."""

INPUT_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""The matrices that `nn.MultiheadAttention` has itself: all three in one, or each alone."""


class Role(NamedTuple):
    """What is done with a parameter."""

    name: Literal["calibrated", "rooted", "orthogonal"]
    blocks: tuple[int, ...] = ()
    """How many rows each block has, in their order."""

    def __str__(self) -> str:
        if not self.blocks:
            return self.name
        low, high = min(self.blocks), max(self.blocks)
        rows = f"{high}" if low == high else f"{low} or {high}"
        return f"orthogonal, {rows} rows at a time"


CALIBRATED, ROOTED = Role("calibrated"), Role("rooted")


def roles_of(model: nn.Module, chosen: Mapping[str, Any]) -> dict[Tensor, Role]:
    """The roles of a model's parameters.

    Weights of linear layers and convolutions, and attention's input projections, are matrices. Their blocks end where
    a group of a convolution does, and the queries, keys and values of a fused projection. Embeddings of tokens are
    rooted, and so is the last linear layer if one of them has its shape: the output layer of a language model, whether
    it shares its weight or not. The rest is calibrated, and so is what has a side under `SMALLEST_SIDE`.

    Args:
        chosen: other roles by patterns of names, of which the last one that fits counts: the most rows of a block,
            ``"whole"``, ``"rooted"`` or ``"calibrated"``.

    Raises:
        ValueError: a pattern fits no parameter, or its role is none.
    """
    roles: dict[Tensor, Role] = {}
    names = {param: name for name, param in model.named_parameters()}
    _check(chosen, names.values())
    rooted = _embeddings(model)
    for path, module in model.named_modules():
        for name, param in own_parameters(module).items():
            fitting = [role for pattern, role in chosen.items() if fnmatchcase(names[param], pattern)]
            has_role = fitting or param in rooted or _is_matrix(module, name)
            if is_lazy(param) or not param.numel() or not has_role:
                continue
            default = "rooted" if param in rooted else BLOCK_ROWS
            roles[param] = _role(param, [*parts_of(path, module, param)], fitting[-1] if fitting else default)
    return roles


def _embeddings(model: nn.Module) -> set[Tensor]:
    """The weights of embeddings, but for those of positions, and that of the output layer of a language model."""
    embeddings = {
        module.weight
        for path, module in model.named_modules()
        if isinstance(module, nn.Embedding) and not any(part in _name(path) for part in POSITIONS)
    }
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    shapes = {weight.shape for weight in embeddings}
    return embeddings | {weight for weight in linear[-1:] if not is_lazy(weight) and weight.shape in shapes}


def _check(chosen: Mapping[str, Any], names: Any) -> None:
    for pattern, role in chosen.items():
        is_count = isinstance(role, int) and not isinstance(role, bool) and role >= 1
        if not is_count and role not in ("whole", "rooted", "calibrated"):
            raise ValueError(
                f"Invalid roles[{pattern!r}]: {role!r}, must be a number of rows >= 1 or one of "
                "'whole', 'rooted', 'calibrated'"
            )
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"Invalid roles: no parameter of the model is named {pattern!r}")


def check_rows(role: Role, view: View, name: str, chosen: Mapping[str, Any]) -> None:
    """Checks that the factors of a parameter are those of the matrix that its role makes of it.

    Raises:
        ValueError: they are of one with another number of rows.
    """
    own, wanted = prod(view.shape[: view.matrix_axes]), sum(role.blocks)
    if role.blocks and own != wanted:
        pattern = next((p for p in reversed([*chosen]) if fnmatchcase(name, p)), name)
        raise ValueError(
            f"Invalid roles[{pattern!r}]: {chosen.get(pattern, BLOCK_ROWS)!r}, must be 'rooted' or 'calibrated' "
            f"for {name}: its H and S are of a matrix of {own} rows, not of {wanted}"
        )


def _is_matrix(module: nn.Module, name: str) -> bool:
    match module:
        case nn.MultiheadAttention():
            return name in INPUT_PROJECTIONS
        case TransposedConvolution():
            return False
        case nn.Linear() | Convolution():
            return name == "weight"
    return False


def parts_of(path: str, module: nn.Module, param: Tensor) -> Iterator[int]:
    """The numbers of rows after which a block of a module's parameter must end."""
    rows = param.shape[0] if param.dim() else 1
    if isinstance(module, Convolution):
        yield from [rows // module.groups] * module.groups
    elif param.dim() == 3 and not isinstance(module, nn.Embedding):
        yield from [param.shape[1]] * rows
    elif param.dim() == 2 and _is_fused(path, module, param):
        queries = param.shape[1]
        rest, odd = divmod(rows - queries, 2)
        yield from (queries, rest, rest) if rest > 0 and not odd else (rows,)
    else:
        yield rows


def _is_fused(path: str, module: nn.Module, param: Tensor) -> bool:
    """Whether a matrix is the queries, keys and values of attention."""
    if isinstance(module, nn.MultiheadAttention):
        return param is module.in_proj_weight
    return any(f"_{word}_" in f"_{_name(path)}_" for word in FUSED)


def _name(path: str) -> str:
    return path.rpartition(".")[2]


def _role(param: Tensor, parts: Sequence[int], chosen: int | str) -> Role:
    if chosen == "calibrated" or param.dim() == 0:
        return CALIBRATED
    if chosen == "rooted":
        return ROOTED
    columns = param.numel() // sum(parts)
    if param.dim() < 2 or min(*parts, columns) < SMALLEST_SIDE:
        return CALIBRATED
    blocks: list[int] = []
    for rows in parts:
        count = 1 if isinstance(chosen, str) else ceil(rows / chosen)
        size, larger = divmod(rows, count)
        blocks += [size + 1] * larger + [size] * (count - larger)
    return Role("orthogonal", tuple(blocks))
