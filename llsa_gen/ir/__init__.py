# SPDX-License-Identifier: Apache-2.0
"""The plan: tensors, stages and their meaning, independent of any device.

``types``, ``names`` and ``sizes`` describe a plan; ``verify``, ``interpret`` and ``text`` act on one. The latter
know the stages by their kind only, so that the stage modules can build on the former.
"""

from llsa_gen.ir.types import Axis, KernelKey, Piece, Plan, Stage, TensorType

__all__ = ["Axis", "KernelKey", "Piece", "Plan", "Stage", "TensorType"]
