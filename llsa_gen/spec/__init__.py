# SPDX-License-Identifier: Apache-2.0
"""The specification: its fields, expressions, names and files."""

from llsa_gen.spec.expr import TOPK_SYMBOLS, WEIGHT_SYMBOLS, Expression, parse
from llsa_gen.spec.fields import EMULATION, ENRICHMENTS, TARGET_NAMES
from llsa_gen.spec.model import Spec
from llsa_gen.spec.slug import slug_of, split_slug
from llsa_gen.spec.toml import SpecEntry, load_entries, load_spec, load_specs

__all__ = [
    "EMULATION",
    "ENRICHMENTS",
    "TARGET_NAMES",
    "TOPK_SYMBOLS",
    "WEIGHT_SYMBOLS",
    "Expression",
    "Spec",
    "SpecEntry",
    "load_entries",
    "load_spec",
    "load_specs",
    "parse",
    "slug_of",
    "split_slug",
]
