"""What a training runs on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import torch

from trainer.errors import RunError
from trainer.recipe import Recipe
from trainer.training.optimisation import lightning_precision

_MOST_WORKERS = 8


@dataclass(frozen=True)
class Machine:
    """What a training runs on: ``accelerator`` is ``cpu`` or ``cuda``, ``precision`` Lightning's name for it."""

    accelerator: str
    device: str
    devices: int
    threads: int
    workers: int
    precision: str

    @classmethod
    def here(cls, recipe: Recipe, devices: int, workers: int | None) -> Machine:
        """This machine; ``workers`` as in :func:`train`."""
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
        if devices > 1 and accelerator == "cuda" and devices > torch.cuda.device_count():
            raise RunError(f"This machine has {torch.cuda.device_count()} GPUs, not {devices}: give --devices fewer.")
        if workers is None:
            workers = min(_MOST_WORKERS, max(1, (os.cpu_count() or 1) // devices - 1)) if accelerator == "cuda" else 0
        return cls(
            accelerator=accelerator,
            device=torch.cuda.get_device_name() if accelerator == "cuda" else f"CPU ({platform.machine()})",
            devices=devices,
            threads=torch.get_num_threads(),
            workers=workers,
            precision=lightning_precision(recipe.training.precision, accelerator),
        )

    def __str__(self) -> str:
        where = f"{self.device}, {self.threads} threads" if self.accelerator == "cpu" else self.device
        return f"{f'{self.devices} x ' if self.devices > 1 else ''}{where}, {self.precision}"
