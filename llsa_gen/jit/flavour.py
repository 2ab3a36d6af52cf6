# SPDX-License-Identifier: Apache-2.0
"""The few words in which one kernel text is spoken on a CPU and on a GPU.

A generated kernel is written once against a `Flavour`. On a GPU its words are TileLang's
shared tiles, fragments, parallel loops, pipelines and tensor-core products; on a CPU the
same words become local arrays and plain loops, which TileLang's C target can execute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tilelang.language as T

from llsa_gen.jit.matmul import exact_product, exact_product_transposed, tile_product

STRIDE_UNIT = 8  # strides of q, k, v and o reach a kernel in units of 8 elements, which keeps vector loads provable


@dataclass(frozen=True)
class Flavour:
    """How a kernel text is spoken on one kind of machine.

    Attributes:
        cpu: True for the serial C flavour, False for CUDA.
        exact: True when products must be computed by fused multiply-add in fp32 instead of on
            tensor cores, which would round fp32 operands to TF32.
    """

    cpu: bool
    exact: bool = False

    def kernel(self, *grid: Any, threads: int) -> Any:
        """Opens the kernel over a grid of tiles."""
        return T.Kernel(*grid) if self.cpu else T.Kernel(*grid, threads=threads)

    def shared(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Allocates a tile that all threads of a block can see."""
        return T.alloc_local(shape, self.stored(dtype)) if self.cpu else T.alloc_shared(shape, dtype)

    def fragment(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Allocates a tile spread over the registers of a block."""
        return T.alloc_local(shape, self.stored(dtype)) if self.cpu else T.alloc_fragment(shape, dtype)

    def stored(self, dtype: str) -> str:
        """Names the element type a tensor has in memory: the C target holds half types as fp32."""
        return "float32" if self.cpu and dtype in ("float16", "bfloat16") else dtype

    def parallel(self, *extents: int) -> Any:
        """Loops over independent elements."""
        if not self.cpu:
            return T.Parallel(*extents)
        return T.serial(extents[0]) if len(extents) == 1 else T.grid(*extents)

    def pipelined(self, extent: Any, stages: int) -> Any:
        """Loops over tiles, overlapping the loads of later ones when stages > 0."""
        return T.serial(extent) if self.cpu or stages == 0 else T.Pipelined(extent, num_stages=stages)

    def product(self, a: Any, b: Any, c: Any, *, by: str) -> Any:
        """Adds a @ b to the accumulator c; `by` says which axis the warps divide ("rows" or "columns")."""
        if self.cpu:
            return tile_product(a, b, c, self.parallel)
        if self.exact:
            return exact_product(a, b, c)
        return T.gemm(a, b, c, **self._policy(by))

    def product_transposed(self, a: Any, b: Any, c: Any, *, by: str) -> Any:
        """Adds a @ b^T to the accumulator c."""
        if self.exact and not self.cpu:
            return exact_product_transposed(a, b, c)
        return T.gemm(a, b, c, transpose_B=True, **self._policy(by))

    def _policy(self, by: str) -> dict[str, Any]:
        if self.cpu:
            return {}
        return {"policy": T.GemmWarpPolicy.FullRow if by == "rows" else T.GemmWarpPolicy.FullCol}
