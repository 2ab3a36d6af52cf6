# SPDX-License-Identifier: Apache-2.0
"""Where templates, the catalogue of generated code and the cache lie, in a checkout and when installed."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

CACHE_VARIABLE = "LLSA_GEN_CACHE_DIR"
"""Environment variable that overrides the cache folder."""

TUNING_VARIABLE = "LLSA_GEN_TUNING"
"""Environment variable: the folder of tuning records; 0, false, no or off leaves records alone."""

_PACKAGE = Path(__file__).resolve().parent


@cache
def checkout_root() -> Path | None:
    """The root of the checkout that this package runs from, or None for an installed package."""
    root = _PACKAGE.parent
    is_root = (root / "pyproject.toml").is_file() and (root / "templates").is_dir()
    return root if is_root else None


def is_checkout() -> bool:
    """Whether the package runs from a checkout and not from an installed wheel."""
    return checkout_root() is not None


def templates_dir() -> Path:
    """The folder of the kernel templates."""
    root = checkout_root()
    return root / "templates" if root is not None else _PACKAGE / "_templates"


def catalogue_dir() -> Path:
    """The folder of the generated packages of the catalogue, one per slug."""
    root = checkout_root()
    return root / "generated" if root is not None else _PACKAGE / "_generated"


def cache_dir() -> Path:
    """The folder of all that is compiled, and of tuning records unless another is named; it need not exist yet."""
    override = os.environ.get(CACHE_VARIABLE)
    if override:
        return Path(override).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("llsa-gen", appauthor=False)


def compiled_templates_dir() -> Path:
    """The folder of templates as Jinja compiled them; it need not exist yet."""
    return cache_dir() / "templates"


def let_others_read(path: Path) -> None:
    """Opens a file or folder that `tempfile` made to whoever can read what holds it, as everything else there is.

    Users may share a cache folder; who is kept out of it stays out. A file system without modes is left as it is.
    """
    most = 0o755 if path.is_dir() else 0o644
    with suppress(OSError):
        path.chmod(path.parent.stat().st_mode & most | most & 0o700)
