# SPDX-License-Identifier: Apache-2.0
"""The kinds of kernels: one module each, with its node, its mathematics and its cost formula."""

from llsa_gen.ir.types import Stage
from llsa_gen.stages.attend import Attend, Segment
from llsa_gen.stages.coarsen import Coarsen
from llsa_gen.stages.select import Select

STAGE_KINDS: dict[str, type[Stage]] = {kind.kind: kind for kind in (Coarsen, Select, Attend)}
"""Every kind of stage by its name."""

__all__ = ["STAGE_KINDS", "Attend", "Coarsen", "Segment", "Select"]
