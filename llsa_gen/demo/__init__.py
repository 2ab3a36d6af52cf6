# SPDX-License-Identifier: Apache-2.0
"""The demo: LLSA over the pixels of a photograph, compared with dense attention, and a picture that explains it."""

from llsa_gen.demo.report import DemoReport, HeadReport, render_report
from llsa_gen.demo.runner import run

__all__ = ["DemoReport", "HeadReport", "render_report", "run"]
