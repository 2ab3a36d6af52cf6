#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Collects evidence on a machine with a GPU: correctness, speed and tuning within a time budget, as OUT/record.json.

The machine needs torch with CUDA and this checkout; no network, no nvcc and no TileLang where the kernels come along:

    python tools/gpu_evidence.py --prepare sm90 --minutes 60 --prebuilt kernels   # anywhere with nvcc, no GPU needed
    python tools/gpu_evidence.py --dry-run --prebuilt kernels                     # try the script, check the kernels
    python tools/gpu_evidence.py --prebuilt kernels --out evidence                # on the machine with the GPU

Where a command may take ten minutes only, three commands do the same, each with an --out of its own and --minutes 9:

    --steps machine kernels compare tests
    --steps memcheck racecheck bench
    --steps schedules

A library carries the CUDA runtime along; as `tar cJf kernels.tar.xz kernels` they take a twentieth of the space.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llsa_gen.errors import LlsaError
from llsa_gen.evidence.budget import Budget
from llsa_gen.evidence.run import Request, run
from llsa_gen.evidence.steps import STEPS
from llsa_gen.paths import CACHE_VARIABLE
from llsa_gen.targets import list_targets

GPU_TARGETS = tuple(target.name for target in list_targets() if target.is_cuda)
STEP_NAMES = tuple(step.need.name for step in STEPS)


def main() -> int:
    """Reads the options and prepares or runs; 0 when everything that ran was right."""
    given = options().parse_args()
    try:
        return prepare(given) if given.prepare else evidence(given)
    except LlsaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=27.0, help="time budget (default: 27)")
    parser.add_argument("--out", type=Path, default=Path("evidence"), help="folder of the record (default: evidence)")
    parser.add_argument("--prebuilt", type=Path, help=f"kernel cache folder (default: ${CACHE_VARIABLE} or the user's)")
    parser.add_argument("--dry-run", action="store_true", help="no GPU: tiny problems on the CPU, check the kernels")
    parser.add_argument("--target", choices=GPU_TARGETS, default="sm90", help="target of a dry run (default: sm90)")
    parser.add_argument("--prepare", choices=GPU_TARGETS, help="build the kernels that a run uses, then stop")
    parser.add_argument("--steps", nargs="+", choices=STEP_NAMES, default=STEP_NAMES, help="run only these")
    return parser


def prepare(given: argparse.Namespace) -> int:
    """Builds the kernels of a run into the cache folder."""
    from llsa_gen.evidence.prebuilt import prepare as build_missing

    if given.prebuilt is not None:
        os.environ[CACHE_VARIABLE] = str(given.prebuilt.absolute())
    for made in build_missing(given.prepare, Budget(60 * given.minutes)):
        print(made, flush=True)
    return 0


def evidence(given: argparse.Namespace) -> int:
    """Runs the steps, on the GPU or dry."""
    from llsa_gen.jit import toolchain

    here = toolchain.describe()
    if not given.dry_run and not here.gpu_targets:
        print(f"error: no GPU that kernels are generated for: {here.gpus or 'torch sees none'}", file=sys.stderr)
        print("  next:    --dry-run tries the script without one", file=sys.stderr)
        return 2
    target = given.target if given.dry_run else here.gpu_targets[0]
    can_build = here.can_compile(target)[0]
    request = Request(given.minutes, given.out, target, given.prebuilt, given.dry_run, can_build, tuple(given.steps))
    return 0 if run(request, lambda line: print(line, flush=True)) else 1


if __name__ == "__main__":
    sys.exit(main())
