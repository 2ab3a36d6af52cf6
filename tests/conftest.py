# SPDX-License-Identifier: Apache-2.0
"""Options, hypothesis profiles and fixtures that all tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from llsa_gen.paths import CACHE_VARIABLE, TUNING_VARIABLE, cache_dir
from llsa_gen.spec import TARGET_NAMES
from llsa_gen.targets import CPU_TARGETS, CPU_VARIABLE

if TYPE_CHECKING:
    import torch

# No deadline and no complaint about slowness: the first example of a property may compile a kernel.
settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("full", settings.get_profile("ci"), derandomize=False, max_examples=400)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="deeper property tests, all architectures")
    parser.addoption("--emulate", action="store_true", help="CPU tensors meet the kernels of a GPU, as C code")
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where kernels run (default: cpu)")


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as below nohup; children would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Before collection, because decorators of tests read the profile.
    settings.load_profile("full" if config.getoption("--full") else "ci")
    if config.getoption("--emulate"):
        os.environ[CPU_VARIABLE] = "c"
    if config.getoption("--device") == "cuda":
        _require_cuda()


def _require_cuda() -> None:
    """Ends the run where the device that was asked for is missing: its tests are never skipped."""
    import torch

    if not torch.cuda.is_available():
        raise pytest.UsageError(f"--device cuda: torch {torch.__version__} sees no CUDA device here")


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the run is the deep one."""
    return bool(request.config.getoption("--full"))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the kernels of this run execute."""
    import torch

    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def architectures(full: bool) -> tuple[str, ...]:
    """The GPU targets to compile for, which needs no GPU: all of them in the deep run, else one."""
    return tuple(name for name in TARGET_NAMES if name not in CPU_TARGETS) if full else ("sm90",)


@pytest.fixture(scope="session", autouse=True)
def _one_cache() -> Iterator[None]:
    """Lets all processes of a run, and the next run, share compiled kernels: the user's cache unless one is named."""
    with pytest.MonkeyPatch.context() as patch:
        if not os.environ.get(CACHE_VARIABLE):
            patch.setenv(CACHE_VARIABLE, str(cache_dir()))
        patch.setenv(TUNING_VARIABLE, "0")  # what is tested does not hang on what was tuned here
        yield


@pytest.fixture
def other_tools() -> Iterator[None]:
    """Lets a test choose the compilers: what is known of them is forgotten before and after."""
    from llsa_gen.jit import toolchain

    asked = (toolchain.find_cxx, toolchain.find_nvcc, toolchain.describe)
    for question in asked:
        question.cache_clear()
    yield
    for question in asked:
        question.cache_clear()


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Lets this machine be one of a narrower instruction set: called with its name."""
    from llsa_gen.jit import isa as sets
    from llsa_gen.ops.calls import forget_passes

    def pretend(isa: str) -> None:
        assert isa in sets.executable_isas(), "no test may execute what the machine does not"
        if isa != sets.host_isa():
            below = sets.ISAS[sets.ISAS.index(isa) :]
            flags = frozenset[str]().union(*(flags for name, flags in sets._LEVELS if name in below))
            monkeypatch.setattr(sets, "_processor_flags", lambda: flags)
        sets.host_isa.cache_clear()
        forget_passes()

    yield pretend
    monkeypatch.undo()
    sets.host_isa.cache_clear()
    forget_passes()


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that holds nothing, for tests about the cache itself."""
    folder = tmp_path / "cache"
    monkeypatch.setenv(CACHE_VARIABLE, str(folder))
    return folder
