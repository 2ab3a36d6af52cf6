# SPDX-License-Identifier: Apache-2.0
"""A small diffusion transformer whose tokens are pixels.

Patch 1: every pixel is one token. Positions enter through 2-D RoPE alone, queries and keys are normalised (QK-norm),
and the time modulates every block (adaLN, whose gates start at zero, so that the network starts as the zero function).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.pixels.arms import Attention

CHANNELS = 3
ROPE_BASE = 100.0
"""Longest wavelength of RoPE in shortest ones: a picture is tens of pixels wide, not thousands."""

TIME_FEATURES = 64


def rotations(coordinates: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angles of 2-D RoPE, each [N, head_dim / 2].

    The first half of the pairs turns with the row, the second with the column.

    Args:
        coordinates: Row and column of every token, [N,2].
        head_dim: Features of a head, a multiple of 4.
    """
    count = head_dim // 4
    frequencies = ROPE_BASE ** (-torch.arange(count, device=coordinates.device) / count)
    angles = (coordinates.float()[:, :, None] * frequencies).flatten(1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the pairs (feature i, feature i + D/2) of x [B,H,N,D] by the angles of their tokens."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


def time_features(t: Tensor) -> Tensor:
    """Sines and cosines of t [B] from 0 to 1, as [B, TIME_FEATURES]."""
    frequencies = 1000.0 ** torch.linspace(0, 1, TIME_FEATURES // 2, device=t.device)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


class SelfAttention(nn.Module):
    """Attention of all tokens with QK-norm and RoPE; how they attend is given."""

    def __init__(self, width: int, heads: int, attention: Attention) -> None:
        super().__init__()
        self.heads = heads
        self.attention = attention
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.RMSNorm(width // heads)
        self.k_norm = nn.RMSNorm(width // heads)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """From tokens [B,N,width] to what they read from each other, of the same shape."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        mixed = self.attention(q, k, v)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Attention and an MLP, each shifted, scaled and gated by the time."""

    def __init__(self, width: int, heads: int, attention: Attention) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, attention)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.modulation = zeroed(nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """From tokens [B,N,width] and the condition [B,width] to tokens."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(condition)[:, None].chunk(6, -1)
        x = x + gate * self.attention(modulated(x, shift, scale), cos, sin)
        return x + mlp_gate * self.mlp(modulated(x, mlp_shift, mlp_scale))


class PixelTransformer(nn.Module):
    """The velocity of flow matching for images as sequences of pixels.

    Args:
        coordinates: Row and column of every token in the order of the sequence, [N,2].
        width: Features of a token.
        depth: Blocks.
        heads: Heads of each.
        attention: How the tokens attend.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, coordinates: Tensor, *, width: int, depth: int, heads: int, attention: Attention) -> None:
        super().__init__()
        cos, sin = rotations(coordinates, width // heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.enter = nn.Linear(CHANNELS, width)
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.blocks = nn.ModuleList(Block(width, heads, attention) for _ in range(depth))
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.leave = zeroed(nn.Linear(width, CHANNELS))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """From pixels [B,N,3] at times t [B] to their velocities [B,N,3]."""
        condition = self.time(time_features(t))
        x = self.enter(x)
        for block in self.blocks:
            x = block(x, condition, self.cos, self.sin)
        shift, scale = self.modulation(condition)[:, None].chunk(2, -1)
        leave: Tensor = self.leave(modulated(x, shift, scale))
        return leave


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm whose affine part comes from outside."""
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


def zeroed(layer: nn.Linear) -> nn.Linear:
    """The layer with all parameters zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def parameter_count(model: nn.Module) -> int:
    """Numbers that are trained."""
    return sum(math.prod(parameter.shape) for parameter in model.parameters())
