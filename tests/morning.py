"""What a small hospital's database looks like in the morning: some nights of films, a few of them with a file."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cv2
import numpy as np
from sqlalchemy import insert, update
from stored_films import Films, result

from schema import tables
from schema.database import Database
from schema.findings import Finding
from schema.regions import HOLSTE_REGIONS
from worker.phantom import make_phantom, phantom_dataset
from worker.results.result import FilmResult, FindingScore, Flag, Heatmap, Measurement, Segmentation
from worker.results.write import write_results

NIGHTS = 24
FILMS_A_NIGHT = 9
GRID = 256
RULES = ("missing_region", "low_confidence", "area_out_of_range", "ensemble_disagreement")


def fill(database: Database, root: Path, *, with_files: int = 4) -> None:
    """Put films into an empty database; the newest ``with_files`` lie as DICOM under ``root``/films."""
    chance = random.Random(7)
    films = Films(database)
    second = films.add_bundle("2")
    (root / "films").mkdir(parents=True, exist_ok=True)
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    templates = [_read(seed, chance) for seed in range(with_files)]
    last = NIGHTS * FILMS_A_NIGHT
    for number in range(1, last + 1):
        night, place = divmod(number - 1, FILMS_A_NIGHT)
        came = midnight - timedelta(days=NIGHTS - 1 - night) + timedelta(seconds=place + 1)
        state = "failed" if number % 41 == 0 else "ineligible" if number % 29 == 0 else "done"
        instance = films.instance(
            station=f"ROOM{number % 3 + 1}", age_days=chance.randrange(5, 6500), sex=chance.choice("FM"),
            view_position=chance.choice(("AP", "PA")), film_rows=1100, film_columns=900, row_spacing=0.143,
            column_spacing=0.143, spacing_source="imager",
        )  # fmt: skip
        arrival = films.arrival("instance", instance, current=True, arrived_at=came)
        if number == last:
            _earlier(films, instance, arrival, templates[0])
        job = films.job(
            instance, state, arrival_id=arrival, created_at=came, finished_at=came + timedelta(seconds=1),
            priority=10 * (number % 2), **({"bundle_id": second} if state == "done" and night > 3 else {}),
        )  # fmt: skip
        if state != "done":
            continue
        if number > last - with_files:
            seed = last - number
            _put_file(films, arrival, root, seed)
            stored = templates[seed]
        else:
            stored = replace(result(flags=RULES[number % 4 : number % 4 + 1] if number % 5 == 0 else ()))
            stored.scores[:] = _scores(chance)
        with database.write() as connection:
            write_results(connection, [(job, stored)])
    with database.write() as connection:
        connection.execute(update(tables.bundle_alias).values(bundle_id=second))
    _waiting(films)
    _track(films, second, midnight, chance)


def _scores(chance: random.Random) -> list[FindingScore]:
    scores = []
    for finding in Finding:
        members = {name: min(1.0, max(0.0, chance.betavariate(1.4, 4.2))) for name in ("a", "b", "c")}
        mean = sum(members.values()) / 3
        spread = max(members.values()) - min(members.values())
        scores.append(FindingScore(str(finding), mean, spread, 0.45, mean >= 0.45, members))
    return scores


def _read(seed: int, chance: random.Random) -> FilmResult:
    """A result with the regions of a phantom."""
    phantom = make_phantom(seed, rows=1100, columns=900)
    labels = cv2.resize(phantom.labels, (GRID, GRID), interpolation=cv2.INTER_NEAREST)
    told = result(film=(1100, 900), pneumonia=0.8)
    heat = np.zeros((2, 24, 24), np.uint8)
    heat[0, 14:19, 4:9] = heat[1, 5:9, 14:18] = 255
    heat = np.stack([cv2.GaussianBlur(each, (0, 0), 2.2) for each in heat])
    heat = np.asarray(255.0 * heat / heat.max(axis=(1, 2), keepdims=True), np.uint8)
    scores = _scores(chance)
    scores[0] = FindingScore(scores[0].finding, 0.78, 0.31, 0.45, True, {"a": 0.62, "b": 0.79, "c": 0.93})
    return replace(
        told,
        segmentation=Segmentation(labels, labels, 0.5, 0),
        measurements=[
            Measurement(
                region.name, int((labels == region.value).sum()), float((labels == region.value).mean()),
                float((labels == region.value).mean() * 1100 * 900 * 0.0204), 1, 0.5, 0.5, (0, 0, 9, 9), 0.94, 0,
            )
            for region in HOLSTE_REGIONS[1:]
        ],
        scores=scores,
        heatmap=Heatmap((scores[0].finding, scores[1].finding), heat),
        flags=[
            Flag("disconnected_region", 1, "cleaned", "left_lung", 2.0, None),
            Flag("low_confidence", 1, "result", None, 0.63, 0.7),
        ] if seed % 2 == 0 else [],
        seconds={"decode": 0.31, "preprocess": 0.08, "inference": 0.52, "findings": 0.06},
    )  # fmt: skip


def _put_file(films: Films, arrival: int, root: Path, seed: int) -> None:
    path = root / "films" / f"{arrival}.dcm"
    phantom_dataset(make_phantom(seed, rows=1100, columns=900)).save_as(path)
    with films.database.write() as connection:
        connection.execute(
            update(tables.identity)
            .where(tables.identity.c.arrival_id == arrival)
            .values(size=path.stat().st_size, modified_ns=path.stat().st_mtime_ns)
        )


def _earlier(films: Films, instance: int, arrival: int, told: FilmResult) -> None:
    """The newest film was read by an earlier bundle, too."""
    job = films.job(instance, "done", arrival_id=arrival)
    with films.database.write() as connection:
        write_results(connection, [(job, replace(told, flags=[]))])


def _waiting(films: Films) -> None:
    for _ in range(3):
        films.film("ready", priority=10)
    films.film("leased")
    films.arrival("rejected", None, code="EMPTY_FILE")


def _track(films: Films, bundle: int, midnight: datetime, chance: random.Random) -> None:
    rows = []
    for place, finding in enumerate(Finding):
        auroc = 0.93 - 0.025 * place
        for day in range(40):
            auroc += chance.uniform(-0.008, 0.008)
            half = 0.03 + 0.004 * place
            few = place == 9
            numbers = {} if few else {
                name: value + shift
                for value, base in ((min(auroc, 0.97), "auroc"), (0.6, "average_precision"), (0.8, "sensitivity"),
                                    (0.85, "specificity"), (0.55, "f1"))
                for name, shift in ((base, 0.0), (f"{base}_low", -half), (f"{base}_high", min(half, 0.99 - value)))
            }  # fmt: skip
            ends = midnight - timedelta(days=39 - day)
            rows.append(
                {
                    "bundle_id": bundle, "finding": str(finding), "cohort": "all", "cohort_value": "", "period": "30d",
                    "starts_at": ends - timedelta(days=30), "ends_at": ends, "digest": "", "readers": "majority",
                    "positives": 3 if few else 40, "negatives": 160, "patients": 190, "too_few": few,
                    "replicates": 10_000, **dict.fromkeys(_NUMBERS), **numbers,
                }
            )  # fmt: skip
    with films.database.write() as connection:
        connection.execute(insert(tables.auc_tracking), rows)


_NUMBERS = [
    f"{name}{end}"
    for name in ("auroc", "average_precision", "sensitivity", "specificity", "f1")
    for end in ("", "_low", "_high")
]
