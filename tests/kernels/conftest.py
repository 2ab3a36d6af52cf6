# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the kernel tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors meet the kernels of a GPU, as C code: for tests that change or choose among those."""
    monkeypatch.setattr("llsa_gen.ops.launch.CPU_TARGET", "c")  # by name: imported here, it would not see --emulate


@pytest.fixture(scope="session")
def scratch_kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for kernels that only tests make; it outlives the run where pytest keeps a cache."""
    cache = getattr(request.config, "cache", None)
    return tmp_path_factory.mktemp("kernels") if cache is None else Path(cache.mkdir("llsa_gen_kernels"))
