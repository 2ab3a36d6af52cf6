# SPDX-License-Identifier: Apache-2.0
"""Inputs shared by tests, tuning and benches."""

from llsa_gen.workloads.inputs import FINITE_CASES, NONFINITE_CASES, Qkv, adversarial_qkv, clustered_qkv, random_qkv

__all__ = ["FINITE_CASES", "NONFINITE_CASES", "Qkv", "adversarial_qkv", "clustered_qkv", "random_qkv"]
