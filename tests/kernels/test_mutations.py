# SPDX-License-Identifier: Apache-2.0
"""The tests would notice: every fault of `MUTANTS`, put into a template, breaks the law that is named for it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llsa_gen.codegen import render
from llsa_gen.codegen.package import PREFIXES, file_of
from llsa_gen.jit import compile as compiler
from llsa_gen.jit import lower
from llsa_gen.ops import launch
from llsa_gen.targets import CPU_TARGETS
from tests.kernels.calls import CPU
from tests.kernels.gradient_laws import GRADIENT_LAWS
from tests.kernels.gradient_mutants import GRADIENT_MUTANTS
from tests.kernels.lane_mutants import LANE_MUTANTS
from tests.kernels.laws import BASE, JOINED
from tests.kernels.laws import LAWS as FORWARD_LAWS
from tests.kernels.mutants import MUTANTS as FORWARD_MUTANTS
from tests.kernels.mutants import Mutant, edited, generated_anew, templates_of
from tests.tree import ROOT

LAWS = {**FORWARD_LAWS, **GRADIENT_LAWS}
MUTANTS = FORWARD_MUTANTS + GRADIENT_MUTANTS + LANE_MUTANTS
SAMPLE = 4
"""The ordinary run builds the kernels of every fourth mutant, the deep one those of all."""

pytestmark = pytest.mark.usefixtures("emulated")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "fault" in metafunc.fixturenames:
        chosen = MUTANTS if metafunc.config.getoption("--full") else MUTANTS[::SAMPLE]
        metafunc.parametrize("fault", chosen, ids=lambda mutant: mutant.name)


@pytest.mark.parametrize("name", sorted({mutant.killed_by for mutant in MUTANTS} | set(GRADIENT_LAWS)))
@pytest.mark.parametrize("target", CPU_TARGETS)
def test_right_kernels_keep_the_law(
    name: str, target: str, tmp_path: Path, scratch_kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "CPU_TARGET", target)
    with templates_of(None, tmp_path / "templates", scratch_kernels):
        LAWS[name](tmp_path, CPU)


def test_a_fault_breaks_its_law(fault: Mutant, tmp_path: Path, scratch_kernels: Path) -> None:
    with templates_of(fault, tmp_path / "templates", scratch_kernels), pytest.raises(AssertionError):
        LAWS[fault.killed_by](tmp_path, CPU)


@pytest.mark.parametrize("law", ["offsets_have_64_bits", "gradient_offsets_have_64_bits"])
def test_offsets_of_32_bits_break_their_law(law: str, tmp_path: Path, scratch_kernels: Path) -> None:
    """TileLang computes indices in 64 bits whatever a template says, so this fault is put into what it lowers to."""
    lower_kernel = lower.lower_kernel

    def lower_narrow(*arguments: Any, **more: Any) -> lower.LoweredKernel:
        made = lower_kernel(*arguments, **more)
        assert "(int64_t)" in made.source
        return replace(made, source=made.source.replace("(int64_t)", "(int32_t)"))

    with generated_anew(scratch_kernels / "narrow") as patch:
        patch.setattr(compiler, "CPU_FLAGS", ("-fwrapv", *compiler.CPU_FLAGS))
        patch.setattr(lower, "lower_kernel", lower_narrow)
        with pytest.raises(AssertionError):
            LAWS[law](tmp_path, CPU)


def test_heads_that_read_the_first_one_break_their_law(tmp_path: Path, scratch_kernels: Path) -> None:
    """On a CPU every head is a launch of its own, so this fault is put into what is launched, not into a template."""
    launch_of_heads = launch._launch_of_heads

    def launch_leaking(kernel: Any, arguments: dict[str, Any], *others: Any) -> Any:
        if "o_grad" in arguments:
            shared = arguments["o_grad"][:, :1].expand_as(arguments["o_grad"])
            arguments = {**arguments, "o_grad": shared}
        return launch_of_heads(kernel, arguments, *others)

    with generated_anew(scratch_kernels) as patch:
        patch.setattr(launch, "_launch_of_heads", launch_leaking)
        with pytest.raises(AssertionError):
            LAWS["gradients_of_heads_are_apart"](tmp_path, CPU)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_changes_what_is_generated(mutant: Mutant, tmp_path: Path, scratch_kernels: Path) -> None:
    spec = JOINED if mutant.only.endswith("_whole") else BASE
    right = render(spec)
    with templates_of(mutant, tmp_path / "templates", scratch_kernels):
        wrong = render(spec)
    changed = {name for name in wrong.files if name.endswith(".py") and wrong.body(name) != right.body(name)}
    assert changed and (not mutant.only or changed == {file_of(mutant.only, mutant.language)})
    assert all(name.startswith(PREFIXES["tvm"]) == (mutant.language == "tvm") for name in changed)
    assert render(spec).files == right.files


def test_an_edit_that_does_not_apply_is_refused() -> None:
    mutant = Mutant("nothing", "select", (), "nan_ranks_last")
    text = (ROOT / "templates" / "tilelang" / "select.py.jinja").read_text(encoding="utf-8")
    assert edited(mutant, text) == text
    for mutant in MUTANTS:
        with pytest.raises(AssertionError, match="0 times in"):
            edited(mutant, "")


def test_mutants_have_names_of_their_own_and_laws_that_exist() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert {mutant.killed_by for mutant in MUTANTS} <= set(LAWS)
    assert torch.get_default_dtype() == torch.float32
