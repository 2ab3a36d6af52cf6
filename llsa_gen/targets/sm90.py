# SPDX-License-Identifier: Apache-2.0
"""NVIDIA Hopper, compute capability 9.0 with its architecture-specific instructions (H100, H200).

Limits: CUDA C++ Programming Guide 12.x, appendix "Compute Capabilities", table "Technical Specifications per Compute
Capability", column 9.0; the KiB reserved per block: Hopper Tuning Guide, section 1.4.2 on unified shared memory.
"""

from llsa_gen.targets.base import KIB, Rate, Target

_PRODUCT = "H200 SXM"
# The datasheet states matrix rates with 2:4 sparsity (1979 TFLOPS); dense is half of that.
_SOURCE = "NVIDIA H200 Tensor Core GPU datasheet, 2024"

TARGET = Target(
    name="sm90",
    kind="cuda",
    arch="sm_90a",
    registers_per_thread=255,
    registers_per_sm=64 * KIB,
    shared_per_block=227 * KIB,
    shared_per_sm=228 * KIB,
    shared_reserved=1 * KIB,
    threads_per_block=1024,
    threads_per_sm=2048,
    blocks_per_sm=32,
    warp=32,
    tensor_core="wgmma",
    features=frozenset({"cp_async", "mbarrier", "tma", "wgmma", "clusters"}),
    rates=(
        Rate("fp32", 67e12, _PRODUCT, _SOURCE),
        Rate("fp16_matmul", 989.5e12, _PRODUCT, _SOURCE),
        Rate("bf16_matmul", 989.5e12, _PRODUCT, _SOURCE),
        Rate("memory", 4.8e12, _PRODUCT, _SOURCE),
    ),
)
