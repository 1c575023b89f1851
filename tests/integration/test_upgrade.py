"""Programs and databases of different versions: they refuse with a sentence, or they work.

The program of the previous schema is this one without the newest migration: that is what it
knows of the database. It works on tables that are older or newer than it says, so a migration
after which that is no longer so must be preceded by a stop of all workers, and say so here.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from click.testing import CliRunner
from ledger_rows import job_row, register_films
from sqlalchemy import func, select, text
from waiting import wait_until
from worker_site import make_films, make_site

from schema import tables
from schema.database import Database, head_revision, view_statements
from schema.keys import location_hash
from worker.cli import main
from worker.intake.register import Counts, Examined, Registrar
from worker.phantom import make_phantom, phantom_dataset
from worker.queue.invariants import check_invariants
from worker.queue.patience import Patience

ROOT = Path(__file__).resolve().parents[2]
REFUSED = 1
#: Columns that the newest migration adds to what a worker writes: the program before it does not know them.
ADDED = ("home_free_bytes",)


def previous_revision() -> str:
    head = ScriptDirectory(str(ROOT / "migrations")).get_revision(head_revision())
    assert head is not None and isinstance(head.down_revision, str)
    return head.down_revision


@pytest.fixture
def old_program(tmp_path: Path) -> Path:
    """Folder of a program that knows all migrations but the newest."""
    folder = tmp_path / "old"
    unneeded = shutil.ignore_patterns("__pycache__", "bundles")
    for name in ("schema", "worker", "migrations"):
        shutil.copytree(ROOT / name, folder / name, ignore=unneeded)
    (newest,) = (folder / "migrations" / "versions").glob(f"{head_revision()}_*.py")
    newest.unlink()
    for name in ("schema/tables/work.py", "worker/queue/leases.py", "worker/queue/workers.py"):
        lines = (folder / name).read_text("utf-8").splitlines(keepends=True)
        (folder / name).write_text("".join(line for line in lines if not any(f'"{new}"' in line for new in ADDED)))
    (folder / "tests").mkdir()
    for name in ("passthrough_worker.py", "ledger_rows.py", "shifted_clock.py"):
        shutil.copy(ROOT / "tests" / name, folder / "tests")
    return folder


def run_program(folder: Path, home: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worker.cli", *arguments],
        cwd=folder,
        env={**os.environ, "CARINA_HOME": str(home), "CARINA_DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=120,
    )


def assert_refused(done: subprocess.CompletedProcess[str], *sentences: str) -> None:
    said = " ".join(done.stderr.split())
    assert done.returncode == REFUSED, said
    assert all(sentence in said for sentence in sentences), said
    assert "Traceback" not in said


@pytest.mark.parametrize("arguments", [["worker"], ["submit", "."]], ids=lambda words: words[0])
def test_a_program_refuses_an_older_database(database: Database, tmp_path: Path, arguments: list[str]) -> None:
    previous = previous_revision()
    database.downgrade(previous)
    done = run_program(ROOT, tmp_path / "home", url_of(database), *arguments)
    assert_refused(
        done, f"The database is at version {previous}, this program needs {head_revision()}.", "carina db upgrade"
    )
    assert database.version() == previous


def test_a_program_refuses_a_newer_database(database: Database, tmp_path: Path, old_program: Path) -> None:
    done = run_program(old_program, tmp_path / "home", url_of(database), "worker")
    assert_refused(done, f"(version {previous_revision()}) does not know: it was upgraded by a newer Carina.")
    assert database.version() == head_revision()


def test_a_workers_child_does_not_refuse_what_its_parent_works_with(database: Database, tmp_path: Path) -> None:
    """An upgrade meanwhile is no proof against the film that the child reads."""
    database.downgrade(previous_revision())
    done = run_program(ROOT, tmp_path / "home", url_of(database), "solo", "a lease that is gone")
    assert done.returncode == 0, done.stderr


def test_a_running_worker_outlives_an_upgrade_and_its_next_start_refuses(
    database_url: str, tmp_path: Path, old_program: Path
) -> None:
    gate = tmp_path / "gate"
    films = {0: f"gate {gate}", 9: "brittle"}
    with make_site(tmp_path, database_url, 30, films, claim_size=4, lease_seconds=2.0) as site:
        jobs = site.jobs
        site.database.downgrade(previous_revision())
        site.start("old", program=old_program, stay=True)
        wait_until(gate.with_suffix(".started").exists, "the old worker to begin")
        held = job_row(site.database, jobs[0]).lease_id
        upgrade(site.database)
        gate.with_suffix(".go").touch()
        wait_until(lambda: site.open() == 0, f"the old worker to go on: {site.log('old')[-500:]}")
        assert job_row(site.database, jobs[0]).finished_lease == held
        assert site.states() == {"done": 29, "failed": 1}
        with site.database.read() as connection:
            assert set(connection.scalars(select(tables.worker.c.name))) == {"old"}
        assert check_invariants(site.database) == []

        jobs += register_films(site.database, make_films(tmp_path / "after", 10, {0: "poison"}))
        wait_until(lambda: "upgraded by a newer Carina" in site.log("old"), "the old program to refuse")
        assert site.open() > 0
        site.start("new")
        wait_until(lambda: site.open() == 0, "the new worker to finish")
        assert site.processes["new"].wait(60) == 0
        with site.database.read() as connection:
            failed = select(tables.job.c.id, tables.job.c.code).where(tables.job.c.state == "failed")
            assert dict(connection.execute(failed).all()) == {jobs[9]: "WORKER_CRASHED", jobs[30]: "WORKER_CRASHED"}
            for name in view_statements(site.database.dialect):
                connection.execute(text(f"SELECT * FROM {name}")).all()
        assert site.states() == {"done": 38, "failed": 2}
        assert site.count("segmentation") == 38 and site.count("lease") == 0
        assert check_invariants(site.database) == []


@pytest.mark.parametrize("command", ["submit", "watch"])
@pytest.mark.parametrize(
    "change",
    [
        "identity ADD COLUMN place TEXT CHECK (place IS NOT NULL)",
        "identity RENAME COLUMN location_hash TO place_hash",
        # Of no consequence to a file that is rejected: no film may be blamed for it.
        "instance ADD COLUMN place TEXT CHECK (place IS NOT NULL)",
    ],
    ids=["a value is missing", "a column is gone", "a film's value is missing"],
)
def test_a_scanner_that_an_upgrade_overtakes_stops_with_a_sentence(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, change: str
) -> None:
    """The newer program's tables take no more rows of this one."""
    films = tmp_path / "films"
    films.mkdir()
    phantom_dataset(make_phantom(3, rows=256, columns=224)).save_as(films / "film.dcm")
    monkeypatch.setenv("CARINA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CARINA_DATABASE_URL", url_of(database))
    monkeypatch.setenv("CARINA_SETTLE_SECONDS", "0")
    register = Registrar.register

    def overtaken(registrar: Registrar, files: Sequence[Examined]) -> Counts:
        with database.write() as connection:
            connection.execute(text(f"ALTER TABLE {change}"))
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        monkeypatch.setattr(Registrar, "register", register)
        return registrar.register(files)

    monkeypatch.setattr(Registrar, "register", overtaken)
    done = CliRunner().invoke(main, [command, str(films)])
    assert isinstance(done.exception, SystemExit) and done.exit_code == REFUSED
    said = " ".join(done.output.split())
    assert "Error: The database is at version 9999" in said and "upgraded by a newer Carina" in said
    assert "refused" not in said and "Traceback" not in said
    with database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(tables.arrival)) == 0


def test_a_path_too_long_for_the_former_index_is_kept_or_the_way_back_is_refused(
    database: Database, tmp_path: Path
) -> None:
    """Before version 0003 PostgreSQL had the path itself in an index, where 2.7 kB is the limit; SQLite has none."""
    dice = random.Random(5)
    long = "".join(dice.choices("abcdefghijklmnopqrstuvwxyz0123456789/", k=4000))
    register_films(database, [long, "short.dcm"])
    done = run_program(ROOT, tmp_path / "home", url_of(database), "db", "downgrade", "--yes", "0002")
    if database.dialect == "postgresql":
        assert_refused(done, "cannot go back to version 0002: the path of a registered file is too long for it.")
        assert long not in done.stderr
        database.require_current()
    else:
        assert done.returncode == 0, done.stderr
        assert database.version() == "0002"
        database.upgrade()
    with database.read() as connection:
        found = connection.execute(select(tables.identity.c.path, tables.identity.c.location_hash)).all()
    assert sorted(row.path for row in found) == sorted([long, "short.dcm"])
    assert [row.location_hash for row in found] == [location_hash("local", row.path, "", 1, 1) for row in found]


def url_of(database: Database) -> str:
    return database.url.render_as_string(hide_password=False)


def upgrade(database: Database) -> None:
    """As a person does it: once more where a busy worker was in the way for too long."""
    Patience().until_done(database.upgrade)
    database.require_current()
