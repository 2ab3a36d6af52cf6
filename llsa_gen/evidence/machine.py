# SPDX-License-Identifier: Apache-2.0
"""The machine that a record holds for: device, clocks, driver, software, and what made the kernels."""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import asdict
from typing import Any

from llsa_gen.evidence.setting import Results, Setting
from llsa_gen.jit import cache, toolchain

_QUERY = (
    "name",
    "driver_version",
    "memory.total",
    "power.limit",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "temperature.gpu",
    "mig.mode.current",
)


def describe(setting: Setting) -> Results:
    """Yields what is known of the device, of the software and of the kernels in the cache."""
    yield {"kind": "host", "platform": platform.platform(), "machine": platform.machine()}
    yield {"kind": "software", **asdict(toolchain.describe())}
    yield {"kind": "torch", **_torch(setting)}
    yield {"kind": "nvidia-smi", **_clocks()}
    yield {"kind": "kernels", "toolchains": kernel_toolchains(setting.target)}


def kernel_toolchains(target: str) -> list[dict[str, Any]]:
    """The different toolchains that the kernels of a target in the cache were built with."""
    found = {
        str(entry.record.get("toolchain")): entry.record.get("toolchain")
        for entry in cache.entries()
        if entry.target == target
    }
    return [made or {"toolchain": "not recorded"} for made in found.values()]


def _torch(setting: Setting) -> dict[str, Any]:
    import torch

    said: dict[str, Any] = {"version": torch.__version__, "cuda": torch.version.cuda, "device": setting.device}
    if not torch.cuda.is_available():
        return said | {"gpu": None}
    properties = torch.cuda.get_device_properties(0)
    capability = torch.cuda.get_device_capability(0)
    return said | {
        "gpu": properties.name,
        "capability": list(capability),
        "target": toolchain.target_of_capability(capability),
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def _clocks() -> dict[str, Any]:
    """What nvidia-smi says of the first GPU, or that it is not there."""
    path = shutil.which("nvidia-smi")
    if path is None:
        return {"found": False}
    command = [path, f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)  # noqa: S603  (own words)
    except subprocess.TimeoutExpired:
        return {"found": True, "error": "no answer within 20 s"}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    if done.returncode or len(values) != len(_QUERY):
        return {"found": True, "error": (done.stderr or done.stdout).strip()[:400]}
    return {"found": True, **dict(zip(_QUERY, values, strict=True))}
