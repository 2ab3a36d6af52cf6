# SPDX-License-Identifier: Apache-2.0
"""Generated kernels for LLSA, trainable log-linear sparse attention.

Everything here is imported on first use, so that ``import llsa_gen`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llsa_gen import errors
    from llsa_gen.ops import llsa_attend, llsa_attention, llsa_select, load, transpose_indices
    from llsa_gen.spec import Spec

__version__ = "0.1.0"

__all__ = ["Spec", "__version__", "errors", "llsa_attend", "llsa_attention", "llsa_select", "load", "transpose_indices"]

_MODULE_OF = {
    "Spec": "llsa_gen.spec",
    "llsa_attend": "llsa_gen.ops",
    "llsa_attention": "llsa_gen.ops",
    "llsa_select": "llsa_gen.ops",
    "load": "llsa_gen.ops",
    "transpose_indices": "llsa_gen.ops",
}


def __getattr__(name: str) -> Any:
    """Imports a public name on first use (PEP 562)."""
    if name == "errors":
        return import_module("llsa_gen.errors")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
