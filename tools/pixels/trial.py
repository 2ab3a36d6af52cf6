# SPDX-License-Identifier: Apache-2.0
"""One trial: an arm trained from a seed, step by step, with its curves.

All randomness of a step is a function of the seed and the number of the step, and none is left over between steps.
All arms of a seed therefore start from the same weights and see the same crops, times and noise, and a resumed trial
goes on exactly as if it had never stopped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from llsa_gen.orders import inverse, morton
from tools.pixels import checkpoint, flow
from tools.pixels.arms import attention_of
from tools.pixels.model import CHANNELS, PixelTransformer
from tools.pixels.options import Options
from tools.pixels.photos import Crops

NOISE_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Times at which the held-out loss is measured."""

MEASURED_AT_ONCE = 9
"""Held-out crops in one batch."""

WARM_UP = 20
"""Steps until the learning rate is reached."""

LARGEST_GRADIENT = 1.0
"""Norm at which gradients are clipped."""

AVERAGE_DECAY = 0.98
"""Of the running average of the weights: it forgets in some fifty steps, and faster at the beginning."""

_SEEDS_APART = 1_000_003
_HELD_OUT_SEED = 2**40
_SAMPLE_SEED = 2**41


@dataclass(frozen=True)
class Data:
    """What all trials of a run share.

    Attributes:
        crops: Where training crops are drawn.
        held_out: Held-out crops as tokens, [M,N,3].
        held_out_noise: The noise that each is tested with, of unit variance.
        order: The Morton order of the pixels.
    """

    crops: Crops
    held_out: Tensor
    held_out_noise: Tensor
    order: Tensor

    def tokens(self, images: Tensor) -> Tensor:
        """Images [M,size,size,3] as sequences [M,N,3]."""
        return images.flatten(1, 2)[:, self.order]

    def images(self, tokens: Tensor) -> Tensor:
        """Sequences [M,N,3] as images [M,size,size,3]."""
        side = self.crops.size
        return tokens.cpu()[:, inverse(self.order)].unflatten(1, (side, side))


def prepare_data(train: Crops, held_out: Crops, count: int) -> Data:
    """The order of the tokens and the held-out crops, which are the same in every run."""
    order = morton((train.size, train.size))
    generator = torch.Generator().manual_seed(_HELD_OUT_SEED)
    tokens = held_out.draw_evenly(count, generator).flatten(1, 2)[:, order]
    return Data(train, tokens, torch.randn(tokens.shape, generator=generator), order)


@dataclass
class Curves:
    """What was measured so far.

    Attributes:
        train: Loss of every training step.
        held_out: After how many steps, and the held-out loss at each noise level then.
        seconds: Time that training took, without measurements.
    """

    train: list[float] = field(default_factory=list)
    held_out: list[tuple[int, list[float]]] = field(default_factory=list)
    seconds: float = 0.0


def averaged(average: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
    """The running average of a weight after one more step, the ``count`` + 1st."""
    kept = min(AVERAGE_DECAY, (1 + int(count)) / (10 + int(count)))
    return average + (1 - kept) * (current - average)


class Trial:
    """The state of one arm and one seed.

    Held-out losses are measured, and samples drawn, with a running average of the weights, because single steps of so
    short a training at a constant rate differ by more than the arms do.

    Args:
        options: The run.
        data: Its photographs.
        arm: Name of the attention.
        seed: Determines weights and batches.
    """

    def __init__(self, options: Options, data: Data, arm: str, seed: int) -> None:
        self.options, self.data, self.arm, self.seed = options, data, arm, seed
        self.device = torch.device(options.device)
        self.scale = flow.noise_scale(options.size)
        torch.manual_seed(seed)
        side = options.size
        self.model = PixelTransformer(
            torch.stack([data.order // side, data.order % side], -1),
            width=options.width,
            depth=options.depth,
            heads=options.heads,
            attention=attention_of(arm, levels=options.levels, block=options.block, k=options.k),
        ).to(self.device)
        self.average = AveragedModel(self.model, avg_fn=averaged)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=options.learning_rate, weight_decay=0.01)
        self.step = 0
        self.curves = Curves()

    @property
    def path(self) -> Path:
        """The checkpoint."""
        return self.options.out / "checkpoints" / f"{self.arm}-seed{self.seed}.pt"

    def velocity(self, model: nn.Module) -> flow.Velocity:
        """A model to be called; on a GPU its matrix products and attention are in bf16."""

        def predict(x: Tensor, t: Tensor) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                predicted: Tensor = model(x, t)
            return predicted

        return predict

    def train_step(self) -> float:
        """Takes one step and returns its loss."""
        started = time.perf_counter()
        data, noise, t = (x.to(self.device) for x in self._batch())
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * min(1.0, (self.step + 1) / WARM_UP)
        self.optimizer.zero_grad(set_to_none=True)
        loss = flow.loss(self.velocity(self.model), data, noise, t, self.scale)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_GRADIENT)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        self.step += 1
        self.curves.train.append(loss.item())
        self.curves.seconds += time.perf_counter() - started
        return self.curves.train[-1]

    def _batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Crops, noise and times of the next step."""
        generator = torch.Generator().manual_seed(self.seed * _SEEDS_APART + self.step)
        tokens = self.data.tokens(self.data.crops.draw(self.options.batch, generator))
        return tokens, torch.randn(tokens.shape, generator=generator), torch.rand(len(tokens), generator=generator)

    @torch.no_grad()
    def measure(self) -> list[float]:
        """Measures the loss on all held-out crops at every noise level and adds it to the curves."""
        losses, predict = [], self.velocity(self.average)
        for level in NOISE_LEVELS:
            parts = zip(
                self.data.held_out.split(MEASURED_AT_ONCE),
                self.data.held_out_noise.split(MEASURED_AT_ONCE),
                strict=True,
            )
            total = 0.0
            for data, noise in parts:
                t = torch.full((len(data),), level, device=self.device)
                loss = flow.loss(predict, data.to(self.device), noise.to(self.device), t, self.scale)
                total += loss.item() * len(data)
            losses.append(total / len(self.data.held_out))
        self.curves.held_out.append((self.step, losses))
        return losses

    def sample(self) -> Tensor:
        """Draws images from the model, [count,size,size,3]; all trials begin with the same noise."""
        generator = torch.Generator().manual_seed(_SAMPLE_SEED)
        noise = torch.randn(self.options.sample_count, self.options.tokens, CHANNELS, generator=generator)
        return self.data.images(flow.sample(self.velocity(self.average), noise.to(self.device), self.scale))

    def save(self) -> None:
        """Writes the checkpoint."""
        content = {
            "identity": self.options.identity(),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "train": list(self.curves.train),
            "held_out": [[step, list(losses)] for step, losses in self.curves.held_out],
            "seconds": self.curves.seconds,
        }
        checkpoint.save(self.path, content)

    def restore(self) -> None:
        """Goes back to the checkpoint, where there is one.

        Raises:
            InputError: It is broken, or was trained with other options.
        """
        if not self.path.exists():
            return
        content: dict[str, Any] = checkpoint.load(self.path, self.options.identity())
        self.model.load_state_dict(content["model"])
        self.average.load_state_dict(content["average"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step = content["step"]
        # A shorter run measured at its own end too; a run that goes on from there has not.
        regular = {self.options.steps, *range(0, self.step + 1, self.options.evaluate_every)}
        held_out = [(step, list(losses)) for step, losses in content["held_out"] if step in regular]
        self.curves = Curves(list(content["train"]), held_out, content["seconds"])
