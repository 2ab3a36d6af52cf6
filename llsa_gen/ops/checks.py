# SPDX-License-Identifier: Apache-2.0
"""What an op accepts: shapes, dtypes, devices, lists and scale, each refused with one clear error.

Everything here looks at metadata only, so that it also holds for fake tensors and symbolic sizes; `check_entries` alone
reads values, and only on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from llsa_gen import dtypes
from llsa_gen.errors import InputError, InputTypeError, UnsupportedError, explain
from llsa_gen.ir import names
from llsa_gen.spec import Spec

MAX_LENGTH = 2**30
"""Longest sequence: node ids and rows are 32-bit in the kernels, offsets are 64-bit."""
MAX_SCALE = 1e38
"""Largest softmax scale; it reaches the kernels in fp32."""
MIN_SCALE = 1e-37
"""Smallest softmax scale, for the same reason."""
_SCALES = f"a Python float from {MIN_SCALE:g} to {MAX_SCALE:g}"
_ONE_SHAPE = "q and k of one shape"
LAYOUTS = ("BHND", "BNHD")
DEVICES = ("cpu", "cuda", "meta")
"""Types of devices that ops are registered for; on meta only shapes are computed."""
_TENSOR = "a dense torch tensor of four axes"
_AXES = '[B, H, N, D], or [B, N, H, D] with layout="BNHD"'


def heads_first(layout: Any, tensors: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """q, k and perhaps v as [B,H,N,D] views, once they are known to be tensors of four axes on a device that is served.

    Raises:
        InputTypeError: Something is no tensor.
        InputError: The layout is unknown, or a tensor does not have four axes.
        UnsupportedError: A tensor is sparse, or there are no kernels for its device.
    """
    tokens_first = check_layout(layout)
    if not all(map(_is_served, tensors)):
        for name, tensor in zip(names.OPERANDS, tensors, strict=False):
            require_tensor(name, tensor)
    return tuple(x.transpose(1, 2) for x in tensors) if tokens_first else tensors


def has_tangents() -> bool:
    """Whether tensors may have tangents now."""
    return forward_ad._current_level >= 0  # noqa: SLF001  (no other way)


def refuse_tangents(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Refuses forward-mode differentiation, in which torch takes the derivative of an op without a rule for zero.

    Raises:
        UnsupportedError: One of the tensors, given with their names, has a tangent.
    """
    for name, tensor in tensors:
        if forward_ad.unpack_dual(tensor).tangent is not None:  # type: ignore[no-untyped-call]
            what, allowed = "forward-mode differentiation is not served", "a tensor without a tangent"
            hint = "use reverse mode: o.backward() or torch.autograd.grad"
            raise UnsupportedError(
                explain(what, where=name, value="a tensor with a tangent", allowed=allowed, hint=hint)
            )


def require_tensor(name: str, tensor: Any) -> None:
    """Checks what can be checked of one tensor alone, apart from its dtype; errors as `heads_first`."""
    if _is_served(tensor):
        return
    if not isinstance(tensor, Tensor):
        kind, hint = _kind(tensor), "convert it with torch.as_tensor(...)"
        raise InputTypeError(explain("a torch tensor is needed", where=name, value=kind, allowed=_TENSOR, hint=hint))
    if tensor.is_nested:  # first, because a nested tensor has no plain shape
        hint = "pad it: torch.nested.to_padded_tensor(x, 0.0), and leave padded tokens out of what is read"
        what = "nested tensors (sequences of different lengths) are not served"
        raise UnsupportedError(explain(what, where=name, value=f"nested, {tensor.layout}", allowed=_TENSOR, hint=hint))
    if has_tangents():
        refuse_tangents([(name, tensor)])
    if tensor.ndim != 4:
        what, shape = "a tensor must have four axes", tuple(tensor.shape)
        raise InputError(explain(what, where=name, value=shape, allowed=_AXES, hint="add axes of length 1"))
    if tensor.layout != torch.strided:
        hint = "convert it with .to_dense()"
        what = "sparse tensors are not served"
        raise UnsupportedError(explain(what, where=name, value=tensor.layout, allowed=_TENSOR, hint=hint))
    if tensor.device.type not in DEVICES:
        what, kind, hint = "there are no kernels for this device", str(tensor.device), 'move it with .to("cuda")'
        raise UnsupportedError(explain(what, where=name, value=kind, allowed=DEVICES, hint=hint))


def check_tensors(q: Tensor, k: Tensor, v: Tensor | None = None) -> None:
    """Checks q [B,H,Nq,D], k [B,Hk,Nk,D] and v [B,Hk,Nk,Dv] against each other.

    Raises:
        InputTypeError: Something is no tensor, or its dtype is not served or differs.
        InputError: Rank, shape or device do not fit.
        UnsupportedError: Grouped heads, or different query and key lengths.
    """
    given = {"q": q, "k": k} if v is None else {"q": q, "k": k, "v": v}
    for name, tensor in given.items():
        _check_one(name, tensor, q)
    _check_fit(given)
    if q.shape[1] != k.shape[1]:
        hint = "repeat the heads of k and v: k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)"
        what = "grouped heads (fewer key heads than query heads) are not supported yet"
        value = f"{q.shape[1]} query heads, {k.shape[1]} key heads"
        raise UnsupportedError(explain(what, where="k", value=value, allowed=_ONE_SHAPE, hint=hint))
    if q.shape[2] != k.shape[2]:
        what = "queries and keys of different lengths are not supported yet"
        value = f"{q.shape[2]} queries, {k.shape[2]} keys"
        hint = "use as many queries as keys"
        raise UnsupportedError(explain(what, where="k", value=value, allowed=_ONE_SHAPE, hint=hint))


def _is_served(x: Any) -> bool:
    """Whether all is right with a tensor, which is quickly said; what is wrong takes longer to find."""
    return (
        isinstance(x, Tensor)
        and not x.is_nested
        and x.ndim == 4
        and x.layout == torch.strided
        and (x.is_cpu or x.is_cuda or x.is_meta)
        and not has_tangents()
    )


def check_for_spec(spec: Spec, q: Tensor, v: Tensor | None = None) -> None:
    """Checks tensors against the spec that an op was built for.

    Raises:
        InputError: A head dimension differs.
        InputTypeError: The dtype differs.
    """
    found = {"head_dim": q.shape[-1]} | ({} if v is None else {"value_dim": v.shape[-1]})
    for field, value in found.items():
        built = spec.head_dim if field == "head_dim" else spec.dim_v
        if value != built:
            hint = f"build an op for it: llsa-gen build --{field.replace('_', '-')} {value}"
            what = f"this op was built for {field} {built}"
            raise InputError(explain(what, where=spec.slug, value=value, allowed=built, hint=hint))
    if q.dtype != spec.element.torch:
        hint = f"convert the tensors, or build an op for it: llsa-gen build --dtype {dtypes.from_torch(q.dtype).name}"
        what = f"this op was built for {spec.element.torch}"
        raise InputTypeError(explain(what, where=spec.slug, value=q.dtype, allowed=spec.element.torch, hint=hint))


def check_gradients(q: Tensor, v: Tensor, **given: Tensor | None) -> None:
    """Checks what a backward pass gets besides q, k and v: o and its gradient like o, lse and its gradient like lse.

    Raises:
        InputError: A shape or device does not fit.
        InputTypeError: A dtype does not fit.
    """
    shapes: dict[str, tuple[int, ...]] = {"o": (*q.shape[:3], v.shape[3]), "lse": tuple(q.shape[:3])}
    for name, tensor in given.items():
        if tensor is None:
            continue
        kind = name.removesuffix("_grad")
        dtype = q.dtype if kind == "o" else torch.float32
        hint = f"give what torch.autograd passes on for {kind}"
        if tuple(tensor.shape) != shapes[kind]:
            what, shape = "the shape does not fit q and v", tuple(tensor.shape)
            raise InputError(explain(what, where=name, value=shape, allowed=shapes[kind], hint=hint))
        if tensor.dtype != dtype:
            what = "the dtype does not fit"
            raise InputTypeError(explain(what, where=name, value=tensor.dtype, allowed=dtype, hint=hint))
        if tensor.device != q.device:
            what, device = "the device is not that of q", str(tensor.device)
            raise InputError(explain(what, where=name, value=device, allowed=q.device, hint=hint))


def list_widths(idx: Any) -> tuple[int, ...]:
    """The last axes of given lists, once they are known to be a list or tuple of tensors of four axes.

    Raises:
        InputTypeError: They are something else.
        InputError: One does not have four axes.
    """
    hint = "idx = llsa_select(q, k, ...)"
    if not isinstance(idx, (list, tuple)) or not idx:
        what = "the lists must be a list or tuple of tensors, one per level"
        allowed = "int32 tensors [B, H, n_l, K_l], level 1 (finest) first"
        raise InputTypeError(explain(what, where="idx", value=_kind(idx), allowed=allowed, hint=hint))
    for level, entries in enumerate(idx, start=1):
        where, allowed = f"idx[{level - 1}] (level {level})", f"an int32 tensor [B, H, n_{level}, K_{level}]"
        if not isinstance(entries, Tensor) or entries.is_nested or entries.layout != torch.strided:
            what = "a list must be a tensor that is neither nested nor sparse"
            kind = f"{_kind(entries)}, {entries.layout}" if isinstance(entries, Tensor) else _kind(entries)
            raise InputTypeError(explain(what, where=where, value=kind, allowed=allowed, hint=hint))
        if entries.ndim != 4:
            what, shape = "a list must have four axes", tuple(entries.shape)
            raise InputError(explain(what, where=where, value=shape, allowed=allowed, hint=hint))
    return tuple(int(entries.shape[3]) for entries in idx)


def check_lists(idx: Sequence[Tensor], spec: Spec, q: Tensor) -> None:
    """Checks the metadata of given lists: one per level, int32, [B,H,n_l,K_l].

    Raises:
        InputError: A list is missing, or has another shape or device.
        InputTypeError: A list does not hold int32.
    """
    if len(idx) != spec.depth:
        allowed = f"{spec.depth} tensors, idx[0] for level 1 (finest) first"
        value = f"{len(idx)} tensors"
        hint = "idx = llsa_select(q, k, ...) returns them all"
        raise InputError(explain("one list per level is needed", where="idx", value=value, allowed=allowed, hint=hint))
    for level, entries in enumerate(idx, start=1):
        where = f"idx[{level - 1}] (level {level})"
        if entries.dtype != torch.int32:
            what, hint = "a list must hold int32", f"convert it: idx[{level - 1}].int()"
            raise InputTypeError(explain(what, where=where, value=entries.dtype, allowed=torch.int32, hint=hint))
        rows = -(-q.shape[2] // spec.block**level)
        expected = (q.shape[0], q.shape[1], rows, spec.topks[level - 1])
        if tuple(entries.shape) != expected:
            hint = "lists come from llsa_select with the same block_size, topk and num_levels"
            what, allowed = "a list has the wrong shape", f"[B, H, n_{level}, K_{level}] = {expected}"
            raise InputError(explain(what, where=where, value=tuple(entries.shape), allowed=allowed, hint=hint))
        if entries.device != q.device:
            what, hint = "a list is on another device than q", "move it with .to(q.device)"
            raise InputError(explain(what, where=where, value=str(entries.device), allowed=q.device, hint=hint))


def check_entries(idx: Sequence[Tensor], spec: Spec, length: int) -> None:
    """Checks that every entry of the lists is -1 or a node of its level; reads the values.

    Raises:
        InputError: An entry is out of range.
    """
    for level, entries in enumerate(idx, start=1):
        nodes = -(-length // spec.block**level)
        if not entries.numel():
            continue
        lowest, highest = int(entries.min()), int(entries.max())
        if lowest < -1 or highest >= nodes:
            where, value = f"idx[{level - 1}] (level {level})", lowest if lowest < -1 else highest
            allowed = f"-1 (no entry), or a node of level {level}: 0..{nodes - 1}"
            hint = "are the lists in the order level 1 (finest) first?"
            raise InputError(
                explain("a list names a node that does not exist", where=where, value=value, allowed=allowed, hint=hint)
            )


def resolve_scale(scale: float | None, head_dim: int) -> float:
    """The softmax scale: the given one, or 1 / sqrt(head_dim).

    Raises:
        InputTypeError: The scale is no number.
        InputError: It is not positive and finite.
    """
    if scale is None:
        return 1.0 / math.sqrt(max(head_dim, 1))  # the checks of shapes refuse 0
    what, hint = "scale must be a positive finite number", "leave it out for 1 / sqrt(head_dim)"
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        value = f"{scale!r} ({type(scale).__name__})"
        raise InputTypeError(explain(what, where="scale", value=value, allowed=_SCALES, hint=hint))
    if not MIN_SCALE <= scale <= MAX_SCALE:
        raise InputError(explain(what, where="scale", value=scale, allowed=_SCALES, hint=hint))
    return float(scale)


def check_layout(layout: Any) -> bool:
    """Whether tokens come before heads ("BNHD").

    Raises:
        InputError: The layout is not one of `LAYOUTS`.
    """
    if not isinstance(layout, str) or layout not in LAYOUTS:
        hint = 'write layout="BHND" for [B, H, N, D] and layout="BNHD" for [B, N, H, D]'
        raise InputError(explain("unknown layout", where="layout", value=layout, allowed=LAYOUTS, hint=hint))
    return layout == "BNHD"


def _kind(value: Any) -> str:
    """The type of something that may be large, or the empty thing itself."""
    return repr(value) if isinstance(value, (list, tuple)) and not value else type(value).__name__


def _check_one(name: str, tensor: Tensor, q: Tensor) -> None:
    require_tensor(name, tensor)
    dtypes.from_torch(tensor.dtype, name)
    if tensor.dtype != q.dtype:
        hint = "convert them to one dtype"
        raise InputTypeError(
            explain("q, k and v must have one dtype", where=name, value=tensor.dtype, allowed=q.dtype, hint=hint)
        )
    if tensor.device != q.device:
        what, hint = "q, k and v must be on one device", "move them with .to(q.device)"
        raise InputError(explain(what, where=name, value=str(tensor.device), allowed=q.device, hint=hint))
    if tensor.shape[2] > MAX_LENGTH:
        what, allowed = "the sequence is too long", f"up to {MAX_LENGTH} tokens"
        hint = "split the sequence; did heads and tokens change places (layout)?"
        raise InputError(explain(what, where=name, value=tensor.shape[2], allowed=allowed, hint=hint))


def _check_fit(given: dict[str, Tensor]) -> None:
    q, k, v = given["q"], given["k"], given.get("v", given["k"])
    keys_fit = q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3]
    values_fit = v.shape[0] == k.shape[0] and v.shape[1] == k.shape[1] and v.shape[2] == k.shape[2]
    if not keys_fit or not values_fit:
        value = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in given.items())
        allowed = "q [B,H,Nq,D], k [B,Hk,Nk,D], v [B,Hk,Nk,Dv]"
        where = "v" if keys_fit else "k"
        what, hint = "the shapes do not fit together", "compare the axes; is the layout right (BHND or BNHD)?"
        raise InputError(explain(what, where=where, value=value, allowed=allowed, hint=hint))
