# SPDX-License-Identifier: Apache-2.0
"""Cost: flops, traffic and memory of a plan, in symbols and in numbers."""

from llsa_gen.cost.depth import DepthChoice, DepthRow, choose_depth
from llsa_gen.cost.growth import Growth, growth
from llsa_gen.cost.model import Cost, StageCost, cost, measure
from llsa_gen.cost.report import plan_report, render_report

__all__ = [
    "Cost",
    "DepthChoice",
    "DepthRow",
    "Growth",
    "StageCost",
    "choose_depth",
    "cost",
    "growth",
    "measure",
    "plan_report",
    "render_report",
]
