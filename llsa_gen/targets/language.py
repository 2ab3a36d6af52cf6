# SPDX-License-Identifier: Apache-2.0
"""What kernels are written in: TileLang for GPUs and their emulation, TVM's TIR for CPUs."""

from __future__ import annotations

from llsa_gen.targets.base import Language, Target

LANES = frozenset({"coarsen", "select", "attend", "delta", "attend_grad_q", "attend_grad_kv"})
"""Kinds of kernel with a text of their own for CPUs; the others run there as C code."""


def language_of(kind: str, target: Target) -> Language:
    """The language of a kind of kernel for a target."""
    return "tvm" if target.kind == "cpu" and kind in LANES else "tilelang"
