# SPDX-License-Identifier: Apache-2.0
"""Cost: flops, traffic and memory of a plan, in symbols and in numbers."""

from llsa_gen.cost.growth import Growth, growth
from llsa_gen.cost.model import Cost, StageCost, cost, measure
from llsa_gen.cost.report import plan_report

__all__ = [
    "Cost",
    "Growth",
    "StageCost",
    "cost",
    "growth",
    "measure",
    "plan_report",
]
