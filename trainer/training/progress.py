"""How far a training is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_LINE_SECONDS = 60.0
_READ_SECONDS = 0.5


@dataclass(frozen=True)
class Pace:
    """Where a training is: ``epoch`` from 1, ``loss`` the epoch's mean so far, ``seconds_left`` at this pace."""

    epoch: int
    epochs: int
    batch: int
    batches: int
    loss: float
    films_per_second: float
    seconds_left: float

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch}/{self.epochs}, batch {self.batch}/{self.batches}, loss {self.loss:.4f}, "
            f"{self.films_per_second:.1f} films/s, at most {spoken(self.seconds_left)} left"
        )


class TrainingProgress:
    """What a training tells; this one says nothing."""

    def say(self, text: str) -> None:
        """One sentence."""

    def prepare(self, what: str, done: int, total: int) -> None:
        """Films read, or copies made, so far."""

    def batch(self, pace: Pace) -> None:
        """About twice a second."""

    def epoch(self, pace: Pace, row: Mapping[str, float], better: bool) -> None:
        """An epoch is finished; ``better`` than all before."""

    def close(self) -> None:
        """Nothing more comes."""


class LineProgress(TrainingProgress):
    """Plain lines: one an epoch, and one a minute in between."""

    def __init__(self, *, stderr: bool = True) -> None:
        self._stderr = stderr
        self._at = time.monotonic()

    def say(self, text: str) -> None:
        """At once."""
        # Made anew each time, so that the object can be sent to other processes.
        Console(stderr=self._stderr, soft_wrap=True).print(text, highlight=False, markup=False)
        self._at = time.monotonic()

    def prepare(self, what: str, done: int, total: int) -> None:
        """When a minute has passed."""
        if time.monotonic() - self._at >= _LINE_SECONDS:
            self.say(f"{what}: {done} of {total}")

    def batch(self, pace: Pace) -> None:
        """When a minute has passed."""
        if time.monotonic() - self._at >= _LINE_SECONDS:
            self.say(str(pace))

    def epoch(self, pace: Pace, row: Mapping[str, float], better: bool) -> None:
        """A line."""
        self.say(epoch_line(pace, row, better))


class BarProgress(TrainingProgress):
    """A bar for a terminal; finished epochs stay above it as lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(TextColumn("{task.description}"), BarColumn(), console=console, transient=True)
        self._task = self._bar.add_task("", total=None)
        self._bar.start()

    def say(self, text: str) -> None:
        """Above the bar."""
        self._console.print(text, highlight=False, markup=False)

    def prepare(self, what: str, done: int, total: int) -> None:
        """Move the bar."""
        self._bar.update(self._task, description=f"{what} {done}/{total}", completed=done, total=total)

    def batch(self, pace: Pace) -> None:
        """Move the bar."""
        self._bar.update(self._task, description=str(pace), completed=pace.batch, total=pace.batches)

    def epoch(self, pace: Pace, row: Mapping[str, float], better: bool) -> None:
        """A line above the bar."""
        self.say(epoch_line(pace, row, better))

    def close(self) -> None:
        """Remove the bar."""
        self._bar.stop()


def progress_for(console: Console) -> TrainingProgress:
    """A bar if a person looks on."""
    return BarProgress(console) if console.is_terminal else LineProgress(stderr=console.stderr)


def epoch_line(pace: Pace, row: Mapping[str, float], better: bool) -> str:
    """Epoch, losses, the task's main metrics, speed and time left in one line."""
    shown = {"train_loss": "training loss", "loss": "validation loss", "mean_dice": "Dice", "lung_dice": "lungs"}
    shown["mean_auroc"] = "AUROC"
    values = ", ".join(f"{title} {row[name]:.4f}" for name, title in shown.items() if name in row)
    return (
        f"epoch {pace.epoch}/{pace.epochs}: {values}{' (best)' if better else ''}; "
        f"{pace.films_per_second:.1f} films/s, at most {spoken(pace.seconds_left)} left"
    )


def spoken(seconds: float) -> str:
    """``2 h 05 min``, ``3 min 20 s`` or ``12 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class Watch(lightning.Callback):  # type: ignore[misc]
    """Measures the pace and passes it on.

    ``films`` and ``seconds`` count what this process trained, without validation and writing.
    """

    def __init__(self, progress: TrainingProgress, batch_size: int) -> None:
        self.progress, self.batch_size = progress, batch_size
        self.films, self.seconds = 0, 0.0
        self._began = self._epoch_began = self._told = 0.0
        self._first_epoch = 0

    def on_train_start(self, trainer: Any, _module: Any) -> None:
        """Start the clock."""
        self._began = time.monotonic()
        self._first_epoch = trainer.current_epoch

    def on_train_batch_start(self, _trainer: Any, _module: Any, _batch: Any, index: int) -> None:
        """Start the epoch's clock with its first batch."""
        if index == 0:
            self._epoch_began = time.monotonic()

    def on_train_batch_end(self, trainer: Any, module: Any, _outputs: Any, _batch: Any, index: int) -> None:
        """Tell now and then: reading the loss makes a GPU wait."""
        now = time.monotonic()
        last = index + 1 == trainer.num_training_batches
        if trainer.is_global_zero and (last or now - self._told >= _READ_SECONDS):
            self._told = now
            self.progress.batch(self.pace(trainer, module, index + 1))
        if last:
            self.films += self.batch_size * (index + 1)
            self.seconds += now - self._epoch_began

    def pace(self, trainer: Any, module: Any, batch: int) -> Pace:
        """The pace after ``batch`` batches of the current epoch."""
        now = time.monotonic()
        batches = int(trainer.num_training_batches)
        done = (trainer.current_epoch - self._first_epoch) * batches + batch
        left = (trainer.max_epochs - self._first_epoch) * batches - done
        spent = max(now - self._epoch_began, 1e-9)
        speed = self.films / self.seconds if self.seconds else self.batch_size * batch / spent
        return Pace(
            epoch=trainer.current_epoch + 1,
            epochs=trainer.max_epochs,
            batch=batch,
            batches=batches,
            loss=module.train_loss,
            films_per_second=speed,
            seconds_left=left * (now - self._began) / max(done, 1),
        )
