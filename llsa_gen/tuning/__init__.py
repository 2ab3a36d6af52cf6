# SPDX-License-Identifier: Apache-2.0
"""Tuning: the schedules of every kernel, ranked by a model, checked against the reference, timed, and recorded.

`llsa_gen.evidence.schedules` measures what lies in a cache, for a report, and chooses nothing.
"""

from llsa_gen.tuning.request import DEFAULT_TOKENS, Request, check
from llsa_gen.tuning.runner import dry_run, run

__all__ = ["DEFAULT_TOKENS", "Request", "check", "dry_run", "run"]
