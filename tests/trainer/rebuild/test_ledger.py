"""One rebuild at a time, and what its row says; on SQLite and PostgreSQL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ledger_rows import add_bundle, register_films
from sqlalchemy import select, update

from schema import tables
from schema.database import Database
from schema.tables import LabelSource, LabelValue, RebuildState
from trainer.errors import RunError
from trainer.rebuild.ledger import Rebuild, RebuildLedger, last_finished, list_rebuilds, unfinished
from trainer.rebuild.place import TRAINER, Place, PlaceTakenError, trainers_place
from worker.monitor.labels import Label, record_labels
from worker.settings import Settings

MakeRequest = Any
ROOT = Path(__file__).resolve().parents[3]

#: Takes the trainer's place and holds it until it is killed.
_HOLDER = """
import sys
from pathlib import Path
from schema.database import Database
from trainer.rebuild.place import trainers_place
from worker.settings import Settings

with trainers_place(Database(sys.argv[1]), Settings(home=Path(sys.argv[2]))):
    print("holding", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(database: Database, home: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the trainer's place; killed at the end."""
    url = database.url.render_as_string(hide_password=False)
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, url, str(home)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stdout.readline() == "holding\n"
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def begin(database: Database, place: Place, request: Any, *, fresh: bool = False, champion_id: int = 1) -> Rebuild:
    return RebuildLedger(database, place).open(
        request, "films", lambda number: Path(f"/rebuilds/{number}"), champion_id=champion_id, fresh=fresh
    )


@pytest.fixture
def ledger(database: Database) -> Database:
    add_bundle(database, "champion")
    return database


def fall_silent(database: Database) -> None:
    """As if the trainer had given no sign of life for a year."""
    with database.write() as connection:
        connection.execute(update(tables.worker).values(seen_at=datetime(2020, 1, 1, tzinfo=UTC)))


@contextmanager
def taken_over(database: Database, settings: Settings) -> Iterator[Place]:
    """The place of one who falls silent, and may give a sign of life in the very moment."""
    with ExitStack() as stack:
        for attempt in range(20):
            fall_silent(database)
            try:
                place = stack.enter_context(trainers_place(database, settings))
            except PlaceTakenError:
                assert attempt < 19
                continue
            yield place
            return


class TestPlace:
    def test_a_second_one_on_this_machine_is_refused(self, ledger: Database, settings: Settings, ask: Any) -> None:
        with trainers_place(ledger, settings) as place:
            begin(ledger, place, ask())
            with pytest.raises(PlaceTakenError) as refusal, trainers_place(ledger, settings):
                pass
        for part in ("Rebuild 1 (tiny-findings, stage films) is running", f"process {os.getpid()}", "--list"):
            assert part in str(refusal.value)
        with trainers_place(ledger, settings):
            pass

    def test_a_second_one_elsewhere_is_refused_until_the_first_is_silent_for_a_lease(
        self, ledger: Database, settings: Settings, tmp_path: Path
    ) -> None:
        elsewhere = replace(settings, home=tmp_path / "elsewhere")
        with trainers_place(ledger, settings, on_lost=lambda: None):
            with pytest.raises(PlaceTakenError, match="last sign of life"), trainers_place(ledger, elsewhere):
                pass
            fall_silent(ledger)
            with trainers_place(ledger, elsewhere) as place:
                assert place.worker.name == TRAINER

    def test_a_killed_one_is_found_out_at_once(self, ledger: Database, settings: Settings) -> None:
        with holder(ledger, settings.home), pytest.raises(PlaceTakenError), trainers_place(ledger, settings):
            pass
        with trainers_place(ledger, settings) as place:
            assert not place.lost.is_set()

    def test_signs_of_life_are_given(self, ledger: Database, settings: Settings) -> None:
        query = select(tables.worker.c.seen_at > tables.worker.c.started_at).where(tables.worker.c.name == TRAINER)
        with trainers_place(ledger, replace(settings, lease_seconds=0.1)):
            given = threading.Event()
            for _ in range(600):
                with ledger.read() as connection:
                    if connection.scalar(query):
                        given.set()
                        break
                given.wait(0.05)
        assert given.is_set()

    def test_who_lost_the_place_is_told_and_writes_nothing(
        self, ledger: Database, settings: Settings, tmp_path: Path, ask: Any
    ) -> None:
        lost = threading.Event()
        quick = replace(settings, lease_seconds=1.0)
        elsewhere = replace(settings, home=tmp_path / "elsewhere")
        with trainers_place(ledger, quick, on_lost=lost.set) as first:
            row = begin(ledger, first, ask())
            with taken_over(ledger, elsewhere) as second:
                assert lost.wait(30) and first.lost.is_set()
                for write in (
                    lambda: RebuildLedger(ledger, first).advance(row, "training", {}),
                    lambda: RebuildLedger(ledger, first).fail(row, "why"),
                ):
                    with pytest.raises(RunError, match="has taken this rebuild over"):
                        write()
                assert RebuildLedger(ledger, second).advance(begin(ledger, second, ask()), "training", {})
        assert list_rebuilds(ledger)[0].stage == "training"

    def test_an_interrupt_after_the_place_was_lost_says_so(self, ledger: Database, settings: Settings) -> None:
        with pytest.raises(RunError, match="taken it over"), trainers_place(ledger, settings) as place:
            place.lost.set()
            raise KeyboardInterrupt
        with pytest.raises(KeyboardInterrupt), trainers_place(ledger, settings):
            raise KeyboardInterrupt


class TestRows:
    def test_from_beginning_to_end(self, ledger: Database, settings: Settings, ask: Any) -> None:
        made = add_bundle(ledger, "made", "7")
        with trainers_place(ledger, settings) as place:
            rows = RebuildLedger(ledger, place)
            row = begin(ledger, place, ask())
            assert unfinished(ledger, ask()) == row
            row = rows.advance(row, "training", {"films": 3})
            row = rows.advance(row, "packaging", {"epochs": 2})
            assert list_rebuilds(ledger) == [row]
            rows.finish(row, made, "made:7 is the candidate.", {})
        (row,) = list_rebuilds(ledger)
        assert (row.state, row.bundle, row.champion, row.outcome) == (
            RebuildState.FINISHED, "made:7", "champion:1", "made:7 is the candidate.",
        )  # fmt: skip
        assert row.results == {"films": 3, "epochs": 2}
        assert row.finished_at is not None and row.finished_at >= row.started_at
        assert unfinished(ledger, ask()) is None
        assert last_finished(ledger, "tiny-findings") == row
        assert last_finished(ledger, "other") is None

    def test_the_same_request_goes_on_with_what_died(self, ledger: Database, settings: Settings, ask: Any) -> None:
        with trainers_place(ledger, settings) as place:
            row = RebuildLedger(ledger, place).advance(begin(ledger, place, ask()), "training", {"films": 3})
        with trainers_place(ledger, settings) as place:
            again = begin(ledger, place, ask())
        assert (again.id, again.stage, again.results, again.starts) == (row.id, "training", {"films": 3}, 2)

    def test_the_same_request_goes_on_with_what_failed(self, ledger: Database, settings: Settings, ask: Any) -> None:
        with trainers_place(ledger, settings) as place:
            rows = RebuildLedger(ledger, place)
            rows.fail(rows.advance(begin(ledger, place, ask()), "engines", {}), "no precision passes")
            failed = list_rebuilds(ledger)[0]
            assert (failed.state, failed.outcome) == (RebuildState.FAILED, "no precision passes")
            again = begin(ledger, place, ask())
        assert (again.id, again.state, again.stage, again.outcome) == (failed.id, RebuildState.RUNNING, "engines", "")
        assert again.finished_at is None

    @pytest.mark.parametrize("failed", [True, False], ids=["failed", "died"])
    def test_what_failed_in_its_first_stage_sees_what_was_mended_since(
        self, ledger: Database, settings: Settings, ask: Any, failed: bool
    ) -> None:
        request = ask(from_database=True)
        register_films(ledger, ["film"])
        with trainers_place(ledger, settings) as place:
            first = begin(ledger, place, request)
            if failed:
                RebuildLedger(ledger, place).fail(first, "there are no labels")
            said = (LabelValue.PRESENT, "reader", LabelSource.RANDOM)
            record_labels(ledger, [Label(1, "pneumonia", *said, datetime(2026, 3, 1, tzinfo=UTC))])
            add_bundle(ledger, "promoted")
            again = begin(ledger, place, request, champion_id=2)
        assert (first.champion, first.last_label_id, again.id) == ("champion:1", 0, first.id)
        assert (again.champion, again.last_label_id) == (("promoted:1", 1) if failed else ("champion:1", 0))

    @pytest.mark.parametrize("changes", [{"int8": True}, {}], ids=["another request", "fresh"])
    def test_what_is_not_gone_on_with_is_given_up(
        self, ledger: Database, settings: Settings, ask: Any, changes: dict[str, Any]
    ) -> None:
        with trainers_place(ledger, settings) as place:
            first = begin(ledger, place, ask())
            second = begin(ledger, place, ask(**changes), fresh=not changes)
        assert [(row.id, row.state) for row in list_rebuilds(ledger)] == [
            (second.id, RebuildState.RUNNING), (first.id, RebuildState.FAILED),
        ]  # fmt: skip
        assert second.folder == Path(f"/rebuilds/{second.id}")

    def test_a_finished_one_is_followed_by_a_new_one(self, ledger: Database, settings: Settings, ask: Any) -> None:
        with trainers_place(ledger, settings) as place:
            rows = RebuildLedger(ledger, place)
            rows.finish(begin(ledger, place, ask()), 1, "done", {})
            assert begin(ledger, place, ask()).id == 2
