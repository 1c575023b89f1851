"""What stops a training, said so that the person at the keyboard can mend it."""

from __future__ import annotations

from worker.errors import CarinaError


class TrainingError(CarinaError):
    """A recipe, a data set or a run cannot be used; the message names the file, what is wrong and what to do."""


class RecipeError(TrainingError):
    """A recipe is wrong: which key, and the nearest one that exists."""


class DataError(TrainingError):
    """Data cannot be used: which file, what is wrong with it, what to do."""


class RunError(TrainingError):
    """A run folder cannot be used: unfinished, damaged, or of another kind than was asked for."""
