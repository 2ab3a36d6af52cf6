# SPDX-License-Identifier: Apache-2.0
"""Run: the demo from the check of its arguments to the finished picture."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from llsa_gen.demo.photo import LANDMARKS, load_photo, require_libraries
from llsa_gen.demo.recipes import RECIPES
from llsa_gen.demo.report import DemoReport
from llsa_gen.demo.setting import BLOCK, HEAD_DIM, LEVELS, SAMPLED_ROWS, SIZES, TOPK
from llsa_gen.errors import InputError, explain

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[str], None]


def run(
    *,
    size: int = 256,
    heads: int = 4,
    out: Path,
    seed: int = 0,
    progress: Progress | None = None,
    full_dense: bool = False,
) -> DemoReport:
    """Attends over the pixels of a photograph with LLSA and with dense attention, and draws what LLSA looked at.

    Args:
        size: Side of the photograph in pixels, a power of two from 32 to 512; every pixel is a token.
        heads: Heads, 1 to 6; each compares pixels in its own way.
        out: The PNG to write; replaced when it exists.
        seed: Chooses the rows that are compared with dense attention.
        progress: Called with one line of text before each step.
        full_dense: Measure dense attention on all rows (minutes at size 256) instead of scaling up from some.

    Raises:
        InputError: An argument is out of its range, or `out` does not name a PNG file in an existing folder.
        OSError: The folder of `out` cannot be written to; found before anything is computed.
        ToolMissingError: matplotlib or Pillow is missing.
    """
    _check_number("size", size, f"one of {', '.join(map(str, SIZES))}", type(size) is int and size in SIZES)
    _check_number("heads", heads, f"1 to {len(RECIPES)}", type(heads) is int and 1 <= heads <= len(RECIPES))
    _check_number("seed", seed, "0 to 2**63-1", type(seed) is int and 0 <= seed < 2**63)
    target = Path(out)
    _check_output(target)
    require_libraries()
    return _run(size, heads, target, seed, progress or (lambda text: None), full_dense)


def _run(size: int, heads: int, out: Path, seed: int, say: Progress, full_dense: bool) -> DemoReport:
    import torch

    from llsa_gen.demo import figure, measure
    from llsa_gen.demo.features import build_qkv
    from llsa_gen.orders import morton

    say(f"turning the photograph into {size * size:,} tokens")
    photo = torch.from_numpy(load_photo(size))
    order = morton((size, size))
    q, k, v = build_qkv(photo, heads, order)
    say("preparing the LLSA kernels and running them once (the first time they are compiled)")
    with torch.no_grad():
        o, idx = measure.attention(q, k, v), measure.select(q, k)
    say("comparing sampled rows with exact dense attention")
    rows = _sample(size * size, seed)
    compared = measure.compare(q, k, v, o, idx, rows)
    say("timing LLSA and dense attention")
    times = measure.measure_times(q, k, v, full_dense=full_dense)
    report = DemoReport(
        path=out,
        size=size,
        tokens=size * size,
        block_size=BLOCK,
        topk=TOPK,
        num_levels=LEVELS,
        head_dim=HEAD_DIM,
        keys_per_query=_keys_per_query(idx, size * size),
        sampled_rows=len(rows),
        threads=torch.get_num_threads(),
        llsa_seconds=times.llsa,
        select_seconds=times.select,
        dense_seconds=times.dense,
        dense_rows=times.dense_rows,
        heads=compared,
    )
    say(f"drawing {out}")
    queries = figure.look_closely(LANDMARKS, q[0, 0], k[0, 0], [lists[0, 0] for lists in idx], order)
    figure.draw(photo.numpy(), queries, report)
    return report


def _sample(tokens: int, seed: int) -> Tensor:
    """The rows to compare, ascending."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(tokens, generator=generator)[:SAMPLED_ROWS].sort().values


def _keys_per_query(idx: tuple[Tensor, ...], tokens: int) -> int:
    """Coarsest nodes plus the children of every listed node; the same for all queries of complete nodes."""
    listed = sum(int((lists[0, 0, 0] >= 0).sum()) for lists in idx)
    return int(tokens // BLOCK ** len(idx)) + listed * BLOCK


def _check_number(name: str, value: object, allowed: str, fits: bool) -> None:
    if not fits:
        what, hint = f"the demo cannot use this {name}", f"leave --{name} out for the default"
        raise InputError(explain(what, where=name, value=value, allowed=allowed, hint=hint))


def _check_output(out: Path) -> None:
    """Finds out before any computation whether the picture can be written."""
    if out.suffix.lower() != ".png" or out.is_dir():
        raise InputError(explain("the picture is one PNG file", where="out", value=str(out), allowed="a name in .png"))
    if not out.parent.is_dir():
        hint = f"mkdir -p {out.parent}"
        raise InputError(explain("the folder of the picture does not exist", where="out", value=str(out), hint=hint))
    try:
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        what = f"cannot write into the folder of the picture: {error.strerror}"
        hint = "choose another place with --out"
        raise OSError(error.errno, explain(what, where="out", value=str(out), hint=hint)) from error
