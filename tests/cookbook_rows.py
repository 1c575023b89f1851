"""The database that docs/sql-cookbook.md is answered from: three nights of one small hospital."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import insert, update
from stored_films import Films, digest, result

from schema import tables
from schema.database import Database
from schema.tables import PRIORITY
from worker.results.write import write_results


def at(moment: str) -> datetime:
    """``"03-01 22:10"`` of the year 2026, UTC."""
    return datetime.strptime(f"2026-{moment}", "%Y-%m-%d %H:%M").replace(tzinfo=UTC)


class Film(NamedTuple):
    """A film that came, and what became of it."""

    number: int
    arrived: str
    station: str
    age_days: int | None
    lane: str
    state: str
    code: str | None = None
    wait: float | None = None
    run: float | None = None
    pneumonia: float = 0.0
    flags: tuple[str, ...] = ()
    repaired: int = 0
    bundle: str = "2"


FILMS = (
    Film(1, "02-27 22:00", "ROOM1", 200, "icu", "done", None, 60, 4, 0.2, (), 0, "1"),
    Film(2, "02-27 22:01", "ROOM2", 900, "archive", "done", None, 120, 4, 0.6, ("low_confidence",), 3, "1"),
    Film(3, "03-01 22:10", "ROOM1", 2500, "icu", "done", None, 30, 3, 0.55),
    Film(4, "03-01 22:20", "ROOM1", 100, "icu", "done", None, 45, 3, 0.1, ("missing_region", "low_confidence"), 12),
    Film(5, "03-01 23:05", "ROOM2", 3000, "archive", "done", None, 300, 5, 0.95, (), 120),
    Film(6, "03-01 23:15", "ROOM2", None, "archive", "failed", "DECODE_FAILED", 310, 1),
    Film(7, "03-01 23:20", "ROOM1", 5900, "archive", "ineligible", "LATERAL", 200, 3),
    Film(8, "03-01 23:30", "ROOM1", 400, "icu", "failed", "TRUNCATED_PIXELS", 20, 1),
    Film(9, "03-02 08:00", "ROOM2", 1500, "archive", "ready"),
    Film(10, "03-02 08:05", "ROOM1", 50, "icu", "ready"),
    Film(11, "03-02 07:55", "ROOM1", 60, "archive", "delayed", "SOURCE_MISSING"),
)
DETAILS = {
    "DECODE_FAILED": ("decode", "the decoder refused the pixel data"),
    "TRUNCATED_PIXELS": ("decode", "120000 of 480000 bytes"),
    "LATERAL": ("findings", ""),
    "SOURCE_MISSING": ("read", "the file is no longer there"),
}


def fill(database: Database) -> None:
    """Put everything into an empty database."""
    films = Films(database)
    bundles = {"1": films.bundle, "2": films.add_bundle("2")}
    with database.write() as connection:
        connection.execute(update(tables.bundle_alias).values(alias="previous"))
        connection.execute(insert(tables.bundle_alias).values(alias="champion", bundle_id=bundles["2"]))
    second = films.insert(
        tables.worker, name="host-2", host="host", process_id=2, boot_id="boot", device="cpu", version="0",
        bundle_id=bundles["2"],
    )  # fmt: skip
    jobs = {film.number: _add(films, film, bundles, (films.worker, second)[film.number % 2]) for film in FILMS}
    _read_again(films, bundles["2"])
    _other_files(films)
    with database.write() as connection:
        connection.execute(
            update(tables.region_measurement)
            .where(tables.region_measurement.c.job_id == jobs[4], tables.region_measurement.c.region == "carina")
            .values(area_pixels=0, area_fraction=0.0, components=0)
        )
    _deliver(films, jobs)
    _label(films, bundles)
    for moment, key in (("01-05 09:00", "phantom:1"), ("02-28 10:30", "phantom:2")):
        films.insert(
            tables.audit_event, happened_at=at(moment), actor="mira", action="promote", subject=key, detail={}
        )  # fmt: skip


def _add(films: Films, film: Film, bundles: dict[str, int], worker: int) -> int:
    arrived = at(film.arrived)
    uid = f"1.2.3.{film.number}"
    instance = films.instance(
        uid, station=film.station, age_days=film.age_days, sex="FM"[film.number % 2], created_at=arrived,
        patient_key=digest(f"patient {film.number // 2}"),
    )  # fmt: skip
    films.update_identity(instance, accession_number=f"A{film.number // 4:03d}")
    arrival = films.arrival("instance", instance, current=True, arrived_at=arrived)
    values: dict[str, Any] = {"arrival_id": arrival, "priority": PRIORITY[film.lane], "created_at": arrived}
    if film.code:
        stage, detail = DETAILS[film.code]
        values |= {"code": film.code, "stage": stage, "detail": detail}
    if film.wait is not None and film.run is not None:
        ended = arrived + timedelta(seconds=film.wait + film.run)
        values |= {"wait_seconds": film.wait, "run_seconds": film.run, "finished_at": ended}
        values |= {"attempts": 3 if film.state == "failed" else 1}
    if film.state == "done":
        values |= {"bundle_id": bundles[film.bundle]}
    job = films.job(instance, film.state, **values)
    if film.state == "done":
        _write(films, job, film.pneumonia, film.flags, film.repaired)
    if film.wait is not None:
        films.insert(
            tables.attempt, job_id=job, number=values["attempts"], worker_id=worker, ended_at=values["finished_at"],
            outcome=film.state,
        )  # fmt: skip
    return job


def _write(films: Films, job: int, pneumonia: float, flags: tuple[str, ...], repaired: int) -> None:
    with films.database.write() as connection:
        write_results(connection, [(job, result(flags=flags, pneumonia=pneumonia))])
        connection.execute(
            update(tables.segmentation).where(tables.segmentation.c.job_id == job).values(repaired_pixels=repaired)
        )


def _read_again(films: Films, bundle: int) -> None:
    """The films of the first night, read again by the bundle that was promoted after it."""
    for instance, pneumonia in ((1, 0.5), (2, 0.7)):
        job = films.job(
            instance, "done", bundle_id=bundle, priority=PRIORITY["archive"], created_at=at("03-02 00:30"),
            finished_at=at("03-02 00:31"), wait_seconds=55.0, run_seconds=5.0, arrival_id=instance,
        )  # fmt: skip
        _write(films, job, pneumonia, (), 0)


def _other_files(films: Films) -> None:
    films.arrival("duplicate", 3, arrived_at=at("03-01 22:40"))
    films.arrival("duplicate", 4, arrived_at=at("03-01 22:41"))
    films.arrival("conflict", 5, arrived_at=at("03-01 23:45"))
    films.arrival("alias", films.instance("1.2.3.12", alias_of=1), arrived_at=at("03-01 22:42"), current=True)
    films.arrival("rejected", None, arrived_at=at("03-01 23:50"), code="EMPTY_FILE", detail="0 bytes")


def _deliver(films: Films, jobs: dict[int, int]) -> None:
    destination = films.insert(
        tables.delivery_destination, name="pacs", kind="dicom", configuration={}, filled_until=at("03-01 00:00")
    )
    for number, state, code in ((3, "sent", None), (4, "failed", "REFUSED"), (5, "ready", None)):
        films.insert(
            tables.delivery, destination_id=destination, job_id=jobs[number], output="segmentation", revision=1,
            priority=0, state=state, code=code, created_at=at("03-01 23:59"),
            sent_at=at("03-02 00:05") if state == "sent" else None,
        )  # fmt: skip


def _label(films: Films, bundles: dict[str, int]) -> None:
    said = ((1, "absent", "consecutive"), (3, "present", "consecutive"), (4, "absent", "random"),
            (5, "present", "disagreement"), (5, "uncertain", "disagreement"))  # fmt: skip
    for number, (instance, value, source) in enumerate(said):
        films.insert(
            tables.label, instance_id=instance, finding="pneumonia", value=value, reader=f"reader-{number % 2}",
            source=source, labelled_at=at("03-05 12:00"),
        )  # fmt: skip
    for day, auroc in (("03-06 00:00", 0.91), ("03-07 00:00", 0.89), ("03-08 00:00", None)):
        few = auroc is None
        films.insert(
            tables.auc_tracking, bundle_id=bundles["2"], finding="pneumonia", cohort="all", cohort_value="",
            period="30d", starts_at=at(day) - timedelta(days=30), ends_at=at(day), digest="", readers="majority",
            positives=0 if few else 40, negatives=3 if few else 160, patients=190, too_few=few, replicates=10_000,
            auroc=auroc, auroc_low=None if few else auroc - 0.05, auroc_high=None if few else auroc + 0.04,
        )  # fmt: skip
