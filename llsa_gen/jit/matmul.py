# SPDX-License-Identifier: Apache-2.0
"""Matrix products that a target does not give: exact fp32 on a GPU, and sums by tile on a CPU."""

import tilelang.language as T


@T.macro
def exact_product(a, b, c):
    """Adds a @ b to c, one rank-one update per step."""
    for k in T.serial(a.shape[1]):
        for i, j in T.Parallel(c.shape[0], c.shape[1]):
            c[i, j] += a[i, k] * b[k, j]


@T.macro
def exact_product_transposed(a, b, c):
    """Adds a @ b^T to c, one rank-one update per step."""
    for k in T.serial(a.shape[1]):
        for i, j in T.Parallel(c.shape[0], c.shape[1]):
            c[i, j] += a[i, k] * b[j, k]


@T.macro
def tile_product(a, b, c, parallel):
    """Adds a @ b to c as one sum per tile, as a matrix unit does, so that errors do not grow with every single key."""
    part = T.alloc_local((c.shape[0], c.shape[1]), "float32")
    T.clear(part)
    T.gemm(a, b, part)
    for i, j in parallel(c.shape[0], c.shape[1]):
        c[i, j] += part[i, j]
