# SPDX-License-Identifier: Apache-2.0
"""One step in a process of its own, so that a crash, a hang or a spoilt CUDA context costs that step only."""

from __future__ import annotations

import argparse
import json
import sys

from llsa_gen.evidence.setting import Setting
from llsa_gen.evidence.steps import work_of

MARK = "RESULT "
"""A line of output that begins so carries one result as JSON."""


def main(arguments: list[str]) -> None:
    """Runs a step and prints every result as it comes."""
    parser = argparse.ArgumentParser(prog="llsa_gen.evidence.worker")
    parser.add_argument("step")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--target", default="sm90")
    parser.add_argument("--limit", type=float, default=600.0)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args(arguments)
    setting = Setting(given.device, given.target, given.limit, given.tiny)
    for result in work_of(given.step)(setting):
        sys.stdout.write(f"{MARK}{json.dumps(result, default=str)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
