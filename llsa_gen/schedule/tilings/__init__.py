# SPDX-License-Identifier: Apache-2.0
"""The tilings of every kind of kernel."""

from llsa_gen.schedule.tilings.attend import AttendTiling
from llsa_gen.schedule.tilings.attend_grad_kv import AttendGradKVTiling
from llsa_gen.schedule.tilings.attend_grad_q import AttendGradQTiling
from llsa_gen.schedule.tilings.base import Tiling
from llsa_gen.schedule.tilings.coarsen import CoarsenTiling
from llsa_gen.schedule.tilings.delta import DeltaTiling
from llsa_gen.schedule.tilings.invert_index import InvertIndexTiling
from llsa_gen.schedule.tilings.merge_grad_kv import MergeGradKVTiling
from llsa_gen.schedule.tilings.select import SelectTiling

TILINGS: dict[str, type[Tiling]] = {
    "coarsen": CoarsenTiling,
    "select": SelectTiling,
    "attend": AttendTiling,
    "delta": DeltaTiling,
    "invert_index": InvertIndexTiling,
    "attend_grad_q": AttendGradQTiling,
    "attend_grad_kv": AttendGradKVTiling,
    "merge_grad_kv": MergeGradKVTiling,
}
"""The tilings by the kind of stage."""

__all__ = ["TILINGS", "Tiling"]
