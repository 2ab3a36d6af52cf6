# SPDX-License-Identifier: Apache-2.0
"""`torch.compile(fullgraph=True, dynamic=True)`: one graph for all lengths, the same results and errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import llsa_gen
from tests.torch_face.calls import KEYWORDS, SMALL, inputs, lists_of

LENGTHS = (70, 33, 64, 257, 16)


class Counting:
    """A backend that runs graphs as they are and counts them."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, example: list[Any]) -> Callable[..., Any]:
        self.graphs.append(graph)
        return graph.forward


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def attention(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return llsa_gen.llsa_attention(q, k, v, **KEYWORDS)


def attention_with_everything(q: Tensor, k: Tensor, v: Tensor) -> Any:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return llsa_gen.llsa_attention(q, k, v, **KEYWORDS, layout="BNHD", scale=0.3, return_lse=True)


def attention_with_one_topk_per_level(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return llsa_gen.llsa_attention(q, k, v, block_size=4, topk=(2, 2), num_levels=2, enrichment="overlap", weight="c")


def depth_by_length(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return llsa_gen.llsa_attention(q, k, v, block_size=4, topk=2, num_levels="auto")


def select(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return lists_of(q, k)


def select_then_attend(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return llsa_gen.llsa_attend(q, k, v, lists_of(q, k), block_size=SMALL.block, return_lse=True)


def loaded(q: Tensor, k: Tensor, v: Tensor) -> Any:
    op = llsa_gen.load(SMALL.slug)
    return op.attention(q, k, v, scale=0.3, return_lse=True)


OP = llsa_gen.load(SMALL.slug)


def loaded_before(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return OP.attend(q, k, v, OP.select(q, k), return_lse=True)


def loaded_tokens_first(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return OP.attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), layout="BNHD")


CALLS = (
    attention,
    attention_with_everything,
    attention_with_one_topk_per_level,
    depth_by_length,
    select,
    select_then_attend,
    loaded_before,
    loaded_tokens_first,
)


def flat(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_one_graph_serves_every_length(call: Callable[..., Any], device: torch.device) -> None:
    backend = Counting()
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=backend)
    for length in LENGTHS:
        qkv = inputs(device, length=length)
        for found, expected in zip(flat(compiled(*qkv)), flat(call(*qkv)), strict=True):
            assert torch.equal(found, expected) and found.stride() == expected.stride()
    assert len(backend.graphs) == 1


@pytest.mark.parametrize("length", [0, 1])
def test_lengths_that_torch_treats_apart(length: int, device: torch.device) -> None:
    compiled = torch.compile(attention_with_everything, fullgraph=True, dynamic=True, backend=Counting())
    qkv = inputs(device, length=length)
    for found, expected in zip(compiled(*qkv), attention_with_everything(*qkv), strict=True):
        assert torch.equal(found, expected)


def test_selection_at_a_depth_by_length_has_a_graph_per_length(device: torch.device) -> None:
    """The number of lists depends on the length there, so nothing else is possible; results stay right."""

    def call(q: Tensor, k: Tensor) -> Any:
        return llsa_gen.llsa_select(q, k, block_size=4, topk=2, num_levels="auto")

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=Counting())
    for length in (20, 300):
        q, k, _ = inputs(device, length=length)
        for found, expected in zip(compiled(q, k), call(q, k), strict=True):
            assert torch.equal(found, expected)


def test_scale_may_change(device: torch.device) -> None:
    """Torch makes a float that an op takes part of the graph, so there is one graph per value."""

    def call(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Any:
        return llsa_gen.llsa_attention(q, k, v, scale=scale, **KEYWORDS)

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=Counting())
    qkv = inputs(device)
    for scale in (0.1, 0.2, 0.3):
        assert torch.equal(compiled(*qkv, scale), call(*qkv, scale))


class Block(nn.Module):
    """Fused QKV, tokens before heads, as in diffusion transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 3 * 32)
        self.out = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, 2, 16).unbind(2)
        o = llsa_gen.llsa_attention(q, k, v, layout="BNHD", block_size=4, topk=2)
        result: Tensor = self.out(o.reshape(batch, length, 32))
        return x + result


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_a_model(backend: str, device: torch.device) -> None:
    torch.manual_seed(0)
    model = Block().to(device).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for length in (70, 33, 257):
            x = torch.randn(2, length, 32, device=device)
            torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_model_that_is_trained(backend: str, device: torch.device) -> None:
    torch.manual_seed(0)
    model = Block().to(device)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for length in (70, 33):
        x = torch.randn(2, length, 32, device=device)
        expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
        found = torch.autograd.grad(compiled(x).square().sum(), list(model.parameters()))
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "bool": ({"topk": True}, "topk is not a number of blocks"),
    "levels": ({"num_levels": 9}, "the number of levels is not one that can be built"),
    "no levels": ({"num_levels": 0}, "the number of levels is not one that can be built"),
    "block": ({"block_size": 17}, "the block size must be a power of two"),
    "enrichment": ({"enrichment": "all"}, "unknown enrichment"),
    "weight": ({"weight": "-c"}, "a level weight must be positive and finite"),
    "layout": ({"layout": "BNDH"}, "unknown layout"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_errors_come_when_the_graph_is_made(wrong: str, device: torch.device) -> None:
    arguments, words = WRONG[wrong]

    def call(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return llsa_gen.llsa_attention(q, k, v, **{**KEYWORDS, **arguments})

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=Counting())
    with pytest.raises(Exception, match="(?s)" + words):
        compiled(*inputs(device))


def ratio(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return llsa_gen.llsa_attention(q, k, v, topk=0.5)  # type: ignore[call-overload]


def negative_scale(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return llsa_gen.llsa_attention(q, k, v, scale=-1.0)


@pytest.mark.parametrize(("call", "words"), [(ratio, "sparsity="), (negative_scale, "scale must be a positive")])
def test_numbers_in_the_code_of_a_model_are_named(call: Callable[..., Any], words: str, device: torch.device) -> None:
    with pytest.raises(Exception, match=words):
        torch.compile(call, fullgraph=True, dynamic=True, backend=Counting())(*inputs(device))
