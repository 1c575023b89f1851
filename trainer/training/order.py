"""In which order films are seen: a function of the seed and the epoch alone.

A training that was killed goes on exactly as it would have gone, on any number of devices,
because nothing about its order is a state.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

#: (how often the film has been seen before, its place in the training part): what a film's variation is drawn from.
Key = tuple[int, int]


class FilmOrder(Sampler[Key]):  # type: ignore[misc]
    """An endless row of shuffled passes over the films, of which each epoch takes the next stretch.

    Every film is seen equally often, however long an epoch is, and every batch is full: the last
    batch of an epoch may reach into the next pass. With several devices each takes its slice of
    every batch, so that the batches are the same on any number of them.

    Parameters
    ----------
    films
        How many there are.
    batch_size
        Films of a batch, over all devices.
    batches
        Batches of an epoch.
    seed
        Of the shuffling.
    rank, world
        This device and how many there are; ``world`` divides ``batch_size``.
    epoch
        The epoch that comes next, from 0.
    """

    def __init__(
        self, films: int, batch_size: int, batches: int, seed: int, *, rank: int = 0, world: int = 1, epoch: int = 0
    ) -> None:
        if films < 1 or batch_size % world:
            raise ValueError(f"{films} films in batches of {batch_size} cannot be shared by {world} devices")
        self.films, self.batch_size, self.batches, self.seed = films, batch_size, batches, seed
        self.rank, self.share = rank, batch_size // world
        self.epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        """What Lightning calls before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches * self.share

    def __iter__(self) -> Iterator[Key]:
        first = self.epoch * self.batches * self.batch_size
        number, shuffled = -1, np.empty(0, np.int64)
        for batch in range(self.batches):
            begin = first + batch * self.batch_size + self.rank * self.share
            for position in range(begin, begin + self.share):
                if position // self.films != number:
                    number = position // self.films
                    shuffled = self._shuffled(number)
                yield number, int(shuffled[position % self.films])

    def _shuffled(self, number: int) -> npt.NDArray[np.int64]:
        return np.random.Generator(np.random.PCG64([self.seed, number])).permutation(self.films)
