# SPDX-License-Identifier: Apache-2.0
"""The kinds of kernels: one module each, with its node, its mathematics and its cost formula."""

from llsa_gen.ir.types import Stage
from llsa_gen.stages.attend import Attend, Segment, SegmentStage
from llsa_gen.stages.attend_grad_kv import AttendGradKV, GradKVStage
from llsa_gen.stages.attend_grad_q import AttendGradQ
from llsa_gen.stages.coarsen import Coarsen
from llsa_gen.stages.delta import Delta
from llsa_gen.stages.invert_index import InvertIndex
from llsa_gen.stages.merge_grad_kv import MergeGradKV
from llsa_gen.stages.select import Select

STAGE_KINDS: dict[str, type[Stage]] = {
    kind.kind: kind for kind in (Coarsen, Select, Attend, Delta, InvertIndex, AttendGradQ, AttendGradKV, MergeGradKV)
}
"""Every kind of stage by its name, in the order in which plans use them."""

__all__ = [
    "STAGE_KINDS",
    "Attend",
    "AttendGradKV",
    "AttendGradQ",
    "Coarsen",
    "Delta",
    "GradKVStage",
    "InvertIndex",
    "MergeGradKV",
    "Segment",
    "SegmentStage",
    "Select",
]
