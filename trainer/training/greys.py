"""Grey values of films that are stored standardised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.recipe import Recipe

Picture = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Greys:
    """Between a picture as the network is shown it and its grey values from 0 to 1, in which films are varied.

    The two differ where a recipe standardises. Varying first and standardising then is what would happen to a film that
    had come so: what lies beside it is black, and not the training films' mean.
    """

    mean: float
    std: float

    @classmethod
    def of(cls, recipe: Recipe) -> Greys:
        """The recipe's ``standardise`` step; its numbers are there."""
        return cls(*recipe.standardisation)

    def plain(self, picture: Picture) -> Picture:
        """Grey values, 0 to 1, of a stored picture."""
        if (self.mean, self.std) == (0.0, 1.0):
            return picture
        return np.asarray(np.clip(picture * np.float32(self.std) + np.float32(self.mean), 0, 1), np.float32)

    def shown(self, picture: Picture) -> Picture:
        """A picture of grey values as the network is shown it."""
        if (self.mean, self.std) == (0.0, 1.0):
            return picture
        return (picture - np.float32(self.mean)) / np.float32(self.std)
