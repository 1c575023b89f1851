from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from intake_rows import arrival_at, film_bytes, make_champion, rows, states, work, write_film
from ledger_rows import Ledger
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from schema import tables
from schema.database import Database
from worker.errors import CarinaError
from worker.intake import watch as watch_module
from worker.intake.folders import FoundFile, ScanProblem, walk
from worker.intake.lookups import known_arrivals
from worker.intake.sources import Roots, resolve
from worker.intake.watch import Settling, watch
from worker.queue.outcomes import SourceReference
from worker.settings import Settings

ROOTS = Roots(Settings())


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def look(tmp_path: Path, clock: Clock) -> Callable[[], list[str]]:
    settling = Settling(5.0, clock)

    def look() -> list[str]:
        return sorted(Path(item.path).name for item in settling.look(walk(ROOTS, str(tmp_path))))

    return look


def test_a_file_is_taken_once_when_it_has_not_changed_for_long_enough(
    tmp_path: Path, clock: Clock, look: Callable[[], list[str]]
) -> None:
    (tmp_path / "a").write_bytes(b"x")
    assert look() == []
    clock.now = 4.9
    assert look() == []
    clock.now = 5.0
    assert look() == ["a"]
    clock.now = 50.0
    assert look() == []


def test_a_growing_file_starts_anew(tmp_path: Path, clock: Clock, look: Callable[[], list[str]]) -> None:
    for second in range(0, 20, 4):
        clock.now = second
        (tmp_path / "a").write_bytes(b"x" * (second + 1))
        assert look() == []
    clock.now += 5
    assert look() == ["a"]


def test_a_changed_time_or_permission_is_a_change(tmp_path: Path, clock: Clock, look: Callable[[], list[str]]) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x")
    look()
    clock.now = 5.0
    os.utime(path, ns=(1, 1))
    assert look() == []
    clock.now = 10.0
    assert look() == ["a"]
    changed = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == changed:
        path.chmod(0o600)
        path.chmod(0o644)
    assert look() == []
    clock.now = 15.0
    assert look() == ["a"]


def test_partial_names_and_vanished_files_are_ignored(
    tmp_path: Path, clock: Clock, look: Callable[[], list[str]]
) -> None:
    (tmp_path / "a.part").write_bytes(b"x")
    (tmp_path / "b").write_bytes(b"x")
    (tmp_path / "broken").symlink_to("nowhere")
    look()
    (tmp_path / "b").unlink()
    clock.now = 5.0
    assert look() == []
    (tmp_path / "a.part").rename(tmp_path / "a")
    look()
    clock.now = 10.0
    assert look() == ["a"]


def test_a_folder_with_too_many_new_files_is_taken_bit_by_bit(
    tmp_path: Path, clock: Clock, look: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "_MAX_UNSETTLED", 3)
    for number in range(7):
        (tmp_path / str(number)).write_bytes(b"x")
    taken: list[str] = []
    for _ in range(10):
        taken += look()
        clock.now += 5.0
    assert sorted(taken) == [str(number) for number in range(7)]


def test_what_could_not_be_registered_is_taken_again(tmp_path: Path, clock: Clock) -> None:
    settling = Settling(5.0, clock)
    (tmp_path / "a").write_bytes(b"x")

    def look() -> list[FoundFile | ScanProblem]:
        return list(settling.look(walk(ROOTS, str(tmp_path))))

    look()
    clock.now = 5.0
    assert len(look()) == 1
    settling.forget()
    look()
    clock.now = 10.0
    assert len(look()) == 1


@contextmanager
def watching(database: Database, settings: Settings, folder: Path, after: str = "leave") -> Iterator[None]:
    """A watch in a thread; what it raises is raised here."""
    stop, raised = threading.Event(), []

    def run() -> None:
        try:
            watch(database, settings, folder, stop=stop, after=after)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()
        if raised:
            raise raised[0]


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        threading.Event().wait(0.01)


@pytest.fixture
def quick(settings: Settings) -> Settings:
    return replace(settings, poll_seconds=0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


def test_films_are_registered_as_they_appear_and_stay(database: Database, quick: Settings, folder: Path) -> None:
    write_film(folder / "a", "2.25.1")
    with watching(database, quick, folder):
        eventually(lambda: len(rows(database, tables.job)) == 1)
        write_film(folder / "b", "2.25.2")
        (folder / "README").write_text("text")
        (folder / "empty").write_bytes(b"")
        eventually(lambda: len(rows(database, tables.job)) == 2 and states(database, tables.arrival)["rejected"] == 1)
    assert {job.priority for job in rows(database, tables.job)} == {0}
    assert len(rows(database, tables.submission)) == 1 and len(list(folder.iterdir())) == 4


def test_a_second_watch_recognises_what_is_there(database: Database, quick: Settings, folder: Path) -> None:
    write_film(folder / "a", "2.25.1")
    with watching(database, quick, folder):
        eventually(lambda: rows(database, tables.job))
    with watching(database, quick, folder):
        write_film(folder / "b", "2.25.2")
        eventually(lambda: len(rows(database, tables.job)) == 2)
    assert len(rows(database, tables.arrival)) == 2
    assert not any(row.seen_before for row in rows(database, tables.submission_arrival))


def test_a_database_that_is_away_is_waited_for(
    database: Database, quick: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = watch_module.Registrar.register, []

    def away_once(self: object, files: object) -> object:
        calls.append(files)
        if len(calls) == 1:
            raise OperationalError("statement", {}, Exception("locked"))
        return real(self, files)

    monkeypatch.setattr(watch_module.Registrar, "register", away_once)
    write_film(folder / "a", "2.25.1")
    with watching(database, quick, folder):
        eventually(lambda: rows(database, tables.job))
    assert len(calls) == 2


def test_deleted_only_when_nothing_more_will_be_asked(ledger: Ledger, quick: Settings, folder: Path) -> None:
    database = ledger.database
    make_champion(database)
    for number, name in enumerate(("done", "failed", "side"), start=1):
        write_film(folder / name, f"2.25.{number}")
    write_film(folder / "frames", "2.25.4", NumberOfFrames=3)
    (folder / "README").write_text("text")
    (folder / "empty").write_bytes(b"")
    with watching(database, quick, folder, "delete"):
        eventually(lambda: len(rows(database, tables.arrival)) == 5)
        for name in ("copy", "conflict"):
            write_film(folder / name, "2.25.1", level=len(name))
        eventually(lambda: not (folder / "frames").exists())
        eventually(lambda: len(rows(database, tables.arrival)) == 7)
        assert len(list(folder.iterdir())) == 7
        pictures = {"done": "A", "failed": "!DECODE_FAILED", "side": "?S", "copy": "A", "conflict": "C"}
        work(ledger, {_stored(folder / name): picture for name, picture in pictures.items()})
        eventually(lambda: len(list(folder.iterdir())) == 4)
    assert {path.name for path in folder.iterdir()} == {"failed", "conflict", "README", "empty"}


def _stored(path: Path) -> str:
    return str(path).removeprefix("/")


def test_a_moved_film_can_still_be_found(ledger: Ledger, quick: Settings, folder: Path, tmp_path: Path) -> None:
    database, target = ledger.database, tmp_path / "out" / "films"
    (folder / "sub").mkdir()
    write_film(folder / "sub" / "a", "2.25.1")
    target.mkdir(parents=True)
    (target / "sub").mkdir()
    (target / "sub" / "a").write_bytes(b"another file of that name")
    with watching(database, quick, folder, f"move:{target}"):
        eventually(lambda: rows(database, tables.job))
        work(ledger, {_stored(folder / "sub" / "a"): "A"})
        eventually(lambda: not (folder / "sub" / "a").exists())
    (identity,) = rows(database, tables.identity)
    source = SourceReference(identity.root, identity.path, identity.member, identity.size, identity.modified_ns)
    moved = resolve(quick, source)
    assert moved == target / "sub" / f"a.{identity.arrival_id}" and moved.read_bytes() == film_bytes_of(moved)
    with database.read() as connection:
        assert list(known_arrivals(connection, [source])) == [source]
    assert (target / "sub" / "a").read_bytes() == b"another file of that name"


def film_bytes_of(path: Path) -> bytes:
    data = path.read_bytes()
    assert data[128:132] == b"DICM"
    return data


def test_a_file_that_is_written_anew_is_not_deleted(
    ledger: Ledger, quick: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file changes between our look and the deletion."""
    database = ledger.database
    path = write_film(folder / "a", "2.25.1")
    with watching(database, quick, folder):
        eventually(lambda: rows(database, tables.job))
    work(ledger, {_stored(path): "A"})
    real = watch_module.through

    def overwrite(*arguments: object) -> object:
        found = real(*arguments)
        if found:
            path.write_bytes(film_bytes("2.25.2"))
        return found

    monkeypatch.setattr(watch_module, "through", overwrite)
    with watching(database, quick, folder, "delete"):
        eventually(lambda: len(rows(database, tables.instance)) == 2)
    assert path.exists()


def test_work_on_a_new_bundle_keeps_the_file(ledger: Ledger, quick: Settings, folder: Path) -> None:
    database = ledger.database
    write_film(folder / "a", "2.25.1")
    write_film(folder / "b", "2.25.2")
    with watching(database, quick, folder):
        eventually(lambda: len(rows(database, tables.job)) == 2)
    work(ledger, {_stored(folder / name): name for name in "ab"})
    with database.write() as connection:
        film = arrival_at(database, _stored(folder / "a"))
        connection.execute(tables.job.insert().values(instance_id=film.instance_id, arrival_id=film.id, priority=0))
    with watching(database, quick, folder, "delete"):
        eventually(lambda: not (folder / "b").exists())
        assert (folder / "a").exists()
        with database.write() as connection:
            connection.execute(update(tables.job).where(tables.job.c.state == "ready").values(state="cancelled"))
        eventually(lambda: not (folder / "a").exists())


@pytest.mark.parametrize("after", ["keep", "move:", "delete:x", "move:{in}", "move:{in}/done"])
def test_a_wish_that_cannot_be_fulfilled_is_refused(
    database: Database, settings: Settings, folder: Path, after: str
) -> None:
    with pytest.raises(CarinaError):
        watch(database, settings, folder, stop=threading.Event(), after=after.replace("{in}", str(folder)))


def test_a_folder_that_is_not_there(database: Database, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(CarinaError, match="does not exist"):
        watch(database, settings, tmp_path / "Doe^John", stop=threading.Event())
    assert Counter(states(database, tables.arrival)).total() == 0
