# SPDX-License-Identifier: Apache-2.0
"""Matrix products in exact fp32: fused multiply-adds where tensor cores would round to TF32."""

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
