# SPDX-License-Identifier: Apache-2.0
"""Kernels of a few lines for CPUs, which try out what the large ones are spoken in."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llsa_gen.jit.lower_lanes import LanesCompiler, LanesRequest, symbol_of
from llsa_gen.jit.toolchain import require_cxx

ROW = 64
"""Numbers that a kernel handles at once."""

_TEXT = """
from tvm.script import tirx as T

from llsa_gen.jit.lanes import {words}


def mapped(on, *, source, result):
    @T.prim_func
    def mapped(x: T.handle(source), y: T.handle(result), rows: T.int32, tile: T.int32):
        T.func_attr({{"tirx.noalias": True, "tasks": "1"}})
        x_view = T.decl_buffer((rows, {row}), source, data=x)
        y_view = T.decl_buffer((rows, {row}), result, data=y)
        for i in T.serial(rows):
            for d in T.vectorized({row}):
                y_view[i, d] = {expression}

    return mapped
"""


def mapped(folder: Path, isa: str, words: str, expression: str) -> Callable[[Tensor, torch.dtype], Tensor]:
    """An expression of the number ``x_view[i, d]``, as a kernel computes it of every number of a tensor.

    Args:
        folder: Where the kernel is built.
        isa: The instruction set, one that this machine executes.
        words: What the expression takes from `llsa_gen.jit.lanes`.
        expression: The text.
    """
    source = folder / "mapped.py"
    source.write_text(_TEXT.format(words=words, expression=expression, row=ROW), encoding="utf-8")

    def compute(numbers: Tensor, dtype: torch.dtype) -> Tensor:
        types = {"source": str(numbers.dtype).removeprefix("torch."), "result": str(dtype).removeprefix("torch.")}
        function = _loaded(folder, LanesRequest(str(source), "mapped", types, isa, str(folder / "mapped.o")))
        whole = torch.nn.functional.pad(numbers, (0, -len(numbers) % ROW))
        found = torch.empty_like(whole, dtype=dtype)
        function(ctypes.c_void_p(whole.data_ptr()), ctypes.c_void_p(found.data_ptr()), len(whole) // ROW, 0)
        return found[: len(numbers)]

    return compute


def _loaded(folder: Path, request: LanesRequest) -> Any:
    """A kernel, compiled and loaded; every library has a name of its own, because one is loaded once by its name."""
    library = folder / f"mapped_{len(list(folder.glob('*.so')))}.so"
    with LanesCompiler() as lanes:
        lanes.compile_object(request)
    subprocess.run([require_cxx().path, "-shared", "-o", str(library), request.output], check=True)
    return getattr(ctypes.CDLL(str(library)), symbol_of(request.factory))
