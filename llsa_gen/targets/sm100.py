# SPDX-License-Identifier: Apache-2.0
"""NVIDIA Blackwell for data centres, compute capability 10.0 with its architecture-specific instructions (B200).

Limits: CUDA C++ Programming Guide 13.0, appendix "Compute Capabilities", table "Technical Specifications per Compute
Capability", column 10.0; shared memory: Blackwell Tuning Guide 13.0, section 1.4.2.3. The fp32 rate is left out: public
documents disagree about it.
"""

from llsa_gen.targets.base import KIB, Rate, Target

_PRODUCT = "B200 SXM (one of eight in a DGX or HGX system)"
# Stated per system of eight with 2:4 sparsity (36 PFLOPS); dense per GPU is a sixteenth of that.
_MATMUL = "NVIDIA HGX platform specifications, HGX B200, FP16/BF16 Tensor Core"
# Stated per system of eight (64 TB/s).
_MEMORY = "NVIDIA DGX B200 datasheet, GPU memory bandwidth"

TARGET = Target(
    name="sm100",
    kind="cuda",
    arch="sm_100a",
    registers_per_thread=255,
    registers_per_sm=64 * KIB,
    shared_per_block=227 * KIB,
    shared_per_sm=228 * KIB,
    shared_reserved=1 * KIB,
    threads_per_block=1024,
    threads_per_sm=2048,
    blocks_per_sm=32,
    warp=32,
    tensor_core="tcgen05",
    features=frozenset({"cp_async", "mbarrier", "tma", "clusters", "tcgen05"}),
    rates=(
        Rate("fp16_matmul", 2.25e15, _PRODUCT, _MATMUL),
        Rate("bf16_matmul", 2.25e15, _PRODUCT, _MATMUL),
        Rate("memory", 8e12, _PRODUCT, _MEMORY),
    ),
)
