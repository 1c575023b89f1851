"""What a training keeps at the end of each epoch, and when it ends."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch

from trainer.recipe import TrainingTable
from trainer.training.pictures import draw_curves
from trainer.training.progress import Watch
from trainer.training.run_folder import Row, RunFolder

#: Below these less is better.
_FALLING = frozenset({"loss"})
_DRAW_SECONDS = 60.0


class Record(lightning.Callback):  # type: ignore[misc]
    """Rows of metrics, checkpoints, and the decision to stop early.

    The history lies in the checkpoint itself, and the best epoch's checkpoint is in place before the last one is:
    wherever a process is killed, what is on disk fits together, and ``metrics.csv`` is written anew from it.
    """

    def __init__(self, folder: RunFolder, table: TrainingTable, watch: Watch) -> None:
        self.folder, self.table, self.watch = folder, table, watch
        self.history: list[Row] = []
        self.films, self.seconds = 0, 0.0
        self._before = (0, 0.0)
        self._drawn = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training starts with."""
        return {"history": self.history, "films": self.films, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on."""
        self.history = list(state["history"])
        self.films, self.seconds = state["films"], state["seconds"]

    def on_train_start(self, trainer: Any, _module: Any) -> None:
        """Write what a killed process may have left unwritten; end if it only missed that."""
        self._before = self.films, self.seconds
        if self.history and trainer.is_global_zero:
            self.folder.write_metrics(self.history)
        trainer.should_stop = self._is_over()

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Row, checkpoints, decision."""
        row = {
            "epoch": float(trainer.current_epoch + 1),
            "step": float(trainer.global_step),
            "rate": float(trainer.optimizers[0].param_groups[0]["lr"]),
            "train_loss": float(trainer.strategy.reduce(torch.tensor(module.train_loss, device=module.device))),
            **module.measured,
        }
        self.history.append(row)
        self.films, self.seconds = self._before[0] + self.watch.films, self._before[1] + self.watch.seconds
        better = best_epoch(self.history, self.table.monitor) == len(self.history)
        self._save(trainer, better=better)
        if trainer.is_global_zero:
            self.folder.write_metrics(self.history)
            pace = self.watch.pace(trainer, module, trainer.num_training_batches)
            self.watch.progress.epoch(pace, row, better)
            if time.monotonic() - self._drawn > _DRAW_SECONDS:
                draw_curves(self.history, self.folder.curves)
                self._drawn = time.monotonic()
        trainer.should_stop = self._is_over()

    def _is_over(self) -> bool:
        patience = self.table.patience
        return bool(patience) and len(self.history) - best_epoch(self.history, self.table.monitor) >= patience

    def _save(self, trainer: Any, *, better: bool) -> None:
        partial = self.folder.last.with_name("last.ckpt.part")
        trainer.save_checkpoint(partial)  # every process takes part
        if not trainer.is_global_zero:
            return
        if better:
            _link(partial, self.folder.best)
        partial.replace(self.folder.last)


def best_epoch(history: Sequence[Row], monitor: str) -> int:
    """The epoch (from 1) that was best, the earliest of equals; one without a number is never better than another."""
    sign = -1.0 if monitor in _FALLING else 1.0
    scores = [sign * row[monitor] for row in history]
    return 1 + max(range(len(scores)), key=lambda i: -math.inf if math.isnan(scores[i]) else scores[i], default=-1)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, whole or not at all; a copy where the file system has no links."""
    partial = target.with_name(f"{target.name}.part")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        shutil.copyfile(source, partial)
    partial.replace(target)
