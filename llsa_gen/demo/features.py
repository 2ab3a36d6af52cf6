# SPDX-License-Identifier: Apache-2.0
"""Queries, keys and values of the photograph's pixels, made by hand so that attention means something.

Each head compares pixels by three channels (colours, or brightness and its gradient) at one blur. A channel enters as
a few sines and cosines, so that the dot product of two pixels is a sum of cosines of their differences: high when they
look alike. Rotary positions (theta 1e4, half of the pairs for rows and half for columns) then turn every pair by the
pixel's position. The fast pairs hold a constant and so say "near"; the slow pairs, which hardly turn within the
picture, hold what the pixel looks like. That is how trained models use the two ends of the spectrum as well.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from llsa_gen.demo.recipes import RECIPES, Recipe
from llsa_gen.demo.setting import HEAD_DIM

THETA = 1e4
HARMONICS = (0.5, 1.0, 1.5, 2.0)
"""Turns of a channel, in sixths of a circle per standard deviation."""

AXIS_PAIRS = HEAD_DIM // 4
"""Rotary pairs per axis."""

LOOK_PAIRS = 6
"""Slow pairs per axis that hold the look of a pixel: three channels at two of the harmonics."""

UNUSED_PAIRS = 2
"""Fastest pairs per axis, left at zero: their waves of a few pixels would draw a plaid and not say "near"."""


def build_qkv(photo: Tensor, heads: int, order: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns q, k, v [1, heads, tokens, 64] in fp32; q and k are the same tensor.

    Args:
        photo: RGB from 0 to 1, [size, size, 3].
        heads: How many of `RECIPES`, from the first.
        order: Raster number of every token.
    """
    positions = _positions(photo.shape[0])
    looks = [_rotate(_pairs(photo, recipe), positions) for recipe in RECIPES[:heads]]
    q = torch.stack(looks)[None, :, order].contiguous()
    v = _values(photo)[order].expand(1, heads, -1, -1).contiguous()
    return q, q.clone(), v


def _pairs(photo: Tensor, recipe: Recipe) -> Tensor:
    """Complex pairs [tokens, 2, AXIS_PAIRS] before rotation, scaled so that the largest logit is `look + near`."""
    channels = _channels(photo, recipe).flatten(0, 1)
    phases = torch.cat([channels * frequency for frequency in HARMONICS], -1)
    look = torch.polar(torch.ones_like(phases), phases * (math.pi / 3)).view(-1, 2, LOOK_PAIRS)
    near = torch.ones(look.shape[0], 2, AXIS_PAIRS - LOOK_PAIRS, dtype=look.dtype)
    near[..., :UNUSED_PAIRS] = 0
    return torch.cat([_scaled(near, recipe.near), _scaled(look, recipe.look)], -1)


def _scaled(pairs: Tensor, logit: float) -> Tensor:
    """Scales pairs so that a token's dot product with itself is this logit under the scale 1 / sqrt(HEAD_DIM)."""
    return pairs * math.sqrt(logit * math.sqrt(HEAD_DIM) / float(pairs[0].abs().square().sum()))


def _channels(photo: Tensor, recipe: Recipe) -> Tensor:
    """Three channels [size, size, 3], each with unit spread."""
    smooth = _blur(photo, recipe.blur)
    if recipe.channels == "colour":
        found = _opponent(smooth)
    else:
        brightness = _opponent(smooth)[..., 0]
        down, across = torch.gradient(brightness)
        found = torch.stack([brightness, 3 * torch.hypot(down, across).sqrt(), down - across], -1)
    return found / found.flatten(0, 1).std(0).clamp_min(1e-6)


def _opponent(rgb: Tensor) -> Tensor:
    """Brightness, red against green and yellow against blue."""
    red, green, blue = rgb.unbind(-1)
    return torch.stack([(red + green + blue) / 3, red - green, (red + green) / 2 - blue], -1)


def _blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [H, W, C], borders repeated."""
    if sigma == 0:
        return image
    radius = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    planes = image.permute(2, 0, 1)[:, None]
    planes = F.conv2d(F.pad(planes, (radius, radius, 0, 0), mode="replicate"), kernel)
    planes = F.conv2d(F.pad(planes, (0, 0, radius, radius), mode="replicate"), kernel.transpose(2, 3))
    return planes[:, 0].permute(1, 2, 0)


def _positions(size: int) -> Tensor:
    """Row and column of every pixel in raster order, [tokens, 2]."""
    line = torch.arange(size, dtype=torch.float32)
    return torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).flatten(0, 1)


def _rotate(pairs: Tensor, positions: Tensor) -> Tensor:
    """Turns the pairs of each axis by the position along it and lays them out as [tokens, HEAD_DIM]."""
    frequencies = THETA ** (-torch.arange(AXIS_PAIRS, dtype=torch.float32) / AXIS_PAIRS)
    angles = positions[..., None] * frequencies
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(1)


def _values(photo: Tensor) -> Tensor:
    """Colours and gradients at four blurs, [tokens, HEAD_DIM], zeros behind them."""
    parts = []
    for blur in (0.0, 1.0, 2.0, 4.0):
        smooth = _blur(photo, blur)
        down, across = torch.gradient(smooth, dim=(0, 1))
        parts.append(torch.cat([smooth, down, across], -1))
    features = torch.cat(parts, -1).flatten(0, 1)
    return F.pad(features, (0, HEAD_DIM - features.shape[-1]))
