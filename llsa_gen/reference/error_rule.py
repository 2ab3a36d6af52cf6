# SPDX-License-Identifier: Apache-2.0
"""How far a result may be from the truth: no farther than plain torch in the same dtype, times a factor.

**The rule.** Let `exact` be the fp64 result for the very inputs (already rounded to their dtype), and `native` the
same mathematics done by plain torch in that dtype: logits by a matmul of that dtype, softmax of that dtype, output by a
matmul of that dtype. An `actual` result is right when

    max |actual - exact|   <= factor * max |native - exact|   + floor
    |actual - exact|_F     <= factor * |native - exact|_F     + floor_F

over the whole tensor. The first bound catches one wrong element, the second a drift of many. The factor is 2 for
outputs and 3 for gradients.

**The floor.** On tiny inputs `native` may be exact by luck (one key, or powers of two) while `actual` has rounded
once, so a few units of roundoff u of the result's dtype are always allowed, each times the size of what was rounded:
an output `sum p_j v_j` has rounding errors of u * sum p_j |v_j|, and an error u * |s| in a logit changes its p by that
relative amount. Besides, kernels sum in fp32, up to 64 terms one after the other, whose errors grow like the square
root of their number: four units of roundoff of fp32 more, half of that root. `rounding_magnitude` computes the size as
`sum p_j |v_j| * (1 + scale * |q_i| * max |k|)`, a bound that knows nothing about any kernel. Without it the largest
|exact| is used.

**NaN and inf** are positions, not distances: actual must be NaN, +inf and -inf exactly where `exact` is (after
rounding to the dtype of actual, so that overflow counts as inf). Where native alone is not finite it is left out of its
distance.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from llsa_gen.reference import vectorised
from llsa_gen.reference.layout import resolve_scale
from llsa_gen.spec import Spec

OUTPUT_FACTOR = 2.0
GRADIENT_FACTOR = 3.0
FLOOR_UNITS = 4.0
SUM_UNITS = 4.0


def native(
    q: Tensor, k: Tensor, v: Tensor, idx: Sequence[Tensor], spec: Spec, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return `(o, lse)` of the same mathematics by plain torch in the dtype of the inputs. Errors as `attend`."""
    return vectorised.attend(q, k, v, idx, spec, scale=scale, compute_dtype=q.dtype)


def rounding_magnitude(
    q: Tensor, k: Tensor, v: Tensor, idx: Sequence[Tensor], spec: Spec, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return the magnitudes of the floor for o [B,H,N,Dv] and lse [B,H,N], in fp64. Errors as `attend`."""
    with torch.no_grad():
        absolute, lse = vectorised.attend(q, k, v.abs(), idx, spec, scale=scale)
        lengths = q.double().norm(dim=-1) * k.double().norm(dim=-1).amax(-1, keepdim=True) if k.numel() else lse
        logit = 1.0 + resolve_scale(scale, q.shape[-1]) * lengths
        return absolute * logit[..., None], logit + lse.abs()


def assert_close_by_rule(
    actual: Tensor,
    exact64: Tensor,
    native: Tensor,
    factor: float = OUTPUT_FACTOR,
    *,
    magnitude: Tensor | float | None = None,
    label: str = "result",
) -> None:
    """Raise AssertionError unless `actual` follows the rule of this module.

    Args:
        actual: the result under test, in its own dtype.
        exact64: the fp64 result.
        native: the result of plain torch in the dtype of the inputs.
        factor: how many times the native distance is allowed.
        magnitude: size of what was rounded, one number or of the shape of `actual`; the largest |exact64| by default.
        label: what the message calls the tensor.
    """
    shapes = [tuple(tensor.shape) for tensor in (actual, exact64, native)]
    assert shapes[0] == shapes[1] == shapes[2], f"{label}: shapes of actual, exact64 and native differ: {shapes}"
    rounded = exact64.to(actual.dtype)
    _assert_same_places(actual, rounded, label)
    finite = rounded.isfinite()
    exact = exact64.double()
    distance = _distances(actual, exact, finite)
    allowed = _distances(native, exact, finite & native.isfinite())
    floor = _floor(actual, exact, finite, magnitude)
    for norm, measured, bound, extra in zip(("max", "Frobenius"), distance, allowed, floor, strict=True):
        limit = factor * bound + extra
        assert measured <= limit, (
            f"{label}: {norm} distance to fp64 is {measured:.3e}, allowed {limit:.3e}"
            f" = {factor:g} x {bound:.3e} (native) + {extra:.3e} (roundoff)"
        )


def _assert_same_places(actual: Tensor, expected: Tensor, label: str) -> None:
    for name, test in (("NaN", torch.isnan), ("+inf", torch.isposinf), ("-inf", torch.isneginf)):
        found, wanted = test(actual), test(expected)
        wrong = found != wanted
        assert not bool(wrong.any()), (
            f"{label}: {name} at {int(found.sum())} places instead of {int(wanted.sum())},"
            f" first difference at {wrong.nonzero()[0].tolist()}"
        )


def _distances(tensor: Tensor, exact: Tensor, where: Tensor) -> tuple[float, float]:
    """Largest and Frobenius distance to `exact` over the places `where`."""
    if not bool(where.any()):
        return 0.0, 0.0
    difference = (tensor.double() - exact)[where]
    return float(difference.abs().max()), float(difference.norm())


def _floor(actual: Tensor, exact: Tensor, finite: Tensor, magnitude: Tensor | float | None) -> tuple[float, float]:
    """Return a few units of roundoff times the magnitude, in both norms."""
    count = int(finite.sum())
    if count == 0:
        return 0.0, 0.0
    if magnitude is None:
        magnitude = float(exact[finite].abs().max())
    sizes = torch.as_tensor(magnitude, dtype=torch.float64, device=exact.device).expand_as(exact)[finite]
    sizes = sizes.nan_to_num(0.0, 0.0, 0.0)
    format_ = torch.finfo(actual.dtype)
    unit = FLOOR_UNITS * format_.eps / 2.0 + SUM_UNITS * torch.finfo(torch.float32).eps / 2.0
    tiny = format_.tiny
    return unit * float(sizes.max()) + tiny, unit * float(sizes.norm()) + tiny * math.sqrt(count)
