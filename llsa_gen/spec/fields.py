# SPDX-License-Identifier: Apache-2.0
"""The rules of single spec fields: each function returns the canonical value or raises SpecError."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable
from typing import NoReturn

from llsa_gen.errors import NOT_GIVEN, SpecError, did_you_mean, explain

AUTO = "auto"
ENRICHMENTS = ("overlap", "exclude_refined", "none")
TARGET_NAMES = ("cpu", "c", "sm80", "sm90", "sm100")
"""Names of the targets, in canonical order; ``llsa_gen.targets`` has one module for each."""
EMULATION = "c"
"""The one of them that runs the kernels of a GPU as C code on a CPU: slow, and there for tests."""

_GPU_TARGETS = {"a100": "sm80", "h100": "sm90", "h200": "sm90", "sm90a": "sm90", "b200": "sm100", "sm100a": "sm100"}
"""What else people call a target."""

MAX_LEVELS = 6
MIN_BLOCK, MAX_BLOCK = 4, 128
MAX_TOPK = 128
HEAD_DIM_STEP, MIN_HEAD_DIM, MAX_HEAD_DIM = 8, 16, 256
MAX_SEQ_LEN = 2**31 - 1
"""Node ids are int32."""

BLOCKS = tuple(2**e for e in range(2, 8))
TOPK_RANGE = f"a whole number of blocks from 1 to {MAX_TOPK}"


def fail(
    what: str,
    field: str,
    value: object = NOT_GIVEN,
    allowed: object | None = None,
    hint: str | None = None,
) -> NoReturn:
    """Raises the SpecError of one field."""
    raise SpecError(explain(what, where=f"spec field {field}", value=value, allowed=allowed, hint=hint))


def whole(value: object) -> int | None:
    """The int behind an int or an integer-like number (numpy), or None; a bool is not a number here."""
    if isinstance(value, (bool, str)):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]  # anything may come in; TypeError says no
    except TypeError:
        return None


def check_levels(value: object) -> int | str:
    """``"auto"`` or a depth from 1 to ``MAX_LEVELS``."""
    if isinstance(value, str) and value == AUTO:
        return AUTO
    depth = whole(value)
    if depth is not None and 1 <= depth <= MAX_LEVELS:
        return depth
    is_digits = isinstance(value, str) and value.strip().isdecimal()
    hint = f"levels={str(value).strip()}, without quotes" if is_digits else "levels=2 suits 4k to 64k tokens"
    allowed = f'1 to {MAX_LEVELS}, or "{AUTO}" together with seq_len'
    fail("the number of levels is not one that can be built", "levels", value, allowed, hint)


def check_block(value: object) -> int:
    """A power of two from ``MIN_BLOCK`` to ``MAX_BLOCK``."""
    block = whole(value)
    if block is not None and block in BLOCKS:
        return block
    hint = "block=16 is the paper's choice"
    if block is not None:
        hint = f"the nearest allowed block is {min(BLOCKS, key=lambda allowed: abs(allowed - block))}"
    fail("the block size must be a power of two", "block", value, BLOCKS, hint)


def check_topk(value: object, where: str = "topk") -> int:
    """A whole number of blocks from 1 to ``MAX_TOPK``."""
    topk = whole(value)
    if topk is not None and 1 <= topk <= MAX_TOPK:
        return topk
    hint = "topk=8 is the paper's choice"
    if isinstance(value, float):
        hint = "topk counts blocks; a kept ratio is what sparsity= will mean, and it is not served yet"
    elif topk is not None and topk > MAX_TOPK:
        hint = "raise block, so that each selected block holds more tokens"
    fail("topk is not a number of blocks that can be selected", where, value, TOPK_RANGE, hint)


def check_dim(value: object, field: str) -> int:
    """A multiple of ``HEAD_DIM_STEP`` from ``MIN_HEAD_DIM`` to ``MAX_HEAD_DIM``."""
    dim = whole(value)
    if dim is not None and dim % HEAD_DIM_STEP == 0 and MIN_HEAD_DIM <= dim <= MAX_HEAD_DIM:
        return dim
    hint = f"{field}=64 is the default"
    if dim is not None and dim > MAX_HEAD_DIM:
        hint = f"divide the features among more heads, of at most {MAX_HEAD_DIM} each"
    elif dim is not None and dim > 0:
        padded = max(MIN_HEAD_DIM, -(-dim // HEAD_DIM_STEP) * HEAD_DIM_STEP)
        hint = f"pad the last dimension with zeros to {padded} and set {field}={padded}"
    allowed = f"multiples of {HEAD_DIM_STEP} from {MIN_HEAD_DIM} to {MAX_HEAD_DIM}"
    fail(f"{field} is not one that kernels are made for", field, value, allowed, hint)


def check_choice(value: object, field: str, choices: Collection[str]) -> str:
    """One of a few names."""
    if isinstance(value, str) and value in choices:
        return value
    meant = _GPU_TARGETS.get(str(value).lower().replace("_", ""))
    hint = f"did you mean {meant!r}?" if meant in choices else did_you_mean(value, choices)
    fail(f"unknown {field}", field, value, choices, hint or "write one of the names above")


def check_targets(value: object) -> tuple[str, ...]:
    """Distinct target names, put in canonical order."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        example = f'["{value}"]' if value in TARGET_NAMES else '["cpu"]'
        fail("targets must be a list of names", "targets", value, TARGET_NAMES, f"write targets = {example}")
    names = [check_choice(name, "targets", TARGET_NAMES) for name in value]
    if not names:
        fail("at least one target is needed", "targets", value, TARGET_NAMES, 'write targets = ["cpu"]')
    if len(set(names)) != len(names):
        fail("a target is named twice", "targets", value, TARGET_NAMES, "name each target once")
    return tuple(name for name in TARGET_NAMES if name in names)


def check_gradient(value: object) -> bool:
    """True or False, not a number or a text."""
    if isinstance(value, bool):
        return value
    fail("gradient must be true or false", "gradient", value, "true, false", "leave gradient out for true")


def check_seq_len(value: object, levels: int | str) -> int | None:
    """A sequence length, given exactly when the depth is to be chosen from it."""
    if levels != AUTO:
        if value is not None:
            hint = f'drop seq_len: kernels serve every length; or choose the depth with levels="{AUTO}"'
            fail(f'seq_len is only for levels="{AUTO}"', "seq_len", value, "no value", hint)
        return None
    length = whole(value)
    if length is not None and 1 <= length <= MAX_SEQ_LEN:
        return length
    hint = f'levels="{AUTO}" needs the length to choose a depth for, for example seq_len=65536'
    fail("the length to choose the depth for is missing or wrong", "seq_len", value, f"1 to {MAX_SEQ_LEN}", hint)
