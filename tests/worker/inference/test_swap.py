"""Another bundle takes over between two batches, or the old one goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ledger_rows import add_bundle, fresh_database, register_films, settings_for
from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import OperationalError

from schema import tables
from schema.bundle import BundleError
from schema.database import Database
from worker.errors import FilmError
from worker.inference.swap import FIRST_REST_SECONDS, LONGEST_REST_SECONDS, Opened, SwappingEngines
from worker.queue.outcomes import ClaimedJob, Outcome
from worker.queue.workers import WorkerIdentity, register_worker

WAIT = 60.0


@dataclass
class Reader:
    bundle_id: int
    closed: int = 0

    def process(self, jobs: Sequence[ClaimedJob], progress: Callable[[], None]) -> list[Outcome]:
        raise AssertionError("nothing is read here")


@dataclass
class Bench:
    """A database, the engines of a worker on it, and every bundle that was opened."""

    database: Database
    worker: WorkerIdentity
    first: int
    engines: SwappingEngines = field(init=False)
    opened: list[Reader] = field(default_factory=list)
    tries: list[int] = field(default_factory=list)
    faults: dict[int, Exception] = field(default_factory=dict)
    meanwhile: Callable[[], None] = field(default=lambda: None)
    now: float = 0.0

    def start(self, **options: bool) -> None:
        self.engines = SwappingEngines(
            self.database, self.open(self.first), self.open, worker=self.worker, clock=lambda: self.now, **options
        )
        self.tries.clear()

    def open(self, bundle_id: int) -> Opened:
        self.tries.append(bundle_id)
        self.meanwhile()
        if bundle_id in self.faults:
            raise self.faults[bundle_id]
        reader = Reader(bundle_id)
        self.opened.append(reader)

        def close() -> None:
            reader.closed += 1

        return Opened(f"bundle:{bundle_id}", "a device", reader, close)

    def serving(self) -> int:
        with self.engines.hold() as processor:
            return processor.bundle_id

    def trial(self) -> int | None:
        with self.engines.hold_shadow() as processor:
            return None if processor is None else processor.bundle_id

    def closed(self) -> list[int]:
        assert all(reader.closed <= 1 for reader in self.opened)
        return [reader.bundle_id for reader in self.opened if reader.closed]

    def promote(self, bundle_id: int) -> None:
        with self.database.write() as connection:
            connection.execute(tables.bundle_alias.delete())
            connection.execute(insert(tables.bundle_alias).values(alias="champion", bundle_id=bundle_id))

    def shadow(self, bundle_id: int, state: str = "ready") -> None:
        with self.database.write() as connection:
            connection.execute(tables.job.delete().where(tables.job.c.kind == "shadow"))
            values = {"instance_id": 1, "kind": "shadow", "priority": 20, "published": False, "bundle_id": bundle_id}
            connection.execute(insert(tables.job).values(state=state, **values))

    def row(self) -> int | None:
        with self.database.read() as connection:
            return connection.scalar(select(tables.worker.c.bundle_id))

    def refusals(self) -> list[tuple[str, str, str]]:
        with self.database.read() as connection:
            rows = connection.execute(select(tables.audit_event).order_by(tables.audit_event.c.id)).all()
        return [(row.actor, row.subject, row.detail["reason"]) for row in rows if row.action == "bundle refused"]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    database = fresh_database(tmp_path)
    ids = [add_bundle(database, "bundle", str(number)) for number in (1, 2, 3)]
    assert ids == [1, 2, 3]
    register_films(database, ["a"])
    worker = register_worker(database, settings_for(tmp_path), "w1", bundle_id=1)
    bench = Bench(database, worker, 1)
    bench.start()
    bench.promote(1)
    yield bench
    bench.engines.close()
    worker.release_name()
    database.close()


def test_nothing_happens_while_the_champion_stays(bench: Bench) -> None:
    bench.engines.look()
    assert (bench.serving(), bench.tries, bench.closed(), bench.row()) == (1, [], [], 1)


def test_a_promoted_bundle_serves_the_next_batch_and_the_old_one_finishes_its_own(bench: Bench) -> None:
    with bench.engines.hold() as first, bench.engines.hold() as second:
        bench.promote(2)
        bench.engines.look()
        assert (first.bundle_id, second.bundle_id) == (1, 1)
        assert (bench.serving(), bench.row(), bench.engines.serving) == (2, 2, "bundle:2")
        assert bench.closed() == []
    assert bench.closed() == [1]
    # Back again: the same way.
    bench.promote(1)
    bench.engines.look()
    assert (bench.serving(), bench.row(), bench.closed()) == (1, 1, [1, 2])


def test_batches_go_on_while_the_other_bundle_is_loaded(bench: Bench) -> None:
    loading, loaded = threading.Event(), threading.Event()

    def slow() -> None:
        loading.set()
        assert loaded.wait(WAIT)

    bench.meanwhile = slow
    bench.promote(2)
    thread = threading.Thread(target=bench.engines.look)
    thread.start()
    assert loading.wait(WAIT)
    assert (bench.serving(), bench.row()) == (1, 1)
    loaded.set()
    thread.join(WAIT)
    assert (bench.serving(), bench.row()) == (2, 2)


def test_rolled_back_while_it_was_loaded_it_never_serves(bench: Bench) -> None:
    bench.promote(2)
    bench.meanwhile = lambda: bench.promote(1)
    bench.engines.look()
    assert (bench.serving(), bench.row(), bench.closed()) == (1, 1, [2])


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            BundleError("Bundle bundle:2: regions.onnx is not the file."),
            "Bundle bundle:2: regions.onnx is not the file.",
        ),
        (FilmError("BUNDLE_MISSING", "bundle:2"), "This machine lacks the files of the bundle: bundle:2."),
        (MemoryError(), "Loading it failed: MemoryError."),
        (RuntimeError("Doe^John"), "Loading it failed: RuntimeError."),
    ],
    ids=["damaged", "missing", "memory", "fault"],
)
def test_a_bundle_that_cannot_be_loaded_leaves_the_old_one_serving(
    bench: Bench, caplog: pytest.LogCaptureFixture, fault: Exception, words: str
) -> None:
    bench.faults[2] = fault
    bench.promote(2)
    for _ in range(5):
        bench.engines.look()
    assert (bench.serving(), bench.row(), bench.tries, bench.closed()) == (1, 1, [2], [])
    assert bench.refusals() == [("w1", "bundle:2", words)]
    assert words in caplog.text and "bundle:1 goes on" in caplog.text and "Doe" not in caplog.text
    # The files came: it serves in time.
    del bench.faults[2]
    bench.now += FIRST_REST_SECONDS
    bench.engines.look()
    assert (bench.serving(), bench.row()) == (2, 2)


def test_it_is_tried_less_and_less_often_and_said_once_for_each_reason(bench: Bench) -> None:
    bench.faults[2] = BundleError("one")
    bench.promote(2)
    for _ in range(240):
        bench.engines.look()
        bench.now += 60.0
        if bench.now == 3600.0:
            bench.faults[2] = BundleError("two")
    assert 4 * 3600 / LONGEST_REST_SECONDS < len(bench.tries) < 32
    assert [reason for _, _, reason in bench.refusals()] == ["one", "two"]


def test_promoted_again_it_is_tried_at_once(bench: Bench) -> None:
    bench.faults[2] = BundleError("damaged")
    bench.promote(2)
    bench.engines.look()
    bench.promote(1)
    bench.engines.look()
    del bench.faults[2]
    bench.promote(2)
    bench.engines.look()
    assert (bench.serving(), bench.tries) == (2, [2, 2])


def test_a_database_that_is_away_changes_nothing_and_is_asked_again(bench: Bench) -> None:
    def fail() -> None:
        raise OperationalError("INSERT", {}, Exception("database is locked"))

    bench.promote(2)
    bench.meanwhile = fail
    for _ in range(2):
        with pytest.raises(OperationalError):
            bench.engines.look()
    assert (bench.serving(), bench.row(), bench.refusals()) == (1, 1, [])
    bench.meanwhile = lambda: None
    bench.engines.look()
    assert (bench.serving(), bench.row(), bench.tries) == (2, 2, [2, 2, 2])


def test_what_was_loaded_while_the_database_went_away_is_given_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def go_away() -> None:
        monkeypatch.setattr(bench.database, "read", away)

    bench.promote(2)
    bench.meanwhile = go_away
    with pytest.raises(OperationalError):
        bench.engines.look()
    assert (bench.serving(), bench.closed()) == (1, [2])
    monkeypatch.undo()
    bench.meanwhile = lambda: None
    bench.engines.look()
    assert (bench.serving(), bench.closed()) == (2, [1, 2])


@contextmanager
def away() -> Iterator[Connection]:
    raise OperationalError("BEGIN", {}, Exception("database is locked"))
    yield


def test_the_row_is_written_in_the_end_also_after_an_outage(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.promote(2)
    write = bench.database.write
    monkeypatch.setattr(bench.database, "write", away)
    with pytest.raises(OperationalError):
        bench.engines.look()
    assert (bench.serving(), bench.row()) == (2, 1)
    monkeypatch.setattr(bench.database, "write", write)
    bench.engines.look()
    assert (bench.serving(), bench.row(), bench.tries) == (2, 2, [2])


def test_another_start_of_the_worker_keeps_its_own_row(bench: Bench) -> None:
    with bench.database.write() as connection:
        connection.execute(tables.worker.update().values(boot_id="another start"))
    bench.promote(2)
    bench.engines.look()
    assert (bench.serving(), bench.row()) == (2, 1)


class TestTrial:
    def test_a_candidate_is_held_for_as_long_as_it_has_open_jobs(self, bench: Bench) -> None:
        bench.engines.look()
        assert bench.trial() is None
        bench.shadow(2)
        bench.engines.look()
        assert (bench.serving(), bench.trial(), bench.row()) == (1, 2, 1)
        with bench.engines.hold_shadow() as processor:
            assert processor is not None
            bench.shadow(2, state="cancelled")
            bench.engines.look()
            assert (bench.trial(), bench.closed()) == (None, [])
        assert bench.closed() == [2]

    def test_promoted_it_serves_without_being_loaded_again(self, bench: Bench) -> None:
        bench.shadow(2)
        bench.engines.look()
        bench.promote(2)
        bench.shadow(2, state="cancelled")
        bench.engines.look()
        assert (bench.serving(), bench.trial(), bench.tries, bench.closed()) == (2, None, [2], [1])

    def test_one_that_cannot_be_loaded_is_known_so_that_nobody_waits_for_it(self, bench: Bench) -> None:
        bench.faults[2] = BundleError("damaged")
        bench.shadow(2)
        bench.engines.look()
        bench.engines.look()
        assert (bench.trial(), bench.engines.refused, bench.tries) == (None, (2,), [2])
        assert bench.refusals() == [("w1", "bundle:2", "damaged")]

    def test_a_worker_may_leave_it_to_others(self, bench: Bench) -> None:
        bench.start(shadow=False)
        bench.shadow(2)
        assert not bench.engines.do_shadow_jobs
        bench.engines.look()
        assert (bench.trial(), bench.tries) == (None, [])


class TestClosing:
    def test_everything_is_closed_after_its_last_batch(self, bench: Bench) -> None:
        bench.shadow(2)
        bench.engines.look()
        with bench.engines.hold(), bench.engines.hold_shadow():
            bench.engines.close()
            assert bench.closed() == []
        assert bench.closed() == [1, 2]

    def test_what_is_loaded_after_the_end_is_closed_again(self, bench: Bench) -> None:
        bench.promote(2)
        bench.meanwhile = bench.engines.close
        bench.engines.look()
        assert sorted(bench.closed()) == [1, 2]
