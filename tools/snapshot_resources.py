#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compiles the GPU kernels of the catalogue and compares what they take with the snapshot; --write replaces it.

Needs nvcc and no GPU. What is in the kernel cache is not compiled again.

    tools/snapshot_resources.py                  # show what differs; exit status 1 if anything does
    tools/snapshot_resources.py --write          # and replace tests/data/resources.json
    tools/snapshot_resources.py --target sm90 --spec pixel_dit
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llsa_gen.catalog import catalogue
from llsa_gen.errors import LlsaError
from tests import resources


def main() -> int:
    """Compiles, shows the difference, and writes where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace the entries of the snapshot")
    parser.add_argument("--target", nargs="+", choices=resources.GPU_TARGETS, default=resources.GPU_TARGETS)
    parser.add_argument("--spec", nargs="+", choices=tuple(catalogue()), default=tuple(catalogue()))
    given = parser.parse_args()
    try:
        found = resources.measure(given.spec, given.target, lambda line: print(line, file=sys.stderr, flush=True))
    except LlsaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return report(
        found, whole=(given.spec, given.target) == (tuple(catalogue()), resources.GPU_TARGETS), write=given.write
    )


def report(found: resources.Flat, *, whole: bool, write: bool) -> int:
    """Prints the difference to the snapshot; a run over everything also finds kernels that are gone."""
    before = resources.read() if resources.SNAPSHOT.is_file() else {}
    compared = before if whole else {key: taken for key, taken in before.items() if key in found}
    changes = resources.differences(compared, found)
    print("\n".join(changes) or "the snapshot is up to date")
    if write and changes:
        resources.write(found if whole else before | found)
        print(f"wrote {resources.SNAPSHOT.name}")
    return 1 if changes and not write else 0


if __name__ == "__main__":
    sys.exit(main())
