# SPDX-License-Identifier: Apache-2.0
"""What a benchmark is asked for, and the checks that come before anything is computed."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from llsa_gen.errors import InputError, ToolMissingError, explain
from llsa_gen.ir.sizes import IntSizes
from llsa_gen.lowering import choose_depth, plans_of
from llsa_gen.schedule import joins
from llsa_gen.spec import Spec
from llsa_gen.targets import get_target
from llsa_gen.timing import CPU

What = Literal["attention", "transpose"]

DEFAULT_TOKENS = tuple(1024 * 2**step for step in range(9))
"""1k to 262k."""
MOST_TOKENS = 2**24
MOST_HEADS = 128
MOST_SECONDS = 86_400
DENSE_LIMIT = 16_384
DENSE_ROWS = 1024
"""Query rows of dense attention above that length: enough for the time per row to be steady."""
OPERANDS_BESIDE = 12
"""Tensors like q that are alive beside those of a plan: leaves, gradients, fp64 copies of a check, dense results."""
INSTALL = "pip install 'llsa-gen[bench]'"


@dataclass(frozen=True)
class Request:
    """One benchmark.

    Attributes:
        spec: What is measured; with ``levels="auto"`` the depth is chosen for every length.
        tokens: Lengths, ascending.
        heads: Heads of one batch entry.
        seconds: Time to measure one length for, builds and checks not counted.
        out: The folder of the files.
        what: Which benchmark.
        dense_limit: Longest length at which dense attention is measured whole.
        flex: Whether FlexAttention is tried.
    """

    spec: Spec
    tokens: tuple[int, ...]
    heads: int
    seconds: float
    out: Path
    what: What = "attention"
    dense_limit: int = DENSE_LIMIT
    flex: bool = True

    def spec_at(self, tokens: int) -> Spec:
        """The spec of known depth at a length."""
        return self.spec.with_depth(choose_depth(self.spec, tokens).levels) if self.spec.is_auto else self.spec

    def files(self) -> tuple[Path, ...]:
        """What is written: CSV, JSON and PNG."""
        return tuple(self.out / f"{self.what}.{kind}" for kind in ("csv", "json", "png"))


def check(request: Request) -> None:
    """Finds out whether all of it can be done.

    Raises:
        InputError: A number is out of its range, or the memory of this machine is too small for a length.
        OSError: The folder cannot be made or written to.
        ToolMissingError: matplotlib is missing.
    """
    check_numbers(request)
    _check_memory(request)
    if find_spec("matplotlib") is None:
        raise ToolMissingError(explain("the picture needs matplotlib, which is not installed", hint=INSTALL))
    _check_folder(request.out)


def check_numbers(request: Request) -> None:
    """Checks what does not depend on the machine; raises InputError."""
    _check_number("heads", request.heads, 1, MOST_HEADS)
    _check_number("dense-limit", request.dense_limit, 1, MOST_TOKENS)
    for tokens in request.tokens:
        _check_number("tokens", tokens, 1, MOST_TOKENS)
    _check_tokens(request.tokens)
    _check_seconds(request.seconds)
    if request.what == "transpose" and not request.spec.gradient:
        what, hint = "the gradient of keys and values is measured", "leave --no-gradient out"
        raise InputError(explain(what, where="gradient", value=False, allowed=True, hint=hint))


def memory_of(request: Request, tokens: int) -> int:
    """Bytes that measuring a length takes, by the plan's model: no tensor of a pass is let go between stages."""
    spec = request.spec_at(tokens)
    sizes = IntSizes.square(spec, tokens, 1, request.heads)
    plans = plans_of(spec, joined=joins(spec, get_target(CPU).language))
    planned = sum(int(tensor.bytes(sizes)) for plan in plans for tensor in plan.tensors)
    return planned + OPERANDS_BESIDE * 4 * request.heads * tokens * max(spec.head_dim, spec.dim_v)


def available_memory() -> int:
    """Bytes that can be had without swapping; of the whole machine where Linux does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = dict(line.split(":", 1) for line in lines)
        return int(found["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _check_number(name: str, value: object, lowest: int, highest: int) -> None:
    if type(value) is int and lowest <= value <= highest:
        return
    allowed = f"whole numbers from {lowest:,} to {highest:,}"
    hint = f"leave --{name} out for the default"
    raise InputError(explain(f"{name} is out of its range", where=name, value=value, allowed=allowed, hint=hint))


def _check_tokens(tokens: Sequence[int]) -> None:
    if tokens and list(tokens) == sorted(set(tokens)):
        return
    allowed, hint = "one length or more, ascending", "write for example --tokens 1k,4k,16k"
    raise InputError(explain("lengths must ascend", where="tokens", value=tuple(tokens), allowed=allowed, hint=hint))


def _check_seconds(seconds: float) -> None:
    if math.isfinite(seconds) and 0 < seconds <= MOST_SECONDS:
        return
    allowed, hint = f"more than 0, up to {MOST_SECONDS:,}", "leave --seconds out for the default"
    what = "the time for a length is out of its range"
    raise InputError(explain(what, where="seconds", value=seconds, allowed=allowed, hint=hint))


def _check_memory(request: Request) -> None:
    longest = request.tokens[-1]
    needed, there = memory_of(request, longest), available_memory()
    if needed <= there:
        return
    what = f"{longest:,} tokens with {request.heads} heads take about {needed / 2**30:.1f} GiB"
    allowed = f"what takes up to {there / 2**30:.1f} GiB, which is available now"
    hint = "leave the longest lengths out of --tokens, or lower --heads"
    raise InputError(explain(what, where="tokens", value=longest, allowed=allowed, hint=hint))


def _check_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        what = f"the folder of the results cannot be written to: {error.strerror}"
        hint = "choose another place with --out"
        allowed = "a folder that is there or can be made"
        said = explain(what, where="out", value=str(out), allowed=allowed, hint=hint)
        raise OSError(error.errno, said) from error
