# SPDX-License-Identifier: Apache-2.0
"""Rerender: the digests of rendered specs in another process, to find text that depends on a hash seed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from llsa_gen.digest import digest
from llsa_gen.errors import InternalError, explain

if TYPE_CHECKING:
    from llsa_gen.spec import Spec

HASH_SEEDS = (0, 1)

_LAST_LINES = 5


def digests_elsewhere(specs: Mapping[str, Spec], seed: int) -> dict[str, str]:
    """The digest of every rendered spec by slug, from a process with a hash seed of its own.

    Raises:
        InternalError: The process failed.
    """
    fields = {slug: spec.to_fields() for slug, spec in specs.items()}
    run = subprocess.run(  # noqa: S603  # our own interpreter and our own module
        [sys.executable, "-m", __name__],
        input=json.dumps(fields),
        env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode != 0:
        said = "\n".join(run.stderr.splitlines()[-_LAST_LINES:])
        raise InternalError(explain("rendering in another process failed", value=run.returncode, hint=said))
    found = json.loads(run.stdout)
    return {slug: found[slug] for slug in specs}


def digests_here(fields: Mapping[str, Mapping[str, object]]) -> dict[str, str]:
    """The digest of every rendered spec by slug, in this process."""
    from llsa_gen import codegen
    from llsa_gen.spec import Spec

    packages = {slug: codegen.render(Spec.from_fields(given)) for slug, given in fields.items()}
    return {slug: digest([list(file) for file in package.files]) for slug, package in packages.items()}


if __name__ == "__main__":
    json.dump(digests_here(json.load(sys.stdin)), sys.stdout)
