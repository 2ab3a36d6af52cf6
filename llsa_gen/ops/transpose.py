# SPDX-License-Identifier: Apache-2.0
"""The transpose of lists as a public op of its own: which rows named each key.

    rows[offsets[j] : offsets[j + 1]]  =  the rows r with j in idx[r], ascending, as often as j occurs there

Nothing in its kernels depends on a spec, so the smallest one lends them: all specs and all list widths share them.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from llsa_gen.errors import InputError, InputTypeError, UnsupportedError, explain
from llsa_gen.ir import names
from llsa_gen.ir.sizes import is_short
from llsa_gen.ops import engine
from llsa_gen.ops.binders.invert_index import UNCUT, arguments
from llsa_gen.ops.checks import DEVICES
from llsa_gen.ops.launch import launch, target_of
from llsa_gen.ops.registry import register
from llsa_gen.spec import Spec
from llsa_gen.spec.fields import whole
from llsa_gen.stages import InvertIndex

MAX_KEYS = 2**30
"""Most keys: they are 32-bit in the kernels."""

_SPEC = Spec(levels=1)
_WANTED, _GIVEN = (names.offsets(1), names.rows(1)), (names.lists(1),)
_SHAPE = "an int32 tensor [B, H, T, K]"


def transpose_indices(idx: Tensor, num_keys: int) -> tuple[Tensor, Tensor]:
    """Transposes lists of keys into lists of rows (CSR to CSC), as the gradients of keys and values need them.

    Args:
        idx: The keys that every row names, int32 [B,H,T,K]: 0 to num_keys - 1, or -1 where there is none; in any order
            and as often as one likes. On a CPU entries are checked; on a GPU those out of range count as -1, which
            needs no synchronisation.
        num_keys: How many keys there are.

    Returns:
        offsets [B,H,num_keys+1] and rows [B,H,T*K], int32: the rows that name key j are
        ``rows[offsets[j]:offsets[j + 1]]``, ascending, a row once for each time that it names j; behind the last of
        all there is -1. The result is the same bit by bit on every run. Indices carry no gradient.

    Raises:
        InputError: The shape, an entry or num_keys is not allowed.
        InputTypeError: idx is no int32 tensor, or num_keys no whole number.
        UnsupportedError: There are no kernels for the device, or the lists of a head have more than 2**30 entries.
        NotBuiltError: The kernels are not built, and LLSA_GEN_BUILD=0 forbids building on first use.
    """
    num_keys = _plain(num_keys)
    _check(idx, num_keys)
    offsets, rows = torch.ops.llsa_gen.transpose_indices(idx, num_keys)
    return offsets, rows


def _transposed(idx: Tensor, num_keys: int) -> tuple[Tensor, Tensor]:
    """The kernel of the op on real tensors."""
    _check(idx, num_keys)
    if idx.shape[0] * idx.shape[1] == 0:
        return _fake(idx, num_keys)
    if idx.device.type == "cpu":
        _check_entries(idx, num_keys)
    idx, tables = idx.contiguous(), dict[str, Tensor]()
    short = (1,) if is_short(num_keys, idx.shape[2] * idx.shape[3]) else ()
    for step in engine.kernels_of(_SPEC, target_of(idx.device), _WANTED, _GIVEN, direction="backward", short=short):
        launch(step.kernel, arguments(cast(InvertIndex, step.stage).phase, idx, num_keys, UNCUT, tables))
    return tables["offsets"], tables["rows"].flatten(2)


def _fake(idx: Tensor, num_keys: int) -> tuple[Tensor, Tensor]:
    """Tensors like the result, not filled."""
    _check(idx, num_keys)
    batch, heads, rows, topk = idx.shape
    return idx.new_empty((batch, heads, num_keys + 1)), idx.new_empty((batch, heads, rows * topk))


def _check(idx: Any, num_keys: Any) -> None:
    """Checks what does not need the values of idx; errors as `transpose_indices`."""
    if not isinstance(idx, Tensor):
        kind, hint = type(idx).__name__, "convert it with torch.as_tensor(...)"
        raise InputTypeError(explain("a torch tensor is needed", where="idx", value=kind, allowed=_SHAPE, hint=hint))
    if idx.layout != torch.strided or idx.is_nested:
        what, hint = "sparse and nested tensors are not served", "pad lists with -1"
        raise UnsupportedError(explain(what, where="idx", value=idx.layout, allowed=_SHAPE, hint=hint))
    if idx.device.type not in DEVICES:
        what, hint = "there are no kernels for this device", 'move it with .to("cuda")'
        raise UnsupportedError(explain(what, where="idx", value=str(idx.device), allowed=DEVICES, hint=hint))
    if idx.ndim != 4:
        what, hint = "lists must have four axes", "add axes of length 1"
        raise InputError(explain(what, where="idx", value=tuple(idx.shape), allowed=_SHAPE, hint=hint))
    if idx.dtype != torch.int32:
        what, hint = "lists must hold int32", "convert them: idx.int()"
        raise InputTypeError(explain(what, where="idx", value=idx.dtype, allowed=torch.int32, hint=hint))
    _check_count(num_keys)


def _plain(num_keys: Any) -> Any:
    """The int behind an integer-like number (numpy); anything else as it is."""
    is_plain = isinstance(num_keys, bool | int | float | str | torch.SymInt)
    number = None if is_plain else whole(num_keys)
    return num_keys if number is None else number


def _check_count(num_keys: Any) -> None:
    what, allowed = "the number of keys is not allowed", f"a whole number from 0 to {MAX_KEYS}"
    hint = "pass the number of rows of the other side, as in llsa_gen.transpose_indices(idx, k.shape[2])"
    if isinstance(num_keys, bool) or not isinstance(num_keys, int | torch.SymInt):
        value = f"{num_keys!r} ({type(num_keys).__name__})"
        raise InputTypeError(explain(what, where="num_keys", value=value, allowed=allowed, hint=hint))
    if not 0 <= num_keys <= MAX_KEYS:
        raise InputError(explain(what, where="num_keys", value=num_keys, allowed=allowed, hint=hint))


def _check_entries(idx: Tensor, num_keys: int) -> None:
    """Checks the values of idx.

    Raises:
        InputError: An entry is no key.
    """
    if not idx.numel():
        return
    lowest, highest = (int(bound) for bound in torch.aminmax(idx))
    if lowest < -1 or highest >= num_keys:
        what, value = "a list names a key that does not exist", lowest if lowest < -1 else highest
        allowed = f"-1 (no entry), or a key: 0..{num_keys - 1}" if num_keys else "-1 (no entry): there are no keys"
        hint = "is num_keys the number of keys, and are these their lists?"
        raise InputError(explain(what, where="idx", value=value, allowed=allowed, hint=hint))


register("transpose_indices", "(Tensor idx, SymInt num_keys) -> (Tensor, Tensor)", _transposed, _fake)
