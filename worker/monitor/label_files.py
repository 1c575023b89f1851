"""What does a file of labels say, line by line?

A table in CSV (separated by commas, semicolons or tabs) or Parquet with a header. Names of columns are compared
without case, spaces and punctuation: ``No Finding`` is ``no_finding``. Two shapes:

wide
    A row per film, or per film and reader, with a column per finding.
long
    A row per film, finding and reader: the columns ``finding`` and ``value``.

A :class:`Convention` says what a data set does its own way. Nothing is looked up here: whether there are such films is
asked in :mod:`worker.monitor.label_import`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path

from schema.findings import Finding
from schema.tables import LabelSource, LabelValue
from worker.errors import CarinaError
from worker.monitor.label_tables import read_table
from worker.monitor.labels import FINDINGS, READER_LENGTH


class FilmName(StrEnum):
    """What a file calls films by, as an error names it."""

    SOP = "SOP Instance UID"
    KEY = "instance key"
    ACCESSION = "accession number"
    FILE = "file name"


#: Column → what stands in it; of several the first one counts.
FILM_COLUMNS: Mapping[str, FilmName] = {
    "sop_instance_uid": FilmName.SOP,
    "sopinstanceuid": FilmName.SOP,
    "instance_key": FilmName.KEY,
    "accession_number": FilmName.ACCESSION,
    "accessionnumber": FilmName.ACCESSION,
    "file_name": FilmName.FILE,
    "image_id": FilmName.FILE,
}
READER_COLUMNS = ("reader", "rad_id")
TIME_COLUMNS = ("labelled_at", "time")
SOURCE_COLUMNS = ("source",)
FINDING_COLUMNS = ("finding", "class_name")
VALUE_COLUMNS = ("value",)

VALUES: Mapping[str, LabelValue] = {
    **dict.fromkeys(("1", "1.0", "present", "positive", "yes", "true"), LabelValue.PRESENT),
    **dict.fromkeys(("0", "0.0", "absent", "negative", "no", "false"), LabelValue.ABSENT),
    **dict.fromkeys(("-1", "-1.0", "uncertain"), LabelValue.UNCERTAIN),
}


@dataclass(frozen=True)
class Convention:
    """What a data set does its own way.

    Attributes
    ----------
    blank
        What an empty cell of a finding says; None: nothing.
    names
        Its names of findings, as compared, where they differ from ours.
    others
        Whether findings that we do not know are counted; else they are errors.
    marked
        Findings that a second table tells by a row for each place where one is seen: see ``marks`` of
        :func:`read_labels`.
    """

    blank: LabelValue | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    others: bool = False
    marked: tuple[str, ...] = ()


#: ``plain``: a cell says what it says. ``vindr``: VinDr-PCXR (Pham et al. 2022), its misspelling too.
#: ``chexpert``: Irvin et al. 2019: -1 is uncertain, and what a report does not mention is absent.
CONVENTIONS: Mapping[str, Convention] = {
    "plain": Convention(),
    "vindr": Convention(
        names={"brocho_pneumonia": str(Finding.BRONCHOPNEUMONIA)},
        others=True,
        marked=(
            str(Finding.RETICULONODULAR_OPACITY),
            str(Finding.PERIBRONCHOVASCULAR_INTERSTITIAL_OPACITY),
            str(Finding.OTHER_OPACITY),
            str(Finding.BRONCHIAL_THICKENING),
        ),
    ),
    "chexpert": Convention(blank=LabelValue.ABSENT),
}


@dataclass(frozen=True, order=True)
class Problem:
    """What is wrong with a line of the file; the header is line 1. Names no film."""

    line: int
    what: str


@dataclass(frozen=True)
class Statement:
    """What a line says of one finding; ``labelled_at`` is None where the file does not tell when."""

    line: int
    film: str
    finding: str
    value: LabelValue
    reader: str
    source: LabelSource
    labelled_at: datetime | None


@dataclass
class LabelFile:
    """Everything that a file says.

    Attributes
    ----------
    rows
        Rows below the header.
    blank, others
        Cells that say nothing, and rows about findings that we do not know.
    ignored
        Columns that nothing was taken from, as written.
    """

    named_by: FilmName
    statements: list[Statement] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    rows: int = 0
    blank: int = 0
    others: int = 0
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Defaults:
    """What holds where the file has no column for it; None: the file must have one."""

    reader: str | None = None
    source: LabelSource | None = None
    labelled_at: datetime | None = None


def read_labels(
    path: Path, convention: Convention, defaults: Defaults, *, now: datetime, marks: Path | None = None
) -> LabelFile:
    """Read a file of labels.

    Parameters
    ----------
    now
        Labels from later than a day after it are errors.
    marks
        A second table with a row for each place where a finding of ``convention.marked`` is seen. A film that its
        reader has in ``path`` and not in ``marks`` does not have the finding.

    Raises
    ------
    CarinaError
        The file cannot be read, or has no column for what every label needs.
    """
    header, rows = read_table(path)
    columns = _Columns.of(header, convention, defaults)
    reading = _Reading(columns, convention, defaults, now)
    for line, cells in rows:
        reading.take(line, cells)
    if marks is not None:
        reading.take_marks(marks)
    return reading.found


@dataclass(frozen=True)
class _Columns:
    """Which cell of a row says what; None where none does."""

    count: int
    film: int
    named_by: FilmName
    reader: int | None
    time: int | None
    source: int | None
    finding: int | None
    value: int | None
    findings: Mapping[int, str]
    ignored: tuple[str, ...]
    problems: tuple[Problem, ...] = ()

    @staticmethod
    def of(header: list[str], convention: Convention, defaults: Defaults) -> _Columns:
        names = [_plain(name) for name in header]

        def find(known: Iterable[str]) -> int | None:
            return next((names.index(name) for name in known if name in names), None)

        film = find(FILM_COLUMNS)
        if film is None:
            raise CarinaError(f"The file has no column that names films: it needs one of {', '.join(FILM_COLUMNS)}.")
        reader, source = find(READER_COLUMNS), find(SOURCE_COLUMNS)
        if reader is None and defaults.reader is None:
            raise CarinaError("The file does not say who labelled the films: give --reader, or a column reader.")
        if source is None and defaults.source is None:
            raise CarinaError(
                "The file does not say why these films were labelled: give --source, or a column source. "
                f"One of {', '.join(LabelSource)}."
            )
        finding, value, time = find(FINDING_COLUMNS), find(VALUE_COLUMNS), find(TIME_COLUMNS)
        findings = {} if finding is not None else _finding_columns(names, convention)
        if finding is not None and value is None:
            raise CarinaError("The file has a column finding and none called value: each row must say which it is.")
        if finding is None and not findings:
            raise CarinaError(
                f"The file has no column of a finding, nor one called finding. Findings are {', '.join(FINDINGS)}."
            )
        used = {film, reader, source, time, finding, value if finding is not None else None, *findings}
        unused = [place for place in range(len(header)) if place not in used]
        problems = [] if finding is not None else [_misspelt(header[place], names[place]) for place in unused]
        return _Columns(
            len(header), film, FILM_COLUMNS[names[film]], reader, time, source, finding, value, findings,
            tuple(header[place] for place in unused), tuple(problem for problem in problems if problem),
        )  # fmt: skip


def _finding_columns(names: list[str], convention: Convention) -> dict[int, str]:
    known = {place: convention.names.get(name, name) for place, name in enumerate(names)}
    found = {place: name for place, name in known.items() if name in FINDINGS}
    twice = sorted({name for name in found.values() if list(found.values()).count(name) > 1})
    if twice:
        raise CarinaError(f"The file has more than one column of {', '.join(twice)}.")
    return found


def _misspelt(written: str, name: str) -> Problem | None:
    near = get_close_matches(name, FINDINGS, 1, cutoff=0.85)
    return Problem(1, f"column {written!r} is no finding; did you mean {near[0]!r}?") if near else None


class _Reading:
    """Takes rows; ``found`` is what they say."""

    def __init__(self, columns: _Columns, convention: Convention, defaults: Defaults, now: datetime) -> None:
        self._columns, self._convention, self._defaults, self._now = columns, convention, defaults, now
        # (film, reader) → the last row about them, for the marks.
        self._seen: dict[tuple[str, str], Statement] = {}
        self.found = LabelFile(columns.named_by, ignored=columns.ignored, problems=list(columns.problems))

    def take(self, line: int, cells: list[str]) -> None:
        """Take a row of the table."""
        self.found.rows += 1
        try:
            self._take(line, cells)
        except ValueError as error:
            self._complain(line, str(error))

    def _take(self, line: int, cells: list[str]) -> None:
        columns, defaults = self._columns, self._defaults
        if len(cells) != columns.count:
            raise ValueError(f"{len(cells)} cells where the header has {columns.count}")
        film = cells[columns.film]
        if not film:
            raise ValueError(f"the {columns.named_by} is empty")
        row = Statement(
            line=line,
            film=film,
            finding="",
            value=LabelValue.ABSENT,
            reader=_reader(_cell(cells, columns.reader) or defaults.reader or ""),
            source=_source(_cell(cells, columns.source), defaults),
            labelled_at=_time(_cell(cells, columns.time), self._now) or defaults.labelled_at,
        )
        said = [(name, _value(name, cell, self._convention)) for name, cell in self._pairs(cells)]
        for name, value in said:
            if value is None:
                self.found.blank += 1
            else:
                self.found.statements.append(replace(row, finding=name, value=value))
        self._seen[film, row.reader] = row

    def _pairs(self, cells: list[str]) -> list[tuple[str, str]]:
        """Finding and what is said of it."""
        columns = self._columns
        if columns.finding is None:
            return [(name, cells[place]) for place, name in columns.findings.items()]
        name = _plain(cells[columns.finding])
        name = self._convention.names.get(name, name)
        if name in FINDINGS:
            return [(name, _cell(cells, columns.value))]
        if not self._convention.others:
            near = get_close_matches(name, FINDINGS, 1)
            raise ValueError(f"unknown finding{f'; did you mean {near[0]!r}?' if near else ''}")
        self.found.others += 1
        return []

    def take_marks(self, path: Path) -> None:
        """Take the table of marks: what it does not name is absent from the films of the rows taken."""
        header, rows = read_table(path)
        names = [_plain(name) for name in header]
        film = next((place for place, name in enumerate(names) if FILM_COLUMNS.get(name) is self._columns.named_by), -1)
        reader = next((names.index(name) for name in READER_COLUMNS if name in names), None)
        finding = next((names.index(name) for name in FINDING_COLUMNS if name in names), -1)
        if min(film, finding) < 0 or (reader is None and self._defaults.reader is None):
            raise CarinaError("The table of marks must name film, reader and finding: image_id, rad_id, class_name.")
        present: set[tuple[str, str, str]] = set()
        for line, cells in rows:
            if len(cells) != len(header):
                self._complain(line, f"of the marks: {len(cells)} cells where the header has {len(header)}")
                continue
            name, whose = _plain(cells[finding]), _cell(cells, reader) or self._defaults.reader or ""
            if name not in self._convention.marked:
                self.found.others += 1
            elif (cells[film], whose) not in self._seen:
                self._complain(line, "of the marks: the labels have no row of this film and reader")
            else:
                present.add((cells[film], whose, name))
        for (what, who), row in self._seen.items():
            for name in self._convention.marked:
                value = LabelValue.PRESENT if (what, who, name) in present else LabelValue.ABSENT
                self.found.statements.append(replace(row, finding=name, value=value))

    def _complain(self, line: int, what: str) -> None:
        self.found.problems.append(Problem(line, what))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _cell(cells: list[str], place: int | None) -> str:
    return "" if place is None else cells[place]


def _reader(name: str) -> str:
    if not 1 <= len(name) <= READER_LENGTH or "\0" in name:
        raise ValueError(f"a reader needs a pseudonym of 1 to {READER_LENGTH} characters")
    return name


def _source(cell: str, defaults: Defaults) -> LabelSource:
    if not cell and defaults.source is not None:
        return defaults.source
    try:
        return LabelSource(cell.lower())
    except ValueError:
        raise ValueError(f"the source is none of {', '.join(LabelSource)}") from None


def _time(cell: str, now: datetime) -> datetime | None:
    if not cell:
        return None
    try:
        time = datetime.fromisoformat(cell)
    except ValueError:
        raise ValueError("the time is not written as 2026-03-01T07:30:00+00:00") from None
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    if time > now + timedelta(days=1):
        raise ValueError("the time lies in the future")
    return time


def _value(finding: str, cell: str, convention: Convention) -> LabelValue | None:
    if not cell or cell.lower() == "nan":
        return convention.blank
    if cell.lower() not in VALUES:
        raise ValueError(f"{finding} is neither 1, 0, -1 nor empty")
    return VALUES[cell.lower()]
