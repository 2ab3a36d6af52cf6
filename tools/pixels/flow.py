# SPDX-License-Identifier: Apache-2.0
"""Flow matching with rescaled noise.

Time runs from data (t = 0) to noise (t = 1) along straight lines,

    x_t = (1 - t) x_0 + t s ε,    ε ~ N(0, 1),    v = dx_t / dt = s ε - x_0,

and a network learns v from x_t and t. The factor s = max(1, n / 64) for images of side n is the noise rescaling of
arXiv 2512.16615: neighbouring pixels of a large image repeat each other while their noise is independent, so that
noise of one strength hides less the larger the image is. Averaged down to side 64, an image of any larger side has
under this rule as much noise left as one of side 64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""From x [B,N,C] and t [B] to v [B,N,C]."""

REFERENCE_SIDE = 64
"""Side of the largest image whose noise has unit variance."""

EULER_STEPS = 20


def noise_scale(side: int) -> float:
    """The factor s of the noise for images of a side in pixels."""
    return max(1.0, side / REFERENCE_SIDE)


def interpolate(data: Tensor, noise: Tensor, t: Tensor, scale: float) -> Tensor:
    """The point x_t of each line; data and noise [B,N,C], t [B]."""
    time = t.view(-1, *[1] * (data.dim() - 1))
    return (1 - time) * data + time * scale * noise


def velocity(data: Tensor, noise: Tensor, scale: float) -> Tensor:
    """The velocity of each line, the same at all times."""
    return scale * noise - data


def loss(model: Velocity, data: Tensor, noise: Tensor, t: Tensor, scale: float) -> Tensor:
    """Mean squared error of the model's velocity, one number."""
    predicted = model(interpolate(data, noise, t, scale), t)
    return (predicted.float() - velocity(data, noise, scale)).square().mean()


@torch.no_grad()
def sample(model: Velocity, noise: Tensor, scale: float, steps: int = EULER_STEPS) -> Tensor:
    """Walks from noise (unit variance, [B,N,C]) to data along the model's velocity in equal Euler steps."""
    x = scale * noise
    for step in range(steps, 0, -1):
        t = torch.full((len(x),), step / steps, device=x.device)
        x = x - model(x, t).float() / steps
    return x
