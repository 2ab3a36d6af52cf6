# SPDX-License-Identifier: Apache-2.0
"""The torch face: public functions, registered ops, and generated ops by name."""

from llsa_gen.ops.functional import llsa_attend, llsa_attention, llsa_select
from llsa_gen.ops.op import Op, load, load_package
from llsa_gen.ops.transpose import transpose_indices

__all__ = ["Op", "llsa_attend", "llsa_attention", "llsa_select", "load", "load_package", "transpose_indices"]
