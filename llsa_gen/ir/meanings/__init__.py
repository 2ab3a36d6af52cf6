# SPDX-License-Identifier: Apache-2.0
"""The slow meaning of every kind of stage."""

from __future__ import annotations

from collections.abc import Callable

from llsa_gen.ir.meanings import backward, forward, invert_index
from llsa_gen.ir.meanings.state import State
from llsa_gen.ir.types import Stage

MEANINGS: dict[str, Callable[[Stage, State], None]] = {
    "coarsen": forward.coarsen,
    "select": forward.select,
    "attend": forward.attend,
    "delta": backward.delta,
    "invert_index": invert_index.invert_index,
    "attend_grad_q": backward.attend_grad_q,
    "attend_grad_kv": backward.attend_grad_kv,
    "merge_grad_kv": backward.merge_grad_kv,
}
"""What each kind of stage does."""
