# SPDX-License-Identifier: Apache-2.0
"""Checks by other tools: pytest on the device, and compute-sanitizer."""

from __future__ import annotations

import re
import shutil
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from llsa_gen.evidence import process
from llsa_gen.evidence.setting import Results, Setting
from llsa_gen.paths import checkout_root

FOLDERS = ("tests/kernels", "tests/torch_face")
NEEDED = ("pytest", "hypothesis", "scipy")
"""What the tests import; files that need a compiler besides end as errors, and the others run."""
_OUTCOME = re.compile(r"^(tests/\S+?)(?:\[.*\])? (PASSED|FAILED|ERROR|SKIPPED|XFAIL)|^(FAILED|ERROR) (tests/.*)$")
NOT_BUILT = ("NotBuiltError", "ToolMissingError")
"""Errors that say that a test's kernels are not in the cache, and nothing about their correctness."""
MARGIN = 5.0
"""Seconds before the end of a step at which the tool that it runs is ended."""


def tests(setting: Setting) -> Results:
    """Runs the device tests and yields their counts, also of a run that was stopped, and the failures."""
    folders, missing = present(), [name for name in NEEDED if find_spec(name) is None]
    if missing or not folders:
        yield {"skipped": f"missing: {', '.join(missing or FOLDERS)}; the step compare stands for it"}
        return
    options = [
        "-v",
        "-rfE",
        "--continue-on-collection-errors",
        "--tb=line",
        "--no-header",
        "-p",
        "no:cacheprovider",
        "--device",
        setting.device,
    ]
    command = [sys.executable, "-m", "pytest", *folders, *options]
    counts: Counter[str] = Counter()
    failures: list[str] = []

    def listen(line: str) -> None:
        found = _OUTCOME.match(line.strip())
        if found and found[2]:
            counts[found[2].lower()] += 1
        elif found:
            failures.append(line[:400])

    outcome = process.run(command, setting.limit - MARGIN, listen)
    unbuilt = [line for line in failures if any(name in line for name in NOT_BUILT)]
    yield {
        "command": command[1:],
        "status": outcome.status,
        "counts": dict(counts),
        "not_built": len(unbuilt),
        "failures": [line for line in failures if line not in unbuilt][:40],
        "tail": outcome.tail if outcome.code not in (0, 1) else "",
    }


def present() -> list[str]:
    """The folders of device tests that this checkout has."""
    root = checkout_root()
    return [str(root / name) for name in FOLDERS if root is not None and (root / name).is_dir()]


def memcheck(setting: Setting) -> Results:
    """Reads and writes out of bounds."""
    return _sanitize("memcheck", setting)


def racecheck(setting: Setting) -> Results:
    """Hazards in shared memory."""
    return _sanitize("racecheck", setting)


def find_sanitizer() -> str | None:
    """compute-sanitizer: on the path, of the CUDA toolkit, or of the PyPI package; None where there is none."""
    found = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    spec = find_spec("nvidia")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    packaged = [path for folder in folders for path in sorted(Path(folder).glob("*/bin/compute-sanitizer"))]
    return found or next((str(path) for path in packaged), None)


def sanitizer_command(tool: str, setting: Setting, sanitizer: str) -> list[str]:
    """The kernels on small problems under a tool of compute-sanitizer."""
    inner = [sys.executable, "-m", "llsa_gen.evidence.worker", "exercise", "--device", setting.device]
    options = ["--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
    return [sanitizer, *options, *inner, "--target", setting.target]


def _sanitize(tool: str, setting: Setting) -> Results:
    sanitizer = find_sanitizer()
    if sanitizer is None:
        yield {"skipped": "compute-sanitizer is not installed here; pip install nvidia-cuda-sanitizer-api"}
        return
    lines: list[str] = []

    def listen(line: str) -> None:
        if line.startswith(("=========", "RESULT")):
            lines.append(line[:300])

    outcome = process.run(sanitizer_command(tool, setting, sanitizer), setting.limit - MARGIN, listen)
    ran = sum(line.startswith("RESULT") for line in lines)
    said = [line for line in lines if line.startswith("=========")]
    yield {"tool": tool, "status": outcome.status, "code": outcome.code, "specs_run": ran, "said": said[-30:]}
