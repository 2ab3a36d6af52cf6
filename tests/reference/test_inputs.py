# SPDX-License-Identifier: Apache-2.0
"""The shared inputs are reproducible and hold the difficulty that their name promises."""

import pytest
import torch
from hypothesis import given

from llsa_gen.errors import InputError
from llsa_gen.reference import select
from llsa_gen.spec import Spec
from llsa_gen.workloads import FINITE_CASES, NONFINITE_CASES, adversarial_qkv, clustered_qkv, random_qkv
from tests.strategies import STRUCTURES, Problem, budget, problems

SPEC = Spec(levels=2, block=16, topk=4, head_dim=32, value_dim=48, dtype="fp16")


@given(problems(low=0, inputs=STRUCTURES + FINITE_CASES + NONFINITE_CASES))
@budget(65)
def test_shapes_dtypes_and_seeds(problem: Problem) -> None:
    sizes = (problem.batch, problem.heads, problem.length)
    spec = problem.spec
    first, again = problem.qkv(None), problem.qkv(None)
    for x, same, dim in zip(first, again, (spec.head_dim, spec.head_dim, spec.dim_v), strict=True):
        assert x.shape == (*sizes, dim)
        assert x.dtype == spec.element.torch
        assert torch.equal(x.nan_to_num(), same.nan_to_num())


@pytest.mark.parametrize("draw", [random_qkv, clustered_qkv])
def test_seeds_matter(draw) -> None:  # type: ignore[no-untyped-def]
    first, second = (draw(SPEC, 1, 1, 40, seed=seed) for seed in (0, 1))
    assert not any(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("case", FINITE_CASES)
def test_finite_cases_are_finite_in_every_dtype(case: str) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert all(bool(x.isfinite().all()) for x in adversarial_qkv(case, SPEC, 2, 2, 300, dtype=dtype))


@pytest.mark.parametrize("case", NONFINITE_CASES)
def test_nonfinite_cases_have_one_bad_number(case: str) -> None:
    tensors = adversarial_qkv(case, SPEC, 2, 2, 300)
    bad = [int((~x.isfinite()).sum()) for x in tensors]
    assert sorted(bad) == [0, 0, 1]
    assert bad.index(1) == ("query", "key", "value").index(case.rsplit("_", 1)[1])
    assert not tensors[bad.index(1)][0, 0, 150, 0].isfinite()


def test_negative_zero_has_both_signs() -> None:
    q, _, v = adversarial_qkv("negative_zero", SPEC, 1, 1, 100)
    assert bool((q == 0).all())
    assert bool(q.signbit().any())
    assert not bool(q.signbit().all())
    assert bool(v.signbit().all())


def test_an_unknown_case_is_refused() -> None:
    with pytest.raises(InputError, match="duplicated_rows"):
        adversarial_qkv("kindness", SPEC, 1, 1, 4)


def test_clustered_inputs_select_with_structure() -> None:
    """Neighbouring rows share blocks, rows find themselves, some blocks are popular: unlike noise."""

    def structure(qkv: tuple[torch.Tensor, ...]) -> tuple[float, float]:
        entries = select(qkv[0], qkv[1], SPEC)[0][0, 0]
        shared = (entries[1:, :, None] == entries[:-1, None, :]).any(-1).float().mean()
        own = (entries == torch.arange(len(entries))[:, None]).any(-1).float().mean()
        return float(shared), float(own)

    shared, own = structure(clustered_qkv(SPEC, 1, 1, 4096))
    shared_noise, own_noise = structure(random_qkv(SPEC, 1, 1, 4096))
    assert shared > 0.3 > 3 * shared_noise
    assert own > 0.5 > 3 * own_noise
