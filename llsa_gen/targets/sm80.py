# SPDX-License-Identifier: Apache-2.0
"""NVIDIA Ampere, compute capability 8.0 (A100).

Limits: CUDA C++ Programming Guide 12.x, appendix "Compute Capabilities", table "Technical Specifications per Compute
Capability", column 8.0; the KiB reserved per block: Ampere Tuning Guide, section 1.4.3 on unified shared memory.
"""

from llsa_gen.targets.base import KIB, Rate, Target

_PRODUCT = "A100 SXM 80 GB"
_SOURCE = "NVIDIA A100 Tensor Core GPU datasheet, June 2021"

TARGET = Target(
    name="sm80",
    kind="cuda",
    arch="sm_80",
    registers_per_thread=255,
    registers_per_sm=64 * KIB,
    shared_per_block=163 * KIB,
    shared_per_sm=164 * KIB,
    shared_reserved=1 * KIB,
    threads_per_block=1024,
    threads_per_sm=2048,
    blocks_per_sm=32,
    warp=32,
    tensor_core="mma",
    features=frozenset({"cp_async", "mbarrier"}),
    rates=(
        Rate("fp32", 19.5e12, _PRODUCT, _SOURCE),
        Rate("fp16_matmul", 312e12, _PRODUCT, _SOURCE),
        Rate("bf16_matmul", 312e12, _PRODUCT, _SOURCE),
        Rate("memory", 2039e9, _PRODUCT, _SOURCE),
    ),
)
