"""Nights of a made-up hospital, for tests of what is called drift: any number of nights in milliseconds, seeded."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np

from worker.monitor.drift import AGE_MIX, STATION_MIX, VIEW_MIX, Cell, Family, Measure, Nights

FIRST = date(2026, 1, 1)
STATIONS = ("CR1", "DR2", "DR3")
AGES = ("under 1 year", "1 to 4 years", "5 to 15 years")
FINDINGS = ("pneumonia", "no_finding", "effusion")
REGIONS = ("right_lung", "left_lung", "heart", "spine")
#: Rule → how often it fires.
RULES = {"missing_region": 0.004, "low_confidence": 0.02, "area_out_of_range": 0.08}


class Hospital:
    """Three stations and three ages; ``films`` a night on average. Nights differ by more than chance alone.

    ``shift`` of a night and cell moves grey level, contrast, scores and areas, in standard deviations of a film.
    """

    def __init__(self, seed: int, nights: int = 80, films: float = 150.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.cells = tuple(Cell(station, age) for station in STATIONS for age in AGES)
        self.days = tuple(FIRST + timedelta(days=night) for night in range(nights))
        share = np.outer([0.5, 0.3, 0.2], [0.3, 0.4, 0.3]).ravel()
        busy = self.rng.gamma(20.0, films / 20.0, nights)
        # Weekends are quieter.
        busy *= np.where(np.arange(nights) % 7 >= 5, 0.6, 1.1)
        self.films = self.rng.poisson(busy[:, None] * share).astype(float)
        self.grey = np.zeros(self.films.shape)
        self.result = np.zeros(self.films.shape)
        #: Chance of AP instead of PA.
        self.ap = np.tile([0.9, 0.6, 0.3] * len(STATIONS), (nights, 1))

    def station(self, name: str) -> np.ndarray:
        return np.array([cell.station == name for cell in self.cells])

    def age(self, name: str) -> np.ndarray:
        return np.array([cell.age_band == name for cell in self.cells])

    def mean(self, family: Family, name: str, moved: np.ndarray, *, squares: bool = True) -> Measure:
        """A number with a mean of its own in each cell."""
        usual = self.rng.uniform(0.3, 0.7, len(self.cells))
        night = self.rng.normal(0, 0.003, (len(self.days), 1))
        each = usual + 0.1 * moved + night
        sums = each * self.films + self.rng.normal(0, 1, self.films.shape) * 0.1 * np.sqrt(self.films)
        squared = self.films * (0.1**2 + each**2)
        return Measure(family, name, "mean", self.films, sums, squared if squares else None)

    def share(self, family: Family, name: str, chance: float, moved: np.ndarray) -> Measure:
        by_cell = chance * self.rng.uniform(0.5, 1.5, len(self.cells))
        night = self.rng.gamma(50, 1 / 50, (len(self.days), 1))
        chances = np.clip(by_cell * night * np.exp(moved), 0, 0.95)
        return Measure(
            family, name, "share", self.films, self.rng.binomial(self.films.astype(int), chances).astype(float)
        )

    def tenths(self, name: str) -> Measure:
        usual = self.rng.dirichlet([8, 6, 4, 3, 2, 2, 1, 1, 1, 1])
        tilt = np.exp(self.result[:, :, None] * np.linspace(-1, 1, 10))
        chances = usual * tilt
        chances /= chances.sum(-1, keepdims=True)
        counts = self.rng.multinomial(self.films.astype(int), chances).astype(float)
        return Measure(Family.SCORES, f"distribution of {name}", "distribution", self.films, counts=counts)

    def nights(self) -> Nights:
        """All that was measured."""
        measures = [self.mean(Family.INPUT, name, self.grey) for name in ("grey level", "grey contrast", "spacing")]
        for finding in FINDINGS:
            measures += [
                self.mean(Family.SCORES, f"mean probability of {finding}", self.result),
                self.mean(Family.MEMBERS, f"disagreement on {finding}", self.result, squares=False),
                self.tenths(finding),
            ]
        for region in REGIONS:
            measures += [
                self.mean(Family.AREAS, f"area of {region}", self.result),
                self.share(Family.AREAS, f"films without {region}", 0.01, self.result),
            ]
        measures += [self.share(Family.FLAGS, f"flag {name}", each, self.result) for name, each in RULES.items()]
        views = self.rng.binomial(self.films.astype(int), self.ap).astype(float)
        mixes = {
            STATION_MIX: [np.where(self.station(name), self.films, 0) for name in STATIONS],
            AGE_MIX: [np.where(self.age(name), self.films, 0) for name in AGES],
            VIEW_MIX: [views, self.films - views],
        }
        measures += [
            Measure(Family.MIX, name, "mix", self.films, counts=np.stack(parts, -1)) for name, parts in mixes.items()
        ]
        return Nights(self.days, self.cells, tuple(measures))
