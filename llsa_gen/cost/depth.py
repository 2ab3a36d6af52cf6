# SPDX-License-Identifier: Apache-2.0
"""The choice of the depth, a matter of cost; lowering needs it, so it lives there."""

from llsa_gen.lowering.resolve_depth import DepthChoice, DepthRow, choose_depth

__all__ = ["DepthChoice", "DepthRow", "choose_depth"]
