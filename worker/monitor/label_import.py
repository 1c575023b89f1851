"""Bring a file of labels into the database: which films are meant, what is new?

A file is looked at whole before anything is written. One wrong line keeps all of it out, unless told to leave such
lines. Films that are not known here are no mistake, as a list may name more than was sent, but they are counted and
their lines are told. No message names a film: lines are enough for whoever has the file.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from sqlalchemy import Connection, insert, select

from schema.database import Database
from schema.keys import uid_key
from schema.tables import LabelValue, arrival, audit_event, identity, instance, instance_identity
from worker.intake.lookups import known_instances, slices
from worker.monitor.label_files import Convention, Defaults, FilmName, LabelFile, Problem, Statement, read_labels
from worker.monitor.labels import (
    Label,
    ReaderPolicy,
    count_new_labels,
    current_labels,
    record_labels,
    settle,
)

#: Of lines that name no known film so many are told.
LINES_TOLD = 20
#: Whose label it is where several readers of a file are taken together and nobody says how to call them.
CONSENSUS = "consensus"
_FILE_SUFFIXES = (".dcm", ".dicom", ".png", ".jpg", ".jpeg")


@dataclass
class ImportReport:
    """What came of a file.

    Attributes
    ----------
    rows
        Rows of the file below its header.
    labels
        What they say of findings of known films; ``new`` of these were, or would be, added.
    blank, others
        Cells that say nothing, and rows about findings that are not known here.
    unknown_films, unknown_lines
        Films that are not known here, and the lines that name them.
    problems
        Lines that are wrong.
    ignored
        Columns that nothing was taken from.
    written
        False after a dry run, or where a line is wrong.
    """

    rows: int = 0
    labels: int = 0
    new: int = 0
    blank: int = 0
    others: int = 0
    unknown_films: int = 0
    unknown_lines: list[int] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    ignored: tuple[str, ...] = ()
    written: bool = False

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "rows": self.rows,
            "labels": self.labels,
            "new": self.new,
            "blank": self.blank,
            "other_findings": self.others,
            "unknown_films": self.unknown_films,
            "unknown_lines": self.unknown_lines,
            "problems": [{"line": problem.line, "problem": problem.what} for problem in self.problems],
            "ignored_columns": list(self.ignored),
            "written": self.written,
        }


def import_labels(
    database: Database,
    site_key: bytes,
    path: Path,
    *,
    convention: Convention,
    defaults: Defaults,
    policy: ReaderPolicy | None = None,
    marks: Path | None = None,
    dry_run: bool = False,
    skip_bad: bool = False,
    actor: str = "",
) -> ImportReport:
    """Read a file and record its labels.

    A label without a time is one of this moment, and is not new where it says what its reader says already: so the
    same file may be imported again, and a changed one is a correction.

    Parameters
    ----------
    policy
        Record one label per film and finding, what the file's readers say together (:func:`settle`), by the reader
        ``defaults.reader`` or :data:`CONSENSUS`; None: record what each of them says.
    skip_bad
        Leave wrong lines out and record the rest.

    Raises
    ------
    worker.errors.CarinaError
        The file cannot be read, or has no column for what every label needs.
    """
    now = datetime.now(UTC)
    named = replace(defaults, reader=defaults.reader or CONSENSUS) if policy else defaults
    parsed = read_labels(path, convention, named if policy else defaults, now=now, marks=marks)
    report = ImportReport(
        rows=parsed.rows, blank=parsed.blank, others=parsed.others, ignored=parsed.ignored, problems=parsed.problems
    )
    with database.read() as connection:
        films = _films(connection, site_key, parsed)
        statements = _of_known_films(parsed, films, report)
        statements = _consistent(statements, films, report)
        labels = _labels(statements, films, policy, named.reader or CONSENSUS)
        report.labels = len(labels)
        new = _timed(connection, labels, now)
        report.new = count_new_labels(connection, new)
    report.problems.sort()
    if dry_run or (report.problems and not skip_bad):
        return report
    report.new = record_labels(database, new)
    report.written = True
    _audit(database, actor, "labels import", path, report)
    return report


Films = Mapping[str, Collection[int]]


def films_named(connection: Connection, site_key: bytes, named_by: FilmName, names: Collection[str]) -> Films:
    """Name → the films it may mean, aliases as the films they repeat; a name that is not in it is not known."""
    if named_by is FilmName.SOP:
        keys = {uid_key(site_key, name): name for name in names}
        return {keys[key]: {film} for key, film in known_instances(connection, keys.keys()).items()}
    if named_by is FilmName.KEY:
        return {key: {film} for key, film in known_instances(connection, {name.lower() for name in names}).items()}
    found: dict[str, set[int]] = defaultdict(set)
    if named_by is FilmName.ACCESSION:
        column = instance_identity.c.accession_number
        query = select(column, instance.c.id, instance.c.alias_of).join_from(instance_identity, instance)
        for some in slices(names):
            for name, film, original in connection.execute(query.where(column.in_(some))):
                found[name].add(original or film)
        return found
    wanted = {_without_suffix(name) for name in names}
    for path, member, film in connection.execute(_FILES.execution_options(yield_per=10_000)):
        name = _without_suffix(PurePosixPath(member or path).name)
        if name in wanted:
            found[name].add(film)
    return {name: found[bare] for name in names if (bare := _without_suffix(name)) in found}


_FILES = (
    select(identity.c.path, identity.c.member, arrival.c.instance_id)
    .join(arrival, arrival.c.id == identity.c.arrival_id)
    .where(arrival.c.current)
)


def _without_suffix(name: str) -> str:
    for suffix in _FILE_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _films(connection: Connection, site_key: bytes, parsed: LabelFile) -> Films:
    found = films_named(connection, site_key, parsed.named_by, {item.film for item in parsed.statements})
    if parsed.named_by is FilmName.KEY:
        return {item.film: found[item.film.lower()] for item in parsed.statements if item.film.lower() in found}
    return found


def _of_known_films(parsed: LabelFile, films: Films, report: ImportReport) -> list[Statement]:
    lines: dict[str, set[int]] = defaultdict(set)
    several: set[int] = set()
    known = []
    for item in parsed.statements:
        meant = films.get(item.film, ())
        if len(meant) == 1:
            known.append(item)
        elif meant:
            several.add(item.line)
        else:
            lines[item.film].add(item.line)
    report.unknown_films = len(lines)
    report.unknown_lines = sorted(set().union(*lines.values())) if lines else []
    report.problems += [Problem(line, f"the {parsed.named_by} names more than one film") for line in sorted(several)]
    return known


def _consistent(statements: Iterable[Statement], films: Films, report: ImportReport) -> list[Statement]:
    """The statements without repetitions and without those that contradict an earlier line."""
    first: dict[tuple[int, str, str, datetime | None], Statement] = {}
    for item in statements:
        (film,) = films[item.film]
        before = first.setdefault((film, item.finding, item.reader, item.labelled_at), item)
        if (before.value, before.source) != (item.value, item.source):
            report.problems.append(Problem(item.line, f"{item.finding}: line {before.line} says otherwise"))
    return list(first.values())


def _labels(
    statements: Iterable[Statement], films: Films, policy: ReaderPolicy | None, reader: str
) -> list[tuple[Label, bool]]:
    """Labels, each with whether the file says when it was given."""
    labels = []
    together: dict[tuple[int, str], list[tuple[Label, bool]]] = defaultdict(list)
    for item in statements:
        (film,) = films[item.film]
        time = item.labelled_at or datetime.min.replace(tzinfo=UTC)
        made = Label(film, item.finding, item.value, item.reader, item.source, time), item.labelled_at is not None
        labels.append(made)
        together[film, item.finding].append(made)
    if policy is None:
        return labels
    return [_together([item for item, _ in each], policy, reader, each[0][1]) for each in together.values()]


def _together(said: list[Label], policy: ReaderPolicy, reader: str, timed: bool) -> tuple[Label, bool]:
    newest: dict[str, Label] = {}
    for item in sorted(said, key=lambda item: item.labelled_at):
        newest[item.reader] = item
    value: LabelValue = settle(list(newest.values()), policy)
    last = max(newest.values(), key=lambda item: item.labelled_at)
    return replace(last, value=value, reader=reader), timed


def _timed(connection: Connection, labels: list[tuple[Label, bool]], now: datetime) -> list[Label]:
    """The labels with their times; one without that says what its reader says already is left out."""
    untimed = {item.instance_id for item, timed in labels if not timed}
    current: dict[tuple[int, str, str], tuple[str, str]] = {}
    if untimed:
        for known in current_labels(connection):
            if known.instance_id in untimed:
                current[known.instance_id, known.finding, known.reader] = (known.value, known.source)
    found = []
    for item, timed in labels:
        if timed:
            found.append(item)
        elif current.get((item.instance_id, item.finding, item.reader)) != (item.value, item.source):
            found.append(replace(item, labelled_at=now))
    return found


def _audit(database: Database, actor: str, action: str, path: Path, report: ImportReport) -> None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    detail = {"sha256": digest, "rows": report.rows, "labels": report.labels, "new": report.new}
    with database.write() as connection:
        connection.execute(insert(audit_event).values(actor=actor, action=action, subject="", detail=detail))
