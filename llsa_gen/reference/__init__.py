# SPDX-License-Identifier: Apache-2.0
"""The oracle chain: loops, vectorised torch and a dense mask, and the rules by which results are compared with them."""

from llsa_gen.reference import dense_mask, error_rule, scalar, vectorised
from llsa_gen.reference.error_rule import (
    GRADIENT_FACTOR,
    OUTPUT_FACTOR,
    assert_close_by_rule,
    native,
    rounding_magnitude,
)
from llsa_gen.reference.layout import Shape, node_count
from llsa_gen.reference.selection_rule import assert_same_selection
from llsa_gen.reference.vectorised import attend, attention, pool, select, select_from_pools

__all__ = [
    "GRADIENT_FACTOR",
    "OUTPUT_FACTOR",
    "Shape",
    "assert_close_by_rule",
    "assert_same_selection",
    "attend",
    "attention",
    "dense_mask",
    "error_rule",
    "native",
    "node_count",
    "pool",
    "rounding_magnitude",
    "scalar",
    "select",
    "select_from_pools",
    "vectorised",
]
