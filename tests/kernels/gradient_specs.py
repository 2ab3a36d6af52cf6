# SPDX-License-Identifier: Apache-2.0
"""Specs whose gradients are tested kernel by kernel.

Every enrichment, weights of three kinds, depths 1 to 3, padded tiles, and blocks below and above a tile of keys.
"""

from llsa_gen.spec import Spec

ONE_LEVEL = Spec(levels=1, block=4, topk=3, head_dim=16, dtype="fp32", weight="1")
TWO_LEVELS = Spec(
    levels=2, block=16, topk=(5, 3), head_dim=24, value_dim=40, dtype="bf16", enrichment="exclude_refined"
)
THREE_LEVELS = Spec(
    levels=3,
    block=4,
    topk=(3, 2, 5),
    head_dim=16,
    value_dim=24,
    dtype="fp32",
    enrichment="exclude_refined",
    weight="b**l",
)
LARGE_TOPK = Spec(levels=3, block=8, topk=(20, 3, 2), head_dim=40, value_dim=16, dtype="fp16")
TOKENS_ONLY = Spec(levels=1, block=32, topk=2, head_dim=32, dtype="fp32", enrichment="none")
WIDE = Spec(levels=1, block=128, topk=2, head_dim=32, value_dim=16, dtype="bf16")
