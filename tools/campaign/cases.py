# SPDX-License-Identifier: Apache-2.0
"""A case: one problem of attention with its lists, small enough to read and to keep in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from llsa_gen.digest import short_digest
from llsa_gen.errors import InputError, LlsaError, explain
from llsa_gen.reference import node_count, select
from llsa_gen.spec import Spec
from llsa_gen.workloads import FINITE_CASES, Qkv
from tests.strategies import STRUCTURES, Problem, damaged, lengths, specs

SKEWED = "skewed"
INPUTS = (*STRUCTURES, *FINITE_CASES, SKEWED)
"""Recipes of inputs; in the skewed one every query selects one and the same block of keys."""

LISTS = ("selected", "damaged")
"""Lists as they are selected, or with entries that are missing, doubled or anywhere."""


@dataclass(frozen=True)
class Case:
    """One problem.

    Attributes:
        spec: What is computed.
        batch: Batch size.
        heads: Heads.
        length: Tokens.
        inputs: One of `INPUTS`.
        lists: One of `LISTS`.
        seed: The same seed gives the same numbers.
        scale: The softmax scale.
    """

    spec: Spec
    batch: int
    heads: int
    length: int
    inputs: str
    lists: str
    seed: int
    scale: float

    def qkv(self, dtype: torch.dtype | None = None) -> Qkv:
        """The tensors, in the dtype of the spec without one."""
        recipe = "random" if self.inputs == SKEWED else self.inputs
        q, k, v = Problem(self.spec, self.batch, self.heads, self.length, recipe, self.seed).qkv(dtype)
        if self.inputs == SKEWED:
            block = self.spec.block
            first = self.seed % node_count(self.length, block, 1) * block
            q[..., 0] = 4.0
            k[:, :, first : first + block, 0] = 8.0
        return q, k, v

    def idx(self) -> tuple[Tensor, ...]:
        """The lists of the tensors in the dtype of the spec."""
        q, k, _ = self.qkv()
        chosen = select(q, k, self.spec)
        if self.lists == "selected":
            return chosen
        nodes = [node_count(self.length, self.spec.block, level) for level in range(1, self.spec.depth + 1)]
        return damaged(chosen, nodes, self.seed)

    def upward(self) -> tuple[Tensor, Tensor]:
        """Random gradients of o, in the dtype of the spec, and of the log-sum-exps, in fp32."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        shape = (self.batch, self.heads, self.length)
        o_grad = torch.randn(*shape, self.spec.dim_v, generator=generator).to(self.spec.element.torch)
        return o_grad, torch.randn(shape, generator=generator)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**{field.name: getattr(self, field.name) for field in fields(self)}, "spec": self.spec.to_fields()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Case:
        """From plain data; a KeyError, TypeError or LlsaError where it is none of ours."""
        return cls(**{**data, "spec": Spec.from_fields(data["spec"])})


@dataclass(frozen=True)
class Failure:
    """A case that broke a check.

    Attributes:
        check: Name of the check.
        case: The case.
        error: Type and first line of what was raised.
    """

    check: str
    case: Case
    error: str

    @classmethod
    def of(cls, check: str, case: Case, error: BaseException) -> Failure:
        """From what a check raised."""
        lines = str(error).strip().splitlines() or [""]
        return cls(check, case, f"{type(error).__name__}: {lines[0]}")

    def save(self, folder: Path) -> Path:
        """Writes the case into a file that `load` reads; the same case gives the same name."""
        data = {**asdict(self), "case": self.case.to_json()}
        path = folder / f"{self.check}-{short_digest(data['case'])}.json"
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: Path) -> Failure:
        """Reads what `save` wrote.

        Raises:
            InputError: The file is not there or holds something else.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            return cls(data["check"], Case.from_json(data["case"]), data["error"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, LlsaError) as error:
            what, hint = "this file holds no failure", "give a file that a run has written: OUT/failures/*.json"
            allowed = "a file of tools/fuzz.py or tools/soak.py"
            raise InputError(explain(what, where="--replay", value=str(path), allowed=allowed, hint=hint)) from error


@st.composite
def cases(
    draw: st.DrawFn, spec: st.SearchStrategy[Spec] | None = None, lists: tuple[str, ...] = LISTS, high: int = 300
) -> Case:
    """Cases of any spec that the property tests draw, or of some."""
    chosen = draw(specs() if spec is None else spec)
    return Case(
        spec=chosen,
        batch=draw(st.integers(1, 2)),
        heads=draw(st.integers(1, 2)),
        length=draw(lengths(chosen.block, high=high)),
        inputs=draw(st.sampled_from(INPUTS)),
        lists=draw(st.sampled_from(lists)),
        seed=draw(st.integers(0, 2**16)),
        scale=draw(st.sampled_from((0.25, 0.1, 1.0))),
    )
