"""What do readers say of a film's findings, and which of it counts?

Labels are only ever added. Of what one reader said of one finding on one film, the label with the latest
``labelled_at`` counts; of equal times the one recorded last. So a correction is a new label, an old file that is
imported late changes nothing, and what counted at any earlier moment can be asked for (``up_to``).

Where several readers saw a film, a policy says what they say together: see :func:`settle`.

Performance is told by the labels of films that nobody chose (:data:`HEADLINE_SOURCES`) alone. What a reader said of
such a film before it was looked at again, because a network disagreed, is what counts there: films would else be
corrected only where the network had said something else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from difflib import get_close_matches
from enum import StrEnum
from itertools import islice
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, func, insert, select

from schema.database import Database
from schema.findings import CHEXPERT_OBSERVATIONS, Finding
from schema.tables import LabelSource, LabelValue, instance, label
from worker.errors import CarinaError

#: What a label may be about.
FINDINGS: tuple[str, ...] = tuple(dict.fromkeys([*map(str, Finding), *CHEXPERT_OBSERVATIONS]))

#: Why a film may have been labelled for its label to tell how good a bundle is.
HEADLINE_SOURCES: frozenset[LabelSource] = frozenset({LabelSource.CONSECUTIVE, LabelSource.RANDOM})

READER_LENGTH = 64
_CHUNK = 500


class ReaderPolicy(StrEnum):
    """How several readers' labels become one: see :func:`settle`."""

    MAJORITY = "majority"
    ANY = "any"
    LATEST = "latest"


def reader_policy(name: str) -> ReaderPolicy:
    """The policy of the setting ``CARINA_READERS``; CarinaError if there is none of that name."""
    try:
        return ReaderPolicy(name)
    except ValueError:
        raise CarinaError(f"CARINA_READERS is {name!r}; set one of {', '.join(ReaderPolicy)}.") from None


@dataclass(frozen=True)
class Label:
    """What one reader said.

    Attributes
    ----------
    instance_id
        The film.
    finding
        A slug of :data:`FINDINGS`.
    reader
        A pseudonym of 1 to 64 characters.
    source
        Why the reader was shown this film.
    labelled_at
        When the reader said so, aware.
    """

    instance_id: int
    finding: str
    value: LabelValue
    reader: str
    source: LabelSource
    labelled_at: datetime


def record_labels(database: Database, labels: Iterable[Label]) -> int:
    """Add labels; returns how many were new.

    A label is not new when it says what was last recorded of its film, finding, reader and time, so the same
    labels may be recorded again. Of two that differ in value or source alone the later one in ``labels`` counts.

    Raises
    ------
    CarinaError
        An unknown finding or an unusable reader; nothing after the last whole portion of 500 was recorded.
    sqlalchemy.exc.IntegrityError
        There is no such film.
    """
    recorded = 0
    waiting = iter(labels)
    while portion := list(islice(waiting, _CHUNK)):
        with database.write() as connection:
            new = _new(connection, portion)
            if new:
                connection.execute(insert(label), new)
        recorded += len(new)
    return recorded


def count_new_labels(connection: Connection, labels: Iterable[Label]) -> int:
    """How many labels :func:`record_labels` would add; raises as it does where a finding or reader is unusable."""
    waiting = iter(labels)
    return sum(len(_new(connection, portion)) for portion in iter(lambda: list(islice(waiting, _CHUNK)), []))


def current_labels(
    connection: Connection, *, up_to: int | None = None, sources: Collection[LabelSource] | None = None
) -> Iterator[Label]:
    """The label that counts of each film, finding and reader, film by film.

    Parameters
    ----------
    up_to
        Only labels with an id up to this one: what counted when it was the newest (:func:`latest_label`).
    sources
        Only labels of these sources, as if there were no others; None: all.
    """
    for row in connection.execute(_current(up_to, sources)):
        yield _label(row)


def label_history(connection: Connection, instance_id: int) -> list[Label]:
    """Everything that was ever said of a film, in the order in which it was recorded."""
    return [
        _label(row)
        for row in connection.execute(select(label).where(label.c.instance_id == instance_id).order_by(label.c.id))
    ]


def latest_label(connection: Connection) -> int:
    """The id of the label recorded last; 0 if there is none."""
    return connection.scalar(select(func.max(label.c.id))) or 0


def labels_after(connection: Connection, label_id: int) -> int:
    """How many labels were recorded after ``label_id``."""
    return connection.scalar(select(func.count()).select_from(label).where(label.c.id > label_id)) or 0


def settle(labels: Sequence[Label], policy: ReaderPolicy) -> LabelValue:
    """What readers say together of one finding on one film.

    ``majority``: what more of those say who decided; a tie, or nobody who decided, is uncertain. ``any``: present if
    anybody says so, else uncertain if anybody does, else absent. ``latest``: what was said last, whoever said it;
    of labels of one time the last in ``labels``.

    Parameters
    ----------
    labels
        At least one, of different readers.
    """
    values = [item.value for item in labels]
    if policy is ReaderPolicy.LATEST:
        return max(enumerate(labels), key=lambda item: (item[1].labelled_at, item[0]))[1].value
    present, absent = values.count(LabelValue.PRESENT), values.count(LabelValue.ABSENT)
    if policy is ReaderPolicy.ANY:
        if present:
            return LabelValue.PRESENT
        return LabelValue.ABSENT if absent == len(values) else LabelValue.UNCERTAIN
    if present == absent:
        return LabelValue.UNCERTAIN
    return LabelValue.PRESENT if present > absent else LabelValue.ABSENT


def settled_labels(labels: Iterable[Label], policy: ReaderPolicy) -> dict[int, dict[str, LabelValue]]:
    """Film → finding → what its readers say together (:func:`settle`)."""
    said: dict[int, dict[str, list[Label]]] = defaultdict(lambda: defaultdict(list))
    for item in labels:
        said[item.instance_id][item.finding].append(item)
    return {
        film: {finding: settle(readers, policy) for finding, readers in findings.items()}
        for film, findings in said.items()
    }


def known_findings(
    connection: Connection,
    policy: ReaderPolicy,
    *,
    up_to: int | None = None,
    sources: Collection[LabelSource] | None = None,
) -> dict[int, dict[str, bool | None]]:
    """Film → finding → present, absent, or None where the readers are not sure.

    Labels of an alias, the same picture under another UID, count for the film; ``no_finding`` is taken back where
    another finding is present. ``up_to`` and ``sources`` as for :func:`current_labels`.
    """
    labels = current_labels(connection, up_to=up_to, sources=sources)
    originals = {row.id: row.alias_of for row in connection.execute(_ALIASES)}
    pooled = (replace(item, instance_id=originals.get(item.instance_id, item.instance_id)) for item in labels)
    found: dict[int, dict[str, bool | None]] = {}
    for film, said in settled_labels(pooled, policy).items():
        meant = {finding: _MEANING[value] for finding, value in said.items()}
        if any(present for finding, present in meant.items() if finding != Finding.NO_FINDING):
            meant[str(Finding.NO_FINDING)] = False
        found[film] = meant
    return found


_MEANING = {LabelValue.PRESENT: True, LabelValue.ABSENT: False, LabelValue.UNCERTAIN: None}
_ALIASES = select(instance.c.id, instance.c.alias_of).where(
    instance.c.alias_of.is_not(None), instance.c.id.in_(select(label.c.instance_id))
)

_Row = Mapping[str, Any] | RowMapping
_Key = tuple[int, str, str, datetime]


def _new(connection: Connection, labels: Iterable[Label]) -> list[dict[str, Any]]:
    rows = {_identity(row): row for row in map(_row, labels)}
    known = {_identity(row): row for row in _recorded(connection, {key[0] for key in rows})}
    return [row for key, row in rows.items() if not _says_the_same(row, known.get(key))]


def _identity(row: _Row) -> _Key:
    return row["instance_id"], row["finding"], row["reader"], row["labelled_at"]


def _says_the_same(row: _Row, known: _Row | None) -> bool:
    return known is not None and (row["value"], row["source"]) == (known["value"], known["source"])


def _row(item: Label) -> dict[str, Any]:
    if item.finding not in FINDINGS:
        near = get_close_matches(item.finding, FINDINGS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(FINDINGS)}."
        raise CarinaError(f"There is no finding {item.finding!r}; {hint}")
    if not 1 <= len(item.reader) <= READER_LENGTH:
        raise CarinaError(f"A reader needs a pseudonym of 1 to {READER_LENGTH} characters.")
    return {
        "instance_id": item.instance_id,
        "finding": item.finding,
        "value": str(LabelValue(item.value)),
        "reader": item.reader,
        "source": str(LabelSource(item.source)),
        "labelled_at": item.labelled_at,
    }


def _recorded(connection: Connection, films: set[int]) -> Iterable[RowMapping]:
    """All labels of these films, what was recorded last at the end."""
    return connection.execute(select(label).where(label.c.instance_id.in_(films)).order_by(label.c.id)).mappings()


def _current(up_to: int | None, sources: Collection[LabelSource] | None) -> Select[Any]:
    place = func.row_number().over(
        partition_by=(label.c.instance_id, label.c.finding, label.c.reader),
        order_by=(label.c.labelled_at.desc(), label.c.id.desc()),
    )
    ranked = select(label, place.label("place"))
    if up_to is not None:
        ranked = ranked.where(label.c.id <= up_to)
    if sources is not None:
        ranked = ranked.where(label.c.source.in_(sorted(str(source) for source in sources)))
    rows = ranked.subquery()
    return select(rows).where(rows.c.place == 1).order_by(rows.c.instance_id, rows.c.id)


def _label(row: Any) -> Label:
    return Label(
        row.instance_id, row.finding, LabelValue(row.value), row.reader, LabelSource(row.source), row.labelled_at
    )
