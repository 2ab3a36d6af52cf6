# SPDX-License-Identifier: Apache-2.0
"""From a stage and the tensors of a call to the arguments of its kernel: one binder per kind of stage.

A binder allocates what the stage produces, files it under its name in the plan, and returns the values of the
kernel's parameters by name.
"""

from __future__ import annotations

from collections.abc import Callable

from llsa_gen.ir.types import Stage
from llsa_gen.ops.binders import (
    attend,
    attend_grad_kv,
    attend_grad_q,
    coarsen,
    delta,
    invert_index,
    merge_grad_kv,
    select,
)
from llsa_gen.ops.launch import Arguments
from llsa_gen.ops.state import Run

BINDERS: dict[str, Callable[[Stage, Run], Arguments]] = {
    "coarsen": coarsen.bind,
    "select": select.bind,
    "attend": attend.bind,
    "delta": delta.bind,
    "invert_index": invert_index.bind,
    "attend_grad_q": attend_grad_q.bind,
    "attend_grad_kv": attend_grad_kv.bind,
    "merge_grad_kv": merge_grad_kv.bind,
}
"""The binder of every kind of stage."""
