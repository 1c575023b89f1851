"""Databases with films that readers labelled and bundles read, for tests of what is tracked."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import func, insert, select
from stored_films import Films, digest

from schema import tables
from schema.tables import LabelSource, LabelValue
from worker.monitor.labels import Label, record_labels

NIGHT = timedelta(days=1)
#: The midnight that ends the last tracked day.
LAST = datetime(2026, 6, 1, tzinfo=UTC)
NOW = LAST - timedelta(hours=1)
FINDING = "pneumonia"


class LabelledFilms:
    """Films with results of a bundle, thousands in a second; each the only one of its patient unless told."""

    def __init__(self, films: Films) -> None:
        self.films, self.database = films, films.database
        self._promoted_at(films.bundle, LAST - 200 * NIGHT)
        self.count = 0

    def _promoted_at(self, bundle: int, moment: datetime) -> None:
        self.films.update(tables.bundle, bundle, added_at=moment)
        with self.database.write() as connection:
            connection.execute(tables.bundle_alias.update().values(since=moment))

    def add(
        self,
        came: Iterable[datetime],
        scores: Iterable[float],
        *,
        bundle: int | None = None,
        patients: Iterable[str] | None = None,
        kind: str = "process",
        **instance: Any,
    ) -> list[int]:
        """Films that came then, each read with that probability of pneumonia; returns their ids."""
        times, chances = list(came), list(scores)
        first, self.count = self.count, self.count + len(times)
        numbers = range(first, self.count)
        names = list(patients) if patients is not None else [f"patient {number}" for number in numbers]
        ids = [1000 + number for number in numbers]
        rows = [
            {
                "id": ids[place],
                "key": digest(f"film {number}"),
                "patient_key": digest(names[place]),
                "study_key": digest(f"study {number}"),
                "series_key": digest(f"series {number}"),
                "held_out": False,
                "created_at": times[place],
                "sop_class_uid": "1.2",
                "age_days": 400 if number % 2 else 3000,
                "sex": "F" if number % 3 else "M",
                "view_position": "AP",
                "station": "room 1",
                **instance,
            }
            for place, number in enumerate(numbers)
        ]
        with self.database.write() as connection:
            connection.execute(insert(tables.instance), rows)
        self.read(ids, chances, bundle=bundle, kind=kind)
        return ids

    def read(
        self,
        ids: Iterable[int],
        scores: Iterable[float],
        *,
        bundle: int | None = None,
        kind: str = "process",
        **job: Any,
    ) -> None:
        """Have a bundle read films: published, or in the shadow."""
        owner = bundle or self.films.bundle
        shadow = {"published": False, "priority": tables.SHADOW_PRIORITY} if kind == "shadow" else {"priority": 0}
        with self.database.write() as connection:
            first = (connection.scalar(select(func.max(tables.job.c.id))) or 0) + 1
            pairs = [(first + place, *pair) for place, pair in enumerate(zip(ids, scores, strict=True))]
            common = {"state": "done", "kind": kind, "bundle_id": owner, "revision": 1, "finished_at": NOW}
            fixed = {"finding": FINDING, "spread": 0.0, "threshold": 0.4, "members": {}}
            connection.execute(
                insert(tables.job),
                [{"id": number, "instance_id": film, **common, **shadow, **job} for number, film, _ in pairs],
            )
            connection.execute(
                insert(tables.finding_score),
                [
                    {"job_id": number, "probability": score, "positive": score >= 0.4, **fixed}
                    for number, _, score in pairs
                ],
            )

    def label(
        self,
        ids: Iterable[int],
        present: Iterable[bool | None],
        *,
        source: LabelSource = LabelSource.CONSECUTIVE,
        reader: str = "r1",
        at: datetime = NOW,
        finding: str = FINDING,
    ) -> None:
        """Label films; None is uncertain."""
        values = {True: LabelValue.PRESENT, False: LabelValue.ABSENT, None: LabelValue.UNCERTAIN}
        record_labels(
            self.database,
            [
                Label(film, finding, values[None if value is None else bool(value)], reader, source, at)
                for film, value in zip(ids, present, strict=True)
            ],
        )

    def night(self, came: datetime, films: int, rng: np.random.Generator, gain: float = 1.5) -> tuple[list[int], Any]:
        """Films of one night, a third of them positive and scored ``gain`` standard deviations higher."""
        truth = rng.random(films) < 1 / 3
        scores = 1 / (1 + np.exp(-(rng.normal(0, 1, films) + gain * truth - 1.0)))
        return self.add([came] * films, scores.tolist()), truth
