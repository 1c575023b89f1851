from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ledger_rows import Ledger, job_row, register_films
from sqlalchemy import Connection, select, update
from sqlalchemy.exc import OperationalError

from schema import tables
from schema.database import Database
from schema.tables import JobState
from schema.types import database_now
from worker.errors import CarinaError
from worker.queue import workers
from worker.queue.leases import seen
from worker.queue.workers import deregister_worker, register_worker
from worker.settings import Settings


class TestRegisterWorker:
    def test_a_name_belongs_to_one_live_process(self, ledger: Ledger) -> None:
        with pytest.raises(CarinaError, match="choose another name"):
            register_worker(ledger.database, ledger.settings, "one")
        assert register_worker(ledger.database, ledger.settings, "two").id != ledger.worker.id

    def test_the_lock_outlives_no_process(self, database: Database, settings: Settings) -> None:
        script = (
            "import sys; from pathlib import Path; from worker.queue.ledger import register_worker;"
            "from worker.settings import Settings; from schema.database import Database;"
            "worker = register_worker(Database(sys.argv[1]), Settings(home=Path(sys.argv[2])), 'other');"
            "print('held', flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", script, settings.url, str(settings.home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(workers.__file__).parents[2],
            text=True,
        ) as child:
            assert child.stdout is not None and child.stdout.readline() == "held\n"
            with pytest.raises(CarinaError):
                register_worker(database, settings, "other")
            child.kill()
            child.wait()
        assert register_worker(database, settings, "other").name == "other"

    def test_takes_its_own_older_leases_back_at_once(self, ledger: Ledger) -> None:
        (mine,) = register_films(ledger.database, ["a"])
        ledger.must_claim()
        other = register_worker(ledger.database, ledger.settings, "two")
        (others,) = register_films(ledger.database, ["b"])
        ledger.must_claim(worker=other)
        ledger.worker.release_name()
        again = register_worker(ledger.database, ledger.settings, "one")
        assert again.id == ledger.worker.id and again.boot_id != ledger.worker.boot_id
        assert (job_row(ledger.database, mine).state, job_row(ledger.database, mine).crashes) == ("ready", 1)
        assert job_row(ledger.database, others).state == JobState.LEASED
        again.release_name()

    def test_a_name_that_lives_elsewhere_is_refused(self, ledger: Ledger, tmp_path: Path) -> None:
        elsewhere = Settings(home=tmp_path / "elsewhere")
        with pytest.raises(CarinaError, match="another machine"):
            register_worker(ledger.database, elsewhere, "one")
        deregister_worker(ledger.database, ledger.worker)
        assert register_worker(ledger.database, elsewhere, "one").id == ledger.worker.id

    def test_a_name_that_fell_silent_elsewhere_is_taken_over_with_its_films(
        self, ledger: Ledger, tmp_path: Path
    ) -> None:
        (film,) = register_films(ledger.database, ["a"])
        ledger.must_claim()
        silent = -2 * ledger.settings.lease_seconds
        with ledger.database.write() as connection:
            connection.execute(update(tables.worker).values(seen_at=database_now(silent)))
        heir = register_worker(ledger.database, Settings(home=tmp_path / "elsewhere"), "one")
        assert (job_row(ledger.database, film).state, heir.id) == ("ready", ledger.worker.id)
        # Whoever had the name before neither speaks for it nor gives it away.
        assert not seen(ledger.database, ledger.worker.id, ledger.worker.boot_id)
        deregister_worker(ledger.database, ledger.worker)
        with ledger.database.read() as connection:
            assert connection.scalar(select(tables.worker.c.stopped_at)) is None
        heir.release_name()

    def test_a_start_whose_commit_went_unheard_is_known_to_the_next_one(
        self, database: Database, settings: Settings
    ) -> None:
        class Unheard(Database):
            @contextmanager
            def write(self) -> Iterator[Connection]:
                with super().write() as connection:
                    yield connection
                raise OperationalError("COMMIT", {}, Exception("connection lost"))

        unheard = Unheard(database.url)
        for _ in range(2):
            with pytest.raises(OperationalError):
                register_worker(unheard, settings, "one")
        unheard.close()
        worker = register_worker(database, settings, "one")
        assert len((settings.home / "workers" / "one.lock").read_text().split()) == 1
        worker.release_name()

    @pytest.mark.parametrize("name", ["a/b", "..", "Zimmer 3 ü"])
    def test_any_name_makes_one_lock_file(self, database: Database, settings: Settings, name: str) -> None:
        worker = register_worker(database, settings, name)
        assert len(list((settings.home / "workers").iterdir())) == 1
        worker.release_name()
