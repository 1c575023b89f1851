"""Nights of results in a database, for tests of what is read from it: films by the hundred, seeded."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import func, insert, select
from stored_films import Films, digest

from schema import tables

#: Noon of the first night's day.
FIRST = datetime(2026, 1, 1, 12, tzinfo=UTC)
FINDING = "pneumonia"
REGION = "heart"


class NightRows:
    """Writes nights of films with results of the bundle in service."""

    def __init__(self, films: Films, seed: int = 1) -> None:
        self.films, self.database = films, films.database
        self.rng = np.random.default_rng(seed)

    def add(self, nights: Iterable[int], *, station: str = "CR1", films: int = 24, **change: Any) -> None:
        """``films`` results of each of ``nights``.

        Parameters
        ----------
        change
            ``gain`` on the grey values, ``score`` and ``area`` added to each, ``flagged`` share, ``view``.
        """
        times = [FIRST + timedelta(days=night) for night in nights for _ in range(films)]
        number = len(times)
        with self.database.write() as connection:
            film, job = ((connection.scalar(select(func.max(t.c.id))) or 0) + 1 for t in (tables.instance, tables.job))
            places = range(number)
            connection.execute(insert(tables.instance), [
                {
                    "id": film + place, "key": digest(f"film {film + place}"),
                    "patient_key": digest(f"patient {film + place}"), "study_key": digest("study"),
                    "series_key": digest("series"), "held_out": False,
                    "sop_class_uid": "1.2", "station": station, "view_position": change.get("view", "AP"),
                    "age_days": 200 if place % 2 else 3000, "row_spacing": change.get("spacing", 0.139),
                    "created_at": times[place],
                }
                for place in places
            ])  # fmt: skip
            connection.execute(insert(tables.job), [
                {
                    "id": job + place, "instance_id": film + place, "state": "done", "priority": 0, "revision": 1,
                    "bundle_id": self.films.bundle, "finished_at": times[place],
                }
                for place in places
            ])  # fmt: skip
            gain = change.get("gain", 1.0)
            grey = np.clip(self.rng.normal(0.4, 0.04, number) * gain, 0, 1)
            spread = np.clip(self.rng.normal(0.2, 0.02, number) * gain, 0, 1)
            connection.execute(insert(tables.segmentation), [
                {
                    "job_id": job + place, "height": 8, "width": 8, "encoding": "zstd", "mask": b"", "film_rows": 8,
                    "resampler_version": 1, "film_columns": 8, "flip_columns": False, "flip_rows": False,
                    "repaired_pixels": 0, "voi_policy": "window", "grey_mean": float(grey[place]),
                    "grey_spread": float(spread[place]), "engine": {}, "seconds": {},
                }
                for place in places
            ])  # fmt: skip
            scores = np.clip(self.rng.beta(2, 5, number) + change.get("score", 0.0), 0, 1)
            connection.execute(insert(tables.finding_score), [
                {
                    "job_id": job + place, "finding": FINDING, "probability": float(scores[place]), "threshold": 0.4,
                    "spread": float(self.rng.uniform(0.02, 0.06)), "positive": bool(scores[place] >= 0.4),
                    "members": {},
                }
                for place in places
            ])  # fmt: skip
            areas = np.clip(self.rng.normal(0.1, 0.01, number) + change.get("area", 0.0), 0, 1)
            connection.execute(insert(tables.region_measurement), [
                {
                    "job_id": job + place, "region": REGION, "area_pixels": 6, "area_fraction": float(areas[place]),
                    "components": 1, "repaired_pixels": 0,
                }
                for place in places
            ])  # fmt: skip
            flagged = np.flatnonzero(self.rng.random(number) < change.get("flagged", 0.1))
            connection.execute(insert(tables.failure_flag), [
                {"job_id": job + int(place), "rule": "low_confidence", "rule_version": 1, "source": "raw"}
                for place in [0, *flagged]
            ])  # fmt: skip


def morning_after(night: int) -> datetime:
    """When a night's day has just ended."""
    return (FIRST + timedelta(days=night + 1)).replace(hour=1)
