# SPDX-License-Identifier: Apache-2.0
"""What the public functions and a loaded op share: checks in words of the caller, layout, autocast, the call of the op.

A call of few tokens takes hardly longer than what happens here, so that each thing is done once and without detours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet

from llsa_gen.ops.autocast import at_autocast_dtype
from llsa_gen.ops.checks import heads_first, resolve_scale
from llsa_gen.ops.registry import Registered


def _keys(*keys: DispatchKey) -> DispatchKeySet:
    """Several keys as a set."""
    found = DispatchKeySet(keys[0])
    for key in keys[1:]:
        found = found.add(key)
    return found


_NOBODY = (_keys(DispatchKey.BackendSelect, DispatchKey.ADInplaceOrView), _keys(DispatchKey.BackendSelect))
"""What torch adds to the keys of every tensor where no mode, transform or tracer is on, and that in inference mode."""
_PLAIN = (
    _keys(DispatchKey.CPU, DispatchKey.ADInplaceOrView, DispatchKey.AutogradCPU, DispatchKey.AutocastCPU),
    _keys(DispatchKey.CUDA, DispatchKey.ADInplaceOrView, DispatchKey.AutogradCUDA, DispatchKey.AutocastCUDA),
    _keys(DispatchKey.CPU, DispatchKey.AutocastCPU),
    _keys(DispatchKey.CUDA, DispatchKey.AutocastCUDA),
)
"""The keys of tensors that hold their values in memory, and of those that were made in inference mode."""
_TYPES = (Tensor, torch.nn.Parameter)
"""Types of tensors that have no say in what an op does."""


def call_attention(
    op: Registered,
    qkv: tuple[Any, Any, Any],
    fields: tuple[Any, ...],
    scale: float | None,
    layout: str,
    return_lse: bool,
    *,
    lists: list[Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Calls an attention op on tensors in the layout of the caller; errors as `heads_first` and `resolve_scale`.

    Args:
        op: The op; it returns o and the log-sum-exps.
        qkv: The tensors.
        fields: The spec as plain values, where the op takes them.
        scale: The softmax scale, if it is given.
        layout: Of the tensors and of o.
        return_lse: Whether to return (o, lse) instead of o.
        lists: The lists, where the op takes them.
        dtype: What autocast casts to, if not to its own dtype.
    """
    q, k, v = at_autocast_dtype(heads_first(layout, qkv), dtype)
    tokens_first = layout == "BNHD"
    rest = (*fields, resolve_scale(scale, q.shape[3]))
    o, lse = call(op, (q, k, v), (*rest, True) if tokens_first else rest, lists)  # torch leaves out defaults too
    o = o.transpose(1, 2) if tokens_first else o
    return (o, lse) if return_lse else o


def call_select(
    op: Registered, qk: tuple[Any, Any], fields: tuple[Any, ...], layout: str, dtype: torch.dtype | None = None
) -> tuple[Tensor, ...]:
    """Calls a selection op; arguments and errors as `call_attention`."""
    return tuple(call(op, at_autocast_dtype(heads_first(layout, qk), dtype), fields))


def call(op: Registered, tensors: tuple[Tensor, ...], rest: tuple[Any, ...], lists: list[Tensor] | None = None) -> Any:
    """Calls an op, without the layers of torch that have nothing to do.

    The layer that keeps what gradients need is Python, and takes every argument out of C++ and back. The others take
    a good part of a short call too: `tools/host_overhead.py` times an op that is called through them beside one that
    is not.
    """
    given = (*tensors, *rest) if lists is None else (*tensors, lists, *rest)
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and torch._C._any_requires_grad(*tensors)):  # noqa: SLF001  (no other way)
        return op.overload(*given)
    if not is_watched(tensors if lists is None else (*tensors, *lists)):
        return op.real(*given)
    with torch._C._AutoDispatchBelowAutograd():  # noqa: SLF001  (as the layer of gradients itself does)
        return op.overload(*given)


def is_watched(tensors: Sequence[Tensor]) -> bool:
    """Whether anybody may want to see an op, or to do it differently: torch then has to be asked.

    That is a mode, transform, tracer or profiler of torch, a tensor of another class, or one whose memory does not hold
    its values. Torch tells nothing of observers such as `ExecutionTraceObserver`, which see no more than what the op
    makes, or of kernels that somebody else registers for the op, which calls without gradients do not take.
    """
    if torch._C._dispatch_tls_local_include_set() not in _NOBODY:  # noqa: SLF001  (no other way)
        return True
    for tensor in tensors:
        if type(tensor) not in _TYPES or torch._C._dispatch_keys(tensor) not in _PLAIN:  # noqa: SLF001  (as above)
            return True
    return torch._C._is_torch_function_mode_enabled() or torch._C._autograd._profiler_enabled()  # noqa: SLF001  (as above)
