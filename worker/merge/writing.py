"""Rows that a chunk brings, gathered first and then written in one statement per table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, bindparam, exists, insert, literal_column, select, update
from sqlalchemy.dialects import postgresql, sqlite

from schema.tables import (
    ArrivalState,
    JobKind,
    JobState,
    arrival,
    attempt,
    identity,
    instance,
    instance_identity,
    job,
    submission_arrival,
)
from schema.types import database_now
from worker.intake.lookups import VERIFY, allocate_ids, slices
from worker.merge.shard_file import RESULTS, Row, ShardArrival, ShardFilm, ShardReader

#: Columns of ``instance`` that only reading the pixels tells.
FACTS = (
    "content_hash", "file_hash", "film_rows", "film_columns", "row_spacing", "column_spacing", "spacing_source",
    "sop_class_uid", "transfer_syntax_uid", "photometric_interpretation", "modality", "body_part", "view_position",
    "age_days",
)  # fmt: skip
UNBOUND: Row = {"bundle_id": None, "revision": None, "lease_id": None}
_OPEN = frozenset({JobState.READY, JobState.DELAYED, JobState.LEASED})
_ARRIVAL = ("instance_id", "state", "current", "code", "detail", "file_hash", "content_hash")


class Writing:
    """What one transaction will write.

    Parameters
    ----------
    connection
        The target's transaction.
    reader
        The shard the rows come from.
    bundles, submissions
        The shard's row ids → those of the target.
    """

    def __init__(
        self,
        connection: Connection,
        reader: ShardReader,
        bundles: Mapping[int, int],
        submissions: Mapping[int, int],
    ) -> None:
        self._connection = connection
        self._reader = reader
        self._bundles = bundles
        self._submissions = submissions
        self._rows: dict[str, list[Row]] = defaultdict(list)
        self._cancelled: set[int] = set()
        self._unpublished: set[int] = set()
        self._results: dict[int, int] = {}
        self._attempts: dict[int, int] = {}
        self._touched: set[int] = set()

    def reserve(self, films: int, files: int, jobs: int) -> None:
        """Give ids to so many rows at most."""
        self._ids: dict[str, Iterator[int]] = {
            table.name: iter(allocate_ids(self._connection, table, count))
            for table, count in ((instance, films), (arrival, files), (job, jobs))
        }

    def film(self, film: ShardFilm, **changes: Any) -> int:
        """A film that the target does not have; returns its id."""
        number = next(self._ids["instance"])
        self._rows["instance"].append({**film.row, "id": number, **changes})
        if film.identity is not None:
            self._rows["instance_identity"].append({**film.identity, "instance_id": number})
        self._touched.add(number)
        return number

    def describe(self, number: int, film: ShardFilm, alias_of: int | None) -> None:
        """What a film of the target was found to be."""
        self._rows["facts"].append({"film": number, "alias_of": alias_of, **{name: film.row[name] for name in FACTS}})
        self._touched.add(number)

    def bundle_id(self, row: Row) -> int | None:
        """The target's bundle of a job of the shard."""
        return self._bundles[row["bundle_id"]] if row["bundle_id"] is not None else None

    def arrival(self, file: ShardArrival, **changes: Any) -> int:
        """A file that the target does not have; returns its id."""
        number = next(self._ids["arrival"])
        if changes.get("instance_id") is not None:
            self._touched.add(changes["instance_id"])
        submission = self._submissions[file.row["submission_id"]]
        self._rows["arrival"].append({**file.row, "id": number, "submission_id": submission, **changes})
        if file.source is not None:
            source = file.source
            self._rows["identity"].append(
                {
                    "arrival_id": number,
                    "root": source.root,
                    "path": source.path,
                    "member": source.member,
                    "size": source.size,
                    "modified_ns": source.modified_ns,
                }
            )
        self.seen(file, number)
        return number

    def retell(self, number: int, file: ShardArrival, **changes: Any) -> None:
        """Say anew what became of a file that the target has."""
        row = {**file.row, **changes}
        self._rows["retold"].append({"file": number, **{name: row[name] for name in _ARRIVAL}})
        if row["instance_id"] is not None:
            self._touched.add(row["instance_id"])

    def seen(self, file: ShardArrival, number: int) -> None:
        """Note which submissions saw the file ``number``."""
        self._rows["submission_arrival"] += [
            {"submission_id": self._submissions[row["submission_id"]], "arrival_id": number,
             "seen_before": row["seen_before"]}
            for row in file.seen_by
        ]  # fmt: skip

    def job(self, row: Row, *, result: bool = True, **changes: Any) -> Row:
        """A job of the shard with its attempts and, if wanted, its result; open ones are ready."""
        number = next(self._ids["job"])
        values = {**row, "id": number, "bundle_id": self.bundle_id(row), **changes}
        if values["state"] in _OPEN:
            # The claim that was under way there counted as an attempt.
            attempts = values["attempts"] - (row["state"] == JobState.LEASED)
            values |= {**UNBOUND, "state": JobState.READY.value, "available_at": None, "attempts": max(0, attempts)}
        self._rows["job"].append(values)
        # Of two jobs that one of the shard becomes, the second one was really worked on.
        self._attempts[row["id"]] = number
        if result:
            self._results[row["id"]] = number
        self._touched.add(values["instance_id"])
        return values

    def new_generation(self, number: int, generation: int, jobs: Collection[int]) -> None:
        """Let a film of the target begin anew: its jobs speak for it no longer."""
        self._rows["generation"].append({"film": number, "next_generation": generation})
        self._unpublished.update(jobs)

    def cancel(self, job_id: int) -> None:
        """End a job of the target that is not done."""
        self._cancelled.add(job_id)

    def write(self) -> None:
        """Write it all."""
        rows, run = self._rows, self._connection.execute
        # A film that is an alias names another one, which must be there first.
        rows["instance"].sort(key=lambda row: row["alias_of"] is not None)
        for piece in slices(self._cancelled):
            run(_CANCEL, {"jobs": piece})
        for piece in slices(self._unpublished):
            run(_UNPUBLISH, {"jobs": piece})
        if rows["generation"]:
            run(_NEW_GENERATION, rows["generation"])
        for table in (instance, instance_identity):
            if rows[table.name]:
                run(insert(table), rows[table.name])
        if rows["facts"]:
            run(_DESCRIBE, rows["facts"])
        self.write_arrivals()
        if rows["job"]:
            run(insert(job), rows["job"])
        self._write_results()
        self._verify()

    def write_arrivals(self) -> None:
        """Write the files alone; their films are there."""
        rows, run = self._rows, self._connection.execute
        for name, statement in (
            ("retold", _RETELL),
            ("arrival", insert(arrival)),
            ("identity", insert(identity)),
            ("submission_arrival", _insert_or_ignore(self._connection)),
        ):
            if rows[name]:
                run(statement, rows.pop(name))

    def _write_results(self) -> None:
        for table, numbers in ((attempt, self._attempts), *((table, self._results) for table in RESULTS)):
            found = self._reader.of_jobs(table, list(numbers))
            for row in found:
                row["job_id"] = numbers[row["job_id"]]
                # Row ids are the target's own, and workers stay where they are.
                row.pop("id", None)
                if "worker_id" in row:
                    row["worker_id"] = None
            if found:
                self._connection.execute(insert(table), found)

    def _verify(self) -> None:
        """See to it that somebody verifies the unverified, and nobody what is settled."""
        for piece in slices(self._touched):
            self._connection.execute(_SETTLED, {"films": piece})
            self._connection.execute(_VERIFY, {"films": piece})


_CANCEL = (
    update(job)
    .where(job.c.id.in_(bindparam("jobs", expanding=True)), job.c.state != literal_column("'done'"))
    .values(
        **UNBOUND,
        state=JobState.CANCELLED.value,
        finished_at=database_now(),
        detail="another database brought what is known about this film",
    )
)
_UNPUBLISH = update(job).where(job.c.id.in_(bindparam("jobs", expanding=True))).values(published=False)
_NEW_GENERATION = (
    update(instance).where(instance.c.id == bindparam("film")).values(generation=bindparam("next_generation"))
)
_DESCRIBE = (
    update(instance)
    .where(instance.c.id == bindparam("film"))
    .values({name: bindparam(name) for name in (*FACTS, "alias_of")})
)
_RETELL = update(arrival).where(arrival.c.id == bindparam("file")).values({name: bindparam(name) for name in _ARRIVAL})
_FILMS = arrival.c.instance_id.in_(bindparam("films", expanding=True))
_UNVERIFIED = arrival.c.state == literal_column(f"'{ArrivalState.UNVERIFIED}'")
_SETTLED = (
    update(job)
    .where(VERIFY, job.c.state.in_([literal_column(f"'{state}'") for state in ("ready", "delayed", "leased")]))
    .where(job.c.arrival_id.in_(select(arrival.c.id).where(_FILMS, ~_UNVERIFIED)))
    .values(**UNBOUND, state=JobState.DONE.value, code=None, stage=None, detail="", finished_at=database_now())
)
_VERIFY = insert(job).from_select(
    ["instance_id", "arrival_id", "kind", "state", "priority", "generation", "published", "attempts", "crashes",
     "detail", "created_at"],
    select(
        arrival.c.instance_id,
        arrival.c.id,
        literal_column(f"'{JobKind.VERIFY}'"),
        literal_column(f"'{JobState.READY}'"),
        select(job.c.priority)
        .where(job.c.instance_id == arrival.c.instance_id)
        .order_by(job.c.id.desc())
        .limit(1)
        .scalar_subquery(),
        instance.c.generation,
        literal_column("true"),
        literal_column("0"),
        literal_column("0"),
        literal_column("''"),
        database_now(),
    )
    .join(instance, instance.c.id == arrival.c.instance_id)
    .where(_FILMS, _UNVERIFIED, ~exists().where(VERIFY, job.c.arrival_id == arrival.c.id)),
    include_defaults=False,
)  # fmt: skip


def verify_first(connection: Connection, arrival_id: int) -> None:
    """Have a file in conflict verified that nobody has looked into yet."""
    looked_into = exists().where(VERIFY, job.c.arrival_id == arrival.c.id)
    connection.execute(
        update(arrival)
        .where(arrival.c.id == arrival_id, arrival.c.state == ArrivalState.CONFLICT.value, ~looked_into)
        .values(state=ArrivalState.UNVERIFIED.value)
    )


def _insert_or_ignore(connection: Connection) -> Any:
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    return dialect.insert(submission_arrival).on_conflict_do_nothing()
