"""Which films is a rebuild made from, and what is true of them?

Films of the database are those that readers labelled and a worker has read, with the findings that count among the
labels (:mod:`worker.monitor.labels`); ``uncertain`` means not known. Labels of a film's alias, the same picture under
another UID, count for the film. Their choice is written down when a rebuild begins, so that every later stage, and
every process that goes on with it, sees the same films; only where they lie is looked up anew.

Patients held out judge and are never learned from: the film's row says so, or that of an alias, or the patient's key
(:func:`schema.keys.is_held_out`), which a recipe's split goes by.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import select

from schema.database import Database
from schema.tables import arrival, identity, instance
from schema.view_tables import published_result
from trainer.data.description import PHANTOMS, load_dataset
from trainer.data.records import Dataset, FilmRecord, phantom_dataset, some_of
from trainer.errors import DataError
from trainer.rebuild.folder import RebuildFolder, read_json, write_json
from trainer.rebuild.ledger import Rebuild
from trainer.rebuild.request import Request
from worker.errors import FilmError
from worker.film.source import open_source
from worker.intake.lookups import slices
from worker.intake.sources import resolve
from worker.monitor.labels import known_findings
from worker.queue.outcomes import SourceReference
from worker.settings import Settings

#: What films of the database are called as a data set.
DATABASE = "database"


@dataclass(frozen=True)
class StoredFilm:
    """A labelled film; ``source`` is None where it is registered without a file, ``read`` if a worker has read it."""

    id: int
    key: str
    patient: str
    held_out: bool
    age_days: int | None
    sex: str
    source: SourceReference | None
    read: bool


def choose_films(database: Database, settings: Settings, row: Rebuild, request: Request, folder: RebuildFolder) -> None:
    """Write down which films of the database are learned from, unless that was done.

    Raises
    ------
    DataError
        No labelled film can be used.
    """
    if not request.from_database or folder.films.is_file():
        return
    with database.read() as connection:
        findings = known_findings(connection, request.readers, up_to=row.last_label_id)
    left_out: Counter[str] = Counter()
    chosen = []
    for film in _stored(database, findings):
        try:
            if not film.read or film.source is None:
                left_out["labelled, but not read by a worker"] += 1
                continue
            resolve(settings, film.source)
        except FilmError as error:
            left_out[f"labelled, but the file cannot be had ({error.code})"] += 1
            continue
        chosen.append({"id": film.id, "held_out": film.held_out, "findings": findings[film.id]})
    if not chosen:
        why = "; ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise DataError(
            f"No labelled film of the database can be learned from ({why or 'there are no labels'}): let the films be "
            "read, record labels for them, or give --data."
        )
    write_json(folder.films, {"readers": str(request.readers), "left_out": left_out, "films": chosen})


def all_films(database: Database, settings: Settings, request: Request, folder: RebuildFolder) -> Dataset:
    """The films of the database as chosen, and those of the data set on disk.

    Raises
    ------
    DataError
        A chosen film cannot be had any more, or the data set on disk is unusable.
    """
    stored = _chosen(database, settings, folder) if request.from_database else None
    if not request.data:
        assert stored is not None
        return stored
    disk = load_dataset(request.data, request.layout)
    if stored is None:
        return disk
    if request.data == PHANTOMS:
        disk = phantom_dataset(max(recipe.data.phantoms for recipe in request.recipes))
    return Dataset(
        name=f"{stored.name} and {disk.name}",
        records=(*stored.records, *disk.records),
        root=disk.root or folder.path,
        origin={**disk.origin, **stored.origin, "films": str(len(stored.records) + len(disk.records))},
    )


def judging_films(films: Dataset, request: Request, names: Iterable[str], folder: Path) -> Dataset:
    """The films called ``names`` alone, all of the part ``test``: what both bundles are judged on."""
    if films.root is None:
        films = phantom_dataset(max(recipe.data.phantoms for recipe in request.recipes))
    wanted = set(names)
    records = tuple(replace(record, part="test") for record in films.records if record.name in wanted)
    return replace(films, records=records, root=films.root or folder)


def _chosen(database: Database, settings: Settings, folder: RebuildFolder) -> Dataset:
    written = read_json(folder.films)
    rows = {row["id"]: row for row in written["films"]}
    records, gone = [], []
    for film in _stored(database, rows):
        row = rows[film.id]
        try:
            image = _file(settings, film, folder.unpacked)
        except FilmError as error:
            gone.append(f"{film.key} ({error.code})")
            continue
        records.append(
            FilmRecord(
                name=film.key,
                image=image,
                truth=None,
                patient=film.patient,
                findings=row["findings"],
                age_days=film.age_days,
                sex=film.sex,
                part="test" if row["held_out"] else "",
            )
        )
    if gone:
        raise DataError(
            f"Films that this rebuild began with cannot be had any more: {some_of(gone)}. Put them back, or begin anew "
            "with --fresh."
        )
    origin = {"data set": DATABASE, "films": str(len(records)), "truth": f"labels of readers, {written['readers']}"}
    origin |= {f"left out: {reason}": str(count) for reason, count in written["left_out"].items()}
    return Dataset(DATABASE, tuple(records), folder.path, origin)


def _stored(database: Database, films: Mapping[int, Any]) -> list[StoredFilm]:
    """What the database knows of these films, by id; a read transaction for each thousand."""
    stored: list[StoredFilm] = []
    for some in slices(sorted(films)):
        with database.read() as connection:
            held = set(connection.scalars(_HELD_OUT_ALIASES.where(instance.c.alias_of.in_(some))))
            rows = connection.execute(_FILMS.where(instance.c.id.in_(some)).order_by(instance.c.id)).all()
        stored += [_film(row, row.held_out or row.id in held) for row in rows]
    return stored


def _film(row: Any, held_out: bool) -> StoredFilm:
    source = None
    if row.root is not None:
        source = SourceReference(row.root, row.path, row.member, row.size, row.modified_ns)
    return StoredFilm(row.id, row.key, row.patient_key, held_out, row.age_days, row.sex, source, row.job_id is not None)


def _file(settings: Settings, film: StoredFilm, unpacked: Path) -> Path:
    """Where the film lies; one in an archive is unpacked first."""
    if film.source is None:
        raise FilmError("SOURCE_MISSING")
    path = resolve(settings, film.source)
    if not film.source.member:
        return path
    copy = unpacked / f"{film.key}.dcm"
    if not copy.is_file():
        unpacked.mkdir(parents=True, exist_ok=True)
        partial = copy.with_suffix(".part")
        with open_source(path, film.source.member) as (stream, _), partial.open("wb") as target:
            shutil.copyfileobj(stream, target)
        partial.replace(copy)
    return copy


_FILMS = (
    select(
        instance.c.id,
        instance.c.key,
        instance.c.patient_key,
        instance.c.held_out,
        instance.c.age_days,
        instance.c.sex,
        identity.c.root,
        identity.c.path,
        identity.c.member,
        identity.c.size,
        identity.c.modified_ns,
        published_result.c.job_id,
    )
    .select_from(instance)
    .outerjoin(arrival, (arrival.c.instance_id == instance.c.id) & arrival.c.current)
    .outerjoin(identity, identity.c.arrival_id == arrival.c.id)
    .outerjoin(published_result, published_result.c.instance_id == instance.c.id)
)
_HELD_OUT_ALIASES = select(instance.c.alias_of).where(instance.c.held_out)
