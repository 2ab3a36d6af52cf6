# SPDX-License-Identifier: Apache-2.0
"""Options that verbs share: the flags of a spec, and where generated packages lie."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from llsa_gen.catalog import CATALOG_FILE, catalogue, find_spec
from llsa_gen.dtypes import DTYPE_NAMES
from llsa_gen.errors import InputError, explain
from llsa_gen.paths import catalogue_dir, is_checkout
from llsa_gen.spec import EMULATION, ENRICHMENTS, TARGET_NAMES, Spec, load_entries

AUTO = "auto"

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Wanted:
    """One spec that a command line asks for.

    Attributes:
        spec: The spec, with its own targets.
        name: Its name in a file or in the catalogue, or None.
        insists: Whether its targets were asked for on the command line, and not just named by a file.
    """

    spec: Spec
    name: str | None = None
    insists: bool = False


@dataclass(frozen=True)
class SpecRequest:
    """The spec flags of one command line; None and empty mean not given."""

    levels: Any = None
    seq_len: Any = None
    block: Any = None
    topk: Any = None
    head_dim: Any = None
    value_dim: Any = None
    dtype: str | None = None
    enrichment: str | None = None
    weight: str | None = None
    targets: tuple[str, ...] = ()
    gradient: bool | None = None
    file: Path | None = None
    name: str | None = None
    spec_name: str | None = None

    def specs(self, folder: Path | None = None) -> list[Wanted]:
        """The specs asked for: of a file, of the catalogue, or of flags alone; flags override fields.

        Args:
            folder: Generated packages whose manifests tell the specs of slugs, besides those of the checkout.

        Raises:
            click.UsageError: Options exclude each other.
            SpecError: A file, name or field is wrong.
        """
        if self.file is not None and self.spec_name is not None:
            raise click.UsageError("--from and --spec exclude each other: a spec comes from a file or the catalogue")
        if self.name is not None and self.file is None:
            raise click.UsageError("--name names a spec of a file: give --from FILE.toml too, or use --spec")
        overrides = self._overrides()
        return [
            Wanted(Spec.from_fields(_merge(base, overrides)), name, "targets" in overrides)
            for name, base in self._bases([catalogue_dir()] if folder is None else [folder, catalogue_dir()])
        ]

    def _bases(self, search: list[Path]) -> list[tuple[str | None, Mapping[str, Any]]]:
        """Names and fields before the flags override them."""
        if self.file is not None:
            return list(_file_tables(self.file, self.name).items())
        if self.spec_name is None:
            return [(None, {})]
        if self.spec_name in catalogue():
            return list(_file_tables(CATALOG_FILE, self.spec_name).items())
        return [(None, _plain_fields(find_spec(self.spec_name, search)))]

    def _overrides(self) -> dict[str, Any]:
        """The fields given as flags."""
        names = ("levels", "seq_len", "block", "topk", "head_dim", "value_dim", "dtype", "enrichment", "weight")
        given = {name: getattr(self, name) for name in (*names, "gradient") if getattr(self, name) is not None}
        return given | ({"targets": expand_targets(self.targets)} if self.targets else {})


def expand_targets(words: tuple[str, ...]) -> list[str]:
    """Target names out of repeated and comma-separated words; ``auto`` stands for what this machine runs in earnest."""
    names = [name.strip() for word in words for name in word.split(",")]
    if AUTO not in names:
        return list(dict.fromkeys(names))
    from llsa_gen.jit import toolchain

    chain = toolchain.describe()
    runnable = [name for name in TARGET_NAMES if name != EMULATION and chain.can_run(name)[0]]
    return list(dict.fromkeys([*runnable, *(name for name in names if name != AUTO)]))


def packages_folder(out: Path | None) -> Path:
    """The folder of generated packages: ``--out``, or ``generated`` of a checkout.

    Raises:
        click.UsageError: There is no checkout and no ``--out``.
    """
    if out is not None:
        return out
    if is_checkout():
        return catalogue_dir()
    raise click.UsageError("llsa-gen is installed and not a checkout: say where with --out DIR, a folder of your own")


def _merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with flags over them; a length that chose the depth goes when a depth is given."""
    merged = {**base, **overrides}
    if overrides.get("levels", AUTO) != AUTO and "seq_len" not in overrides:
        merged.pop("seq_len", None)
    return merged


def _plain_fields(spec: Spec) -> dict[str, Any]:
    """The fields of a spec without what only follows from another field, so that flags can change that one."""
    data = spec.to_fields()
    if spec.value_dim == spec.head_dim:
        del data["value_dim"]
    return data


def _file_tables(file: Path, name: str | None) -> dict[str | None, Mapping[str, Any]]:
    """The checked tables of a file as they are written there: an expression can still be evaluated elsewhere."""
    import tomllib

    entries = load_entries(file, name)
    tables = tomllib.loads(file.read_text(encoding="utf-8"))["specs"]
    return {entry: {field: value for field, value in tables[entry].items() if field != "about"} for entry in entries}


def _plain(_context: click.Context, _option: click.Parameter, text: str | None) -> int | float | str | None:
    """The value of a spec field: a number, or a text; the spec says which are allowed."""
    return None if text is None else _number(text)


def _topk(_context: click.Context, _option: click.Parameter, text: str | None) -> Any:
    """A number, numbers per level, or the text of an expression."""
    if text is None:
        return None
    parts = [_number(part) for part in text.split(",")]
    if len(parts) > 1 and not any(isinstance(part, str) for part in parts):
        return parts
    return _number(text)


def whole_number(lowest: int, highest: int) -> Callable[[click.Context, click.Parameter, str | None], int | None]:
    """The callback of an option that takes a whole number in a range and is no field of a spec."""

    def convert(_context: click.Context, option: click.Parameter, text: str | None) -> int | None:
        found = None if text is None else _number(text)
        if found is None or (isinstance(found, int) and lowest <= found <= highest):
            return found
        name, allowed = option.opts[0], f"whole numbers from {lowest} to {highest}"
        what, hint = "this option takes a whole number in its range", f"write for example {name} {lowest}"
        raise InputError(explain(what, where=name, value=found, allowed=allowed, hint=hint))

    return convert


def _number(text: str) -> int | float | str:
    """The number that a text is, or the stripped text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip()


_SPEC_OPTIONS = (
    partial(
        click.option,
        "--levels",
        callback=_plain,
        metavar="L|auto",
        help="Depth of the hierarchy, 1 to 6.  [default: 2]",
    ),
    partial(
        click.option,
        "--seq-len",
        callback=_plain,
        metavar="N",
        help="Length to choose the depth for, with --levels auto.",
    ),
    partial(
        click.option,
        "--block",
        callback=_plain,
        metavar="B",
        help="Tokens per block, a power of two 4 to 128.  [default: 16]",
    ),
    partial(
        click.option,
        *("--k", "--topk", "topk"),
        callback=_topk,
        metavar="K|K1,K2,…|EXPR",
        help="Selected blocks: a number, one per level (finest first), or an expression in b, l, L, D.  [default: 8]",
    ),
    partial(
        click.option,
        "--head-dim",
        callback=_plain,
        metavar="D",
        help="Width of q and k, a multiple of 8.  [default: 64]",
    ),
    partial(click.option, "--value-dim", callback=_plain, metavar="D", help="Width of v and o.  [default: --head-dim]"),
    partial(click.option, "--dtype", metavar="|".join(DTYPE_NAMES), help="Element type.  [default: bf16]"),
    partial(
        click.option, "--enrichment", metavar="|".join(ENRICHMENTS), help="Coarse nodes attended.  [default: overlap]"
    ),
    partial(
        click.option, "--weight", metavar="EXPR", help="Weight of a node: expression in b, l, L, c, D.  [default: c]"
    ),
    partial(
        click.option,
        *("--target", "targets"),
        multiple=True,
        metavar="|".join((*TARGET_NAMES, AUTO)),
        help="Machine to build for; repeat it or use commas; auto: what this machine can run.  [default: cpu]",
    ),
    partial(click.option, "--gradient/--no-gradient", default=None, help="Backward kernels too.  [default: yes]"),
    partial(
        click.option,
        "--from",
        "file",
        type=click.Path(path_type=Path),
        metavar="FILE.toml",
        help="Specs of a TOML file.",
    ),
    partial(click.option, "--name", metavar="NAME", help="One spec of the file.  [default: all of them]"),
    partial(click.option, "--spec", "spec_name", metavar="NAME", help="A name of the catalogue, or a slug."),
)


_SHOWN = re.compile(r" +\[default: .*\]$")


def spec_options(**defaults: str) -> Callable[[Function], Function]:
    """Adds the flags of a spec; the function gets them as one ``request``.

    Args:
        defaults: What the help calls the default of options that have another one here, by the names of parameters.
    """
    names = [field.name for field in fields(SpecRequest)]

    def add(function: Function) -> Function:
        @functools.wraps(function)
        def with_request(**given: Any) -> Any:
            request = SpecRequest(**{name: given.pop(name) for name in names})
            return function(request=request, **given)

        wrapped = cast(Function, with_request)
        for option in reversed(_SPEC_OPTIONS):
            wrapped = option(help=_help(option, defaults))(wrapped)
        return wrapped

    return add


def _help(option: partial[Any], defaults: Mapping[str, str]) -> str:
    """The help of an option with the default that a verb has."""
    text: str = option.keywords["help"]
    default = defaults.get(option.args[-1].removeprefix("--").replace("-", "_"))
    return text if default is None else f"{_SHOWN.sub('', text)}  [default: {default}]"


def out_option(text: str) -> Callable[[Function], Function]:
    """``--out DIR``: the folder of generated packages."""
    return click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help=text)


def dry_run_option(function: Function) -> Function:
    """``--dry-run``: say what would be done, and do nothing."""
    return click.option("--dry-run", is_flag=True, help="Only say what would be done.")(function)
