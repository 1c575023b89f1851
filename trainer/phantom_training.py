"""Training the phantom bundle's two networks: the loop, its schedule and its checkpoints."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from trainer.networks.small_classifier import SmallClassifier
from trainer.phantom_samples import Samples

#: Cross-entropy weight per region value: the carina is four orders of magnitude rarer than
#: background, so a plain mean would never learn it (Holste et al., section 2.2).
REGION_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0, 1.5, 2.5, 28.0)
VISIBLE_OPACITY = 0.1  # mean over a cell
SHRINK = 2  # the networks look at pictures of 1/SHRINK the size
INVERTED = 0.08  # of films: some headers give the wrong polarity

Loss = Callable[[nn.Module, Samples, int], torch.Tensor]


@dataclass(frozen=True)
class Phase:
    """``steps`` batches of ``batch`` films at 1/``shrink`` of the network's size."""

    steps: int
    batch: int
    shrink: int = 1


@dataclass(frozen=True)
class Course:
    """A network's way: its phases and its highest learning rate."""

    name: str
    phases: tuple[Phase, ...]
    rate: float

    @property
    def steps(self) -> int:
        """Batches in all."""
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> Phase:
        """The phase ``step`` belongs to."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return self.phases[-1]


class Average:
    """Exponential moving average of a network's weights and running statistics."""

    def __init__(self, network: nn.Module, decay: float = 0.995) -> None:
        self.network = copy.deepcopy(network).eval()
        self.decay = decay
        self.updates = 0

    def update(self, network: nn.Module) -> None:
        """Move towards ``network``; faster while young."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        with torch.no_grad():
            for mine, theirs in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
                if mine.dtype.is_floating_point:
                    mine.lerp_(theirs, 1 - decay)
                else:
                    mine.copy_(theirs)


def train(
    network: nn.Module,
    course: Course,
    loss: Loss,
    samples: Samples,
    checkpoint: Path,
    *,
    seed: int,
    resume: bool = False,
) -> nn.Module:
    """Train ``network`` along ``course`` and return its averaged weights.

    A line is printed every twenty-fifth step; every hundredth the state goes to ``checkpoint``,
    where ``resume`` finds it. Batches depend on ``seed`` and step only.
    """
    optimiser = torch.optim.AdamW(network.parameters(), lr=course.rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, course.rate, total_steps=course.steps + 1, pct_start=0.08, anneal_strategy="cos"
    )
    average = Average(network)
    first = 0
    if resume and checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        average.network.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        first = average.updates = int(state["step"])
    network.train()
    reduced_precision = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    recent, began = 0.0, time.monotonic()
    for step in range(first, course.steps):
        phase = course.phase_at(step)
        batch = samples.batch(np.random.Generator(np.random.PCG64([seed, step])), phase.batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced_precision):
            value = loss(network, batch, phase.shrink)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        average.update(network)
        recent = float(value.detach()) if step == first else 0.95 * recent + 0.05 * float(value.detach())
        if (step + 1) % 25 == 0:
            pace = (time.monotonic() - began) / (step + 1 - first)
            print(  # noqa: T201
                f"{course.name} {step + 1}/{course.steps} loss {recent:.4f} {pace:.2f} s/step",
                flush=True,
            )
        if (step + 1) % 100 == 0 or step + 1 == course.steps:
            state = {
                "network": network.state_dict(), "average": average.network.state_dict(),
                "optimiser": optimiser.state_dict(), "schedule": schedule.state_dict(), "step": step + 1,
            }  # fmt: skip
            partial = checkpoint.with_suffix(".part")
            torch.save(state, partial)
            partial.replace(checkpoint)
    return average.network


def as_tensor(samples: Samples, shrink: int = 1) -> torch.Tensor:
    """Pictures as float32 (N, 1, H, W) in 0..1, averaged over ``shrink`` x ``shrink`` pixels."""
    pictures = torch.from_numpy(samples.pictures)[:, None].float() / 255
    return functional.avg_pool2d(pictures, shrink) if shrink > 1 else pictures


def vary(pictures: torch.Tensor) -> torch.Tensor:
    """What reading may do to a film: a wrong polarity, another window, another gamma."""
    count = len(pictures)
    shape = (count, 1, 1, 1)
    gamma = torch.exp(torch.empty(shape).uniform_(-0.35, 0.35))
    low, high = torch.empty(shape).uniform_(-0.06, 0.08), torch.empty(shape).uniform_(0.88, 1.08)
    varied = ((pictures - low) / (high - low)).clamp(0, 1) ** gamma
    return torch.where(torch.rand(shape) < INVERTED, 1 - varied, varied)


class HalfSizeSegmenter(nn.Module):  # type: ignore[misc]
    """A segmentation network that looks at pictures of half the size; its logits are brought back to the full grid.

    Trained on phantoms it agreed better with people's drawings on real films than at full size,
    where it leans on texture that phantoms have and patients have not, and costs a quarter.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        """Pictures (N, 1, H, W) to logits (N, regions, H, W)."""
        logits = self.network(functional.avg_pool2d(picture, SHRINK))
        return functional.interpolate(logits, scale_factor=float(SHRINK), mode="bilinear", align_corners=False)


class HalfSizeClassifier(nn.Module):  # type: ignore[misc]
    """A classifier that looks at pictures of half the size."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures (N, 1, H, W) to logits (N, findings) and maps (N, findings, H/32, W/32)."""
        logits, maps = self.network(functional.avg_pool2d(picture, SHRINK))
        return logits, maps


def segmentation_loss(network: nn.Module, samples: Samples, shrink: int) -> torch.Tensor:
    """Weighted cross-entropy over the regions."""
    labels = torch.from_numpy(samples.labels)[:, shrink // 2 :: shrink, shrink // 2 :: shrink].long()
    logits = network(vary(as_tensor(samples, shrink)))
    return functional.cross_entropy(logits.float(), labels, torch.tensor(REGION_WEIGHTS))


class GuidedClassifier(nn.Module):  # type: ignore[misc]
    """A classifier with a second head that is taught where the consolidation is.

    From the film's label alone a small network needs far more films to notice small opacities.
    Only ``network`` goes into the bundle.
    """

    def __init__(self, network: SmallClassifier) -> None:
        super().__init__()
        self.network = network
        self.place = nn.Conv2d(network.channels, 1, 1)

    def forward(self, picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of findings (N, findings) and of consolidation per cell (N, h, w)."""
        features = self.network.features(picture)
        return self.network.conclude(features)[0], self.place(features)[:, 0]


def classification_loss(network: nn.Module, samples: Samples, shrink: int) -> torch.Tensor:
    """Binary cross-entropy per finding, plus that of where the consolidation is."""
    logits, places = network(vary(as_tensor(samples, shrink)))
    opacities = functional.adaptive_avg_pool2d(torch.from_numpy(samples.opacities), places.shape[-2:])
    where = functional.binary_cross_entropy_with_logits(
        places.float(), (opacities > VISIBLE_OPACITY).float(), pos_weight=torch.tensor(3.0)
    )
    return functional.binary_cross_entropy_with_logits(logits.float(), torch.from_numpy(samples.targets)) + where
