# SPDX-License-Identifier: Apache-2.0
"""The tilings of every kind of kernel."""

from llsa_gen.schedule.tilings.attend import AttendTiling
from llsa_gen.schedule.tilings.attend_grad_q import AttendGradQTiling
from llsa_gen.schedule.tilings.base import Tiling
from llsa_gen.schedule.tilings.coarsen import CoarsenTiling
from llsa_gen.schedule.tilings.delta import DeltaTiling
from llsa_gen.schedule.tilings.select import SelectTiling

TILINGS: dict[str, type[Tiling]] = {
    "coarsen": CoarsenTiling,
    "select": SelectTiling,
    "attend": AttendTiling,
    "delta": DeltaTiling,
    "attend_grad_q": AttendGradQTiling,
}
"""The tilings by the kind of stage."""

__all__ = ["TILINGS", "Tiling"]
