"""Phantoms as films to learn from: what each one is follows from its seed alone, before it is drawn.

Three in ten are grown-up, the others children of mostly small age; about one in six shows something that is not
a chest: its truth is background everywhere and it has no finding, so only segmentation learns from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from schema.findings import Finding
from worker.phantom import Phantom, make_phantom

#: What a phantom shows or not; nothing else is known of it.
FINDINGS: tuple[Finding, ...] = (Finding.PNEUMONIA, Finding.NO_FINDING)

_STREAM = 0x5EED  # keeps these seeds apart from those of other users of PCG64
_NEGATIVES = 0.18
_ADULTS = 0.3
_DAYS_PER_YEAR = 365.25
_SIDES = (216, 320)
_RANDOMISE = (0.15, 1.0)


@dataclass(frozen=True)
class Drawing:
    """How a phantom is drawn.

    ``rows`` and ``columns`` in pixels, ``age_days`` in days, ``negative`` for what is not a chest,
    ``randomise`` 0-1 as in :func:`worker.phantom.make_phantom`.
    """

    seed: int
    rows: int
    columns: int
    age_days: int
    pneumonia: bool
    negative: bool
    randomise: float

    @property
    def findings(self) -> Mapping[str, bool | None]:
        """Slug → present; nothing is known of what is not a chest."""
        if self.negative:
            return {}
        return {str(Finding.PNEUMONIA): self.pneumonia, str(Finding.NO_FINDING): not self.pneumonia}

    def draw(self) -> Phantom:
        """The picture and its truth."""
        return make_phantom(
            self.seed,
            rows=self.rows,
            columns=self.columns,
            age_days=self.age_days,
            pneumonia=self.pneumonia,
            negative=self.negative,
            randomise=self.randomise,
        )


def drawing_of(seed: int) -> Drawing:
    """The phantom of a seed (0 or more)."""
    rng = np.random.Generator(np.random.PCG64([_STREAM, seed]))
    rows, columns = (int(side) for side in rng.integers(*_SIDES, 2))
    adult = bool(rng.random() < _ADULTS)
    years = rng.uniform(16, 80) if adult else 16 * rng.uniform(0, 1) ** 1.5
    return Drawing(
        seed=int(rng.integers(2**48)),
        rows=rows,
        columns=columns,
        age_days=int(years * _DAYS_PER_YEAR),
        pneumonia=bool(rng.random() < 0.5),
        negative=bool(rng.random() < _NEGATIVES),
        randomise=float(rng.uniform(*_RANDOMISE)),
    )
