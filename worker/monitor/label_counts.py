"""What labels are there, and what was ever said of a film?"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, func, select

from schema.keys import uid_key
from schema.tables import instance, label, label_map
from schema.view_tables import published_result
from worker.errors import CarinaError
from worker.monitor.labels import (
    HEADLINE_SOURCES,
    Label,
    ReaderPolicy,
    current_labels,
    known_findings,
    label_history,
)


@dataclass(frozen=True)
class FindingCount:
    """Films by what their readers say together of a finding.

    ``counting`` are those with the finding present or absent by the labels of films that nobody chose.
    """

    finding: str
    present: int
    absent: int
    uncertain: int
    counting: int

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True)
class LabelCounts:
    """All labels that count.

    Attributes
    ----------
    films, read
        Films with a label, and those of them that have a published result.
    readers, sources
        Reader or source → labels that count.
    maps
        Label maps, corrected ones counted again.
    """

    films: int
    read: int
    maps: int
    readers: dict[str, int]
    sources: dict[str, int]
    findings: tuple[FindingCount, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "findings": [each.to_json() for each in self.findings]}


def count_labels(connection: Connection, policy: ReaderPolicy) -> LabelCounts:
    """Count the labels that count now."""
    readers: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    for item in current_labels(connection):
        readers[item.reader] += 1
        sources[str(item.source)] += 1
    every = known_findings(connection, policy)
    headline = known_findings(connection, policy, sources=HEADLINE_SOURCES)
    names = sorted({name for said in every.values() for name in said})
    findings = []
    for name in names:
        values = Counter(said[name] for said in every.values() if name in said)
        counting = sum(1 for said in headline.values() if said.get(name) is not None)
        findings.append(FindingCount(name, values[True], values[False], values[None], counting))
    labelled = select(func.coalesce(instance.c.alias_of, instance.c.id)).join(
        label, label.c.instance_id == instance.c.id
    )
    read = connection.scalar(
        select(func.count()).select_from(published_result).where(published_result.c.instance_id.in_(labelled))
    )
    maps = connection.scalar(select(func.count()).select_from(label_map))
    return LabelCounts(len(every), read or 0, maps or 0, dict(readers), dict(sources), tuple(findings))


def labels_of(connection: Connection, site_key: bytes, name: str) -> list[Label]:
    """All that was said of a film, by its SOP Instance UID or its instance key, in the order of recording.

    Raises
    ------
    CarinaError
        There is no such film.
    """
    keys = (name.lower(), uid_key(site_key, name))
    film = connection.scalar(select(instance.c.id).where(instance.c.key.in_(keys)))
    if film is None:
        raise CarinaError("No film of this SOP Instance UID or instance key is known here.")
    return label_history(connection, film)
