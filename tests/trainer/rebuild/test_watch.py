"""Rebuilding on a schedule: when, when not, and what is said."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select, update
from stored_films import Films

from schema import tables
from schema.database import Database
from schema.tables import LabelSource, LabelValue, RebuildState
from schema.types import database_now
from trainer.errors import DataError
from trainer.rebuild import watch as watching
from trainer.rebuild.ledger import list_rebuilds
from trainer.rebuild.place import trainers_place
from trainer.rebuild.watch import MOST_STARTS, Schedule, Watcher
from trainer.training.progress import TrainingProgress
from worker.monitor.labels import Label, record_labels
from worker.queue.duties import Duty
from worker.settings import Settings

MakeRequest = Any
WEEK = 7 * 86_400.0


class Told(TrainingProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class Night:
    """A watcher whose rebuilds take no time; ``trouble`` is what the next one meets."""

    def __init__(self, settings: Settings, ask: MakeRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        self.database = Database(settings.url)
        self.database.upgrade()
        self.films = Films(self.database)
        self.film = self.films.instance()
        self.told = Told()
        self.trouble: BaseException | None = None
        request = ask(data="", from_database=True)
        self.watcher = Watcher(settings, request, Schedule(WEEK, 3), self.told)
        monkeypatch.setattr(watching, "carry_out", self.carry_out)
        monkeypatch.setattr("trainer.rebuild.run.champion", lambda *_: self)
        self.id = self.films.bundle
        self.labelled = 0

    def carry_out(self, database: Any, settings: Any, ledger: Any, row: Any, request: Any, **_: Any) -> None:
        if self.trouble is not None:
            trouble, self.trouble = self.trouble, None
            if isinstance(trouble, DataError):
                ledger.fail(row, str(trouble))
            raise trouble
        ledger.finish(row, self.films.bundle, "done", {})

    def label(self, count: int) -> None:
        for _ in range(count):
            self.labelled += 1
            said = (LabelValue.PRESENT, f"reader {self.labelled}", LabelSource.RANDOM)
            record_labels(self.database, [Label(self.film, "pneumonia", *said, datetime(2026, 3, 1, tzinfo=UTC))])

    def a_week_later(self) -> None:
        with self.database.write() as connection:
            connection.execute(update(tables.duty).values(due_at=database_now(-1)))

    @property
    def duty(self) -> Any:
        with self.database.read() as connection:
            return connection.execute(select(tables.duty)).one()

    @property
    def states(self) -> list[RebuildState]:
        return [row.state for row in reversed(list_rebuilds(self.database))]


@pytest.fixture
def night(settings: Settings, ask: MakeRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    made = Night(settings, ask, monkeypatch)
    yield made
    made.database.close()


def test_too_few_labels_are_said_and_remembered(night: Night) -> None:
    night.label(2)
    night.watcher.look()
    assert night.states == []
    assert night.duty.name == "rebuild tiny-findings"
    assert night.duty.outcome == "no rebuild: 2 new labels and no rebuild yet, 3 are needed"
    assert night.told.lines == ["No rebuild: 2 new labels and no rebuild yet, 3 are needed."]


def test_enough_labels_begin_one_when_it_is_due(night: Night) -> None:
    night.label(3)
    night.watcher.look()
    assert night.states == [RebuildState.FINISHED]
    assert night.duty.outcome == "rebuild 1 begun: 3 new labels and no rebuild yet"
    night.label(3)
    night.watcher.look()
    assert night.states == [RebuildState.FINISHED], "it is not due before a week has passed"
    night.a_week_later()
    night.watcher.look()
    assert night.states == [RebuildState.FINISHED] * 2
    night.a_week_later()
    night.label(1)
    night.watcher.look()
    assert "no rebuild: 1 new labels since rebuild 2 of " in night.duty.outcome


def test_nothing_is_written_while_nothing_is_due(night: Night) -> None:
    night.watcher.look()
    with night.database.read() as connection:
        before = connection.execute(select(tables.worker).order_by(tables.worker.c.id)).all()
    night.watcher.look()
    with night.database.read() as connection:
        assert connection.execute(select(tables.worker).order_by(tables.worker.c.id)).all() == before


def test_one_that_died_is_gone_on_with_at_once(night: Night) -> None:
    night.label(3)
    night.trouble = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        night.watcher.look()
    assert night.states == [RebuildState.RUNNING]
    night.watcher.look()
    assert night.states == [RebuildState.FINISHED]


def test_one_that_failed_is_begun_anew_when_it_is_due(night: Night) -> None:
    night.label(3)
    night.trouble = DataError("a film is unreadable")
    night.watcher.look()
    night.watcher.look()
    assert night.states == [RebuildState.FAILED]
    night.a_week_later()
    night.watcher.look()
    assert night.states == [RebuildState.FAILED, RebuildState.FINISHED], "its labels are still new"


def test_one_that_kills_every_process_is_given_up(night: Night) -> None:
    night.label(3)
    for _ in range(MOST_STARTS):
        night.trouble = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            night.watcher.look()
    night.watcher.look()
    assert night.states == [RebuildState.FAILED]
    assert f"{MOST_STARTS} processes died over stage films" in list_rebuilds(night.database)[0].outcome


def test_another_rebuild_is_waited_for(night: Night, settings: Settings) -> None:
    night.label(3)
    with trainers_place(night.database, settings):
        night.watcher.look()
        assert night.states == []
    assert "One runs at a time" in night.told.lines[0]
    night.watcher.look()
    assert night.states == [RebuildState.FINISHED]


def test_a_duty_that_somebody_holds_is_left_alone(night: Night) -> None:
    night.label(3)
    watching.ensure_duties(night.database, [Duty(night.watcher.duty_name, WEEK, lambda _: "")])
    with night.database.write() as connection:
        connection.execute(update(tables.duty).values(claimed_until=database_now(60)))
    night.watcher.look()
    assert night.states == []


def test_it_looks_until_it_is_told_to_stop_and_a_database_that_is_away_is_no_reason(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.exc import OperationalError

    looks = []

    def look() -> None:
        looks.append(1)
        if len(looks) < 3:
            raise OperationalError("", {}, Exception("no answer"))

    monkeypatch.setattr(night.watcher, "look", look)
    night.watcher.run(lambda: len(looks) == 4)
    assert len(looks) == 4
    assert [line for line in night.told.lines if "does not answer" in line] == [
        "The database does not answer (OperationalError): trying until it does."
    ]
