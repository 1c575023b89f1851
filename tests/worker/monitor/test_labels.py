from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from stored_films import Films

from schema.database import Database
from schema.tables import LabelSource, LabelValue
from worker.errors import CarinaError
from worker.monitor.labels import (
    Label,
    ReaderPolicy,
    current_labels,
    label_history,
    labels_after,
    latest_label,
    record_labels,
    settle,
    settled_labels,
)

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
PRESENT, ABSENT, UNCERTAIN = LabelValue.PRESENT, LabelValue.ABSENT, LabelValue.UNCERTAIN


def said(
    value: LabelValue = PRESENT, film: int = 1, finding: str = "pneumonia", reader: str = "r1", hours: float = 0
) -> Label:
    return Label(film, finding, value, reader, LabelSource.CONSECUTIVE, NOON + timedelta(hours=hours))


def current(database: Database, up_to: int | None = None) -> list[Label]:
    with database.read() as connection:
        return list(current_labels(connection, up_to=up_to))


@pytest.fixture
def film(films: Films) -> int:
    return films.instance()


def test_a_correction_counts_and_the_former_label_stays(database: Database, film: int) -> None:
    first, second = said(PRESENT, film), said(ABSENT, film, hours=1)
    assert record_labels(database, [first]) == 1
    with database.read() as connection:
        before = latest_label(connection)
    assert record_labels(database, [second]) == 1
    assert current(database) == [second]
    assert current(database, up_to=before) == [first]
    with database.read() as connection:
        assert label_history(connection, film) == [first, second]
        assert (labels_after(connection, before), labels_after(connection, latest_label(connection))) == (1, 0)


def test_an_old_label_that_comes_late_changes_nothing(database: Database, film: int) -> None:
    newer, older = said(ABSENT, film, hours=5), said(PRESENT, film)
    record_labels(database, [newer])
    assert record_labels(database, [older]) == 1
    assert current(database) == [newer]


def test_of_equal_times_the_label_recorded_last_counts(database: Database, film: int) -> None:
    record_labels(database, [said(PRESENT, film)])
    record_labels(database, [said(ABSENT, film)])
    record_labels(database, [said(PRESENT, film)])
    assert current(database) == [said(PRESENT, film)]
    with database.read() as connection:
        assert [item.value for item in label_history(connection, film)] == [PRESENT, ABSENT, PRESENT]


def test_readers_findings_and_films_stand_apart(database: Database, films: Films) -> None:
    one, two = films.instance(), films.instance()
    rows = [
        said(PRESENT, one), said(ABSENT, one, reader="r2"), said(UNCERTAIN, one, "bronchitis"), said(ABSENT, two),
    ]  # fmt: skip
    assert record_labels(database, rows) == 4
    assert current(database) == rows


@pytest.mark.parametrize("order", list(permutations([said(PRESENT), said(ABSENT), said(ABSENT, hours=2)])))
def test_recording_the_same_again_adds_nothing(database: Database, films: Films, order: tuple[Label, ...]) -> None:
    rows = [replace(item, instance_id=films.instance()) for item in order]
    rows += [replace(item, instance_id=rows[0].instance_id) for item in order]
    added = record_labels(database, rows)
    before = current(database)
    elsewhere = timezone(timedelta(hours=7))
    moved = [replace(item, labelled_at=item.labelled_at.astimezone(elsewhere)) for item in rows]
    assert added > 0 and record_labels(database, moved) == 0
    assert current(database) == before


def test_another_source_is_another_label(database: Database, film: int) -> None:
    record_labels(database, [said(PRESENT, film)])
    changed = replace(said(PRESENT, film), source=LabelSource.DISAGREEMENT)
    assert record_labels(database, [changed]) == 1
    assert current(database) == [changed]


def test_the_documented_statement_makes_a_label(database: Database, film: int) -> None:
    text_of = (Path(__file__).resolve().parents[3] / "docs" / "rebuild.md").read_text("utf-8")
    statement = next(block for block in re.findall(r"```sql\n(.*?)```", text_of, re.S) if block.startswith("INSERT"))
    with database.write() as connection:
        assert connection.execute(text(statement)).rowcount == 1
    (label,) = current(database)
    assert (label.instance_id, label.finding, label.value, label.reader) == (film, "pneumonia", PRESENT, "reader-1")
    assert abs(label.labelled_at - datetime.now(UTC)) < timedelta(hours=1)


def test_no_labels_at_all(database: Database) -> None:
    assert record_labels(database, []) == 0
    assert current(database) == []
    with database.read() as connection:
        assert latest_label(connection) == 0


def test_what_cannot_be_a_label_is_refused(database: Database, film: int) -> None:
    with pytest.raises(CarinaError, match="did you mean 'pneumonia'"):
        record_labels(database, [said(film=film, finding="pneumonai")])
    for reader in ("", "x" * 65):
        with pytest.raises(CarinaError, match="1 to 64 characters"):
            record_labels(database, [said(film=film, reader=reader)])
    with pytest.raises(DBAPIError):
        record_labels(database, [said(film=film + 1)])
    assert current(database) == []


@pytest.mark.parametrize(
    ("values", "majority", "any_reader"),
    [
        ([PRESENT], PRESENT, PRESENT),
        ([ABSENT, ABSENT, PRESENT], ABSENT, PRESENT),
        ([PRESENT, PRESENT, ABSENT], PRESENT, PRESENT),
        ([PRESENT, ABSENT], UNCERTAIN, PRESENT),
        ([UNCERTAIN, UNCERTAIN, ABSENT], ABSENT, UNCERTAIN),
        ([UNCERTAIN], UNCERTAIN, UNCERTAIN),
        ([ABSENT, ABSENT], ABSENT, ABSENT),
    ],
)
def test_what_readers_say_together(values: list[LabelValue], majority: LabelValue, any_reader: LabelValue) -> None:
    labels = [said(value, reader=f"r{place}") for place, value in enumerate(values)]
    assert settle(labels, ReaderPolicy.MAJORITY) is majority
    assert settle(labels, ReaderPolicy.ANY) is any_reader
    assert settle(labels, ReaderPolicy.LATEST) is values[-1]
    assert settle([replace(labels[0], labelled_at=NOON + timedelta(1)), *labels[1:]], ReaderPolicy.LATEST) is values[0]


@given(st.lists(st.sampled_from(list(LabelValue)), min_size=1, max_size=7), st.randoms(use_true_random=False))
def test_the_readers_order_decides_nothing_but_who_was_last(values: list[LabelValue], random: object) -> None:
    labels = [said(value, reader=f"r{place}", hours=place) for place, value in enumerate(values)]
    shuffled = list(labels)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for policy in ReaderPolicy:
        assert settle(labels, policy) is settle(shuffled, policy)


def test_settled_by_film_and_finding() -> None:
    labels = [said(PRESENT, 1), said(PRESENT, 1, reader="r2"), said(ABSENT, 1, "bronchitis"), said(ABSENT, 2)]
    assert settled_labels(labels, ReaderPolicy.MAJORITY) == {
        1: {"pneumonia": PRESENT, "bronchitis": ABSENT},
        2: {"pneumonia": ABSENT},
    }
