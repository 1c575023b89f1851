"""What an installation needs besides the program: secrets, roles, broker users, units."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import servers
from click.testing import CliRunner
from server_process import free_port
from sqlalchemy import create_engine, make_url, text, update
from sqlalchemy.exc import ProgrammingError

from schema.database import Database, view_statements
from schema.dictionary import personal_tables
from schema.tables import job, metadata
from schema.types import database_now
from worker.cli import main
from worker.phantom import make_phantom, phantom_dataset
from worker.settings import load_settings, site_key

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
ROLES = ("owner", "worker", "intake", "report", "read_only")
PERSONAL = set(personal_tables())


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets") / "made"
    make_secrets(folder)
    return folder


def make_secrets(folder: Path) -> None:
    subprocess.run(["sh", DEPLOY / "make-secrets.sh", folder], check=True, capture_output=True)


def secret(folder: Path, name: str) -> str:
    return (folder / name).read_text("utf-8").strip()


# --- secrets ---------------------------------------------------------------------------------


def test_secrets_are_the_ones_that_compose_mounts(secrets: Path) -> None:
    named = re.findall(r"deploy/secrets\}/([\w.]+)", (ROOT / "docker-compose.yml").read_text("utf-8"))
    made = {file.name for file in secrets.iterdir()}
    assert set(named) == made


def test_secrets_are_for_their_owner_only(secrets: Path) -> None:
    assert {stat.S_IMODE(file.stat().st_mode) & 0o077 for file in secrets.iterdir()} == {0}


def test_secrets_are_made_once(tmp_path: Path) -> None:
    make_secrets(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    make_secrets(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    passwords = [value for name, value in before.items() if name.startswith("postgres_")]
    assert len({*passwords}) == len(passwords) == 6


def test_the_program_reads_its_secrets(secrets: Path, tmp_path: Path) -> None:
    shutil.copy(secrets / "site.key", tmp_path)
    settings = load_settings(
        {"CARINA_HOME": str(tmp_path), "CARINA_DATABASE_URL_FILE": str(secrets / "database_url_worker")}
    )
    assert len(site_key(settings)) == 32
    url = make_url(settings.url)
    assert (url.username, url.password) == ("carina_worker", secret(secrets, "postgres_worker"))


# --- the health check ------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CARINA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def films(tmp_path: Path) -> Path:
    folder = tmp_path / "films"
    folder.mkdir()
    for seed in (3, 4):
        phantom_dataset(make_phantom(seed, rows=256, columns=224)).save_as(folder / f"{seed}.dcm")
    return folder


def carina(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, words)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def make_older(url: str, seconds: float) -> None:
    database = Database(url)
    with database.write() as connection:
        connection.execute(update(job).values(created_at=database_now(-seconds)))
    database.close()


def test_the_health_check_looks_at_the_oldest_ready_film(home: Path, films: Path) -> None:
    check = ("status", "--fail-if-waiting-longer", "900")
    assert carina(*check)[0] == 0
    assert carina("submit", str(films), "--lane", "archive")[0] == 0
    assert carina(*check)[0] == 0
    make_older(f"sqlite:///{home / 'carina.sqlite'}", 1200)
    code, said = carina(*check)
    assert (code, "archive 20 min" in said) == (1, True)
    assert carina(*check, "--lane", "archive")[0] == 1
    assert carina(*check, "--lane", "icu")[0] == 0
    assert carina("status", "--fail-if-waiting-longer", "1500")[0] == 0


@pytest.mark.parametrize("words", [["--lane", "icu"], ["--fail-if-waiting-longer", "9", "--json"]], ids=" ".join)
def test_the_health_check_refuses_what_makes_no_sense(home: Path, words: list[str]) -> None:
    assert carina("status", *words)[0] == 2


# --- roles -----------------------------------------------------------------------------------


def granted_tables() -> dict[str, set[str]]:
    """Role → tables and views that grants.sql names for it."""
    found: dict[str, set[str]] = {}
    for objects, role in re.findall(
        r"GRANT [A-Z, ]+ ON\s+([a-z_,\s]+?)\s+TO (carina_\w+);", (DEPLOY / "postgres" / "grants.sql").read_text()
    ):
        found.setdefault(role, set()).update(name.strip() for name in objects.split(","))
    return found


def test_report_is_granted_all_but_identity() -> None:
    everything = set(metadata.tables) | set(view_statements("postgresql")) | {"alembic_version"}
    assert granted_tables()["carina_report"] == everything - PERSONAL


@pytest.fixture(scope="module")
def psql(postgresql_server: servers.Databases) -> Callable[..., None]:
    if not isinstance(postgresql_server, servers.PostgresqlServer):
        pytest.skip("roles are for a whole server, and the one that CARINA_TEST_DATABASE_URL names is not ours")
    program = shutil.which("psql") or str(postgresql_server.binaries / "psql")
    if not Path(program).is_file():
        pytest.skip("psql is not installed")

    def run(url: str, file: Path, *options: str) -> None:
        target = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        done = subprocess.run(
            [program, "-q", "-v", "ON_ERROR_STOP=1", *options, "-f", str(file), target], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    return run


@pytest.fixture(scope="module")
def role_urls(
    postgresql_server: servers.Databases, psql: Callable[..., None], secrets: Path
) -> Iterator[dict[str, str]]:
    """Role → URL of a database that was set up as docs/operations.md says."""
    name = f"{postgresql_server.prefix}roles"
    admin = postgresql_server.admin_url
    for _ in range(2):
        psql(admin.render_as_string(hide_password=False), DEPLOY / "postgres" / "roles.sql", "-v", f"database={name}")
    postgresql_server.execute(
        *(f"ALTER ROLE carina_{role} PASSWORD '{secret(secrets, f'postgres_{role}')}'" for role in ROLES)
    )
    urls = {
        role: admin.set(
            database=name, username=f"carina_{role}", password=secret(secrets, f"postgres_{role}")
        ).render_as_string(hide_password=False)
        for role in ROLES
    }
    database = Database(urls["owner"])
    database.upgrade()
    database.close()
    for _ in range(2):
        psql(urls["owner"], DEPLOY / "postgres" / "grants.sql")
    yield urls
    postgresql_server.execute(f"DROP DATABASE {name} WITH (FORCE)", *(f"DROP ROLE carina_{role}" for role in ROLES))


@pytest.fixture
def as_role(
    home: Path, role_urls: dict[str, str], secrets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    home.mkdir()
    shutil.copy(secrets / "site.key", home)

    def use(role: str) -> None:
        file = tmp_path / "database_url"
        file.write_text(role_urls[role])
        monkeypatch.setenv("CARINA_DATABASE_URL_FILE", str(file))

    return use


@pytest.mark.services
def test_a_person_who_asks_in_psql_waits_for_no_compiler(role_urls: dict[str, str]) -> None:
    """PostgreSQL would compile a view over days for a second where the answer takes 30 ms."""
    engine = create_engine(role_urls["report"])
    with engine.connect() as connection:
        found = [connection.scalar(text(f"SHOW {name}")) for name in ("jit", "random_page_cost", "statement_timeout")]
    engine.dispose()
    assert found == ["off", "1.1", "5min"]


NOBODY = """
[destination.pacs]
kind = "dicom"
host = "127.0.0.1"
port = {port}
ae_title = "PACS"
outputs = ["report"]
"""


@pytest.mark.services
@pytest.mark.timeout(300)
def test_a_night_with_a_role_for_each_process(
    as_role: Callable[[str], None],
    films: Path,
    tmp_path: Path,
    role_urls: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    as_role("intake")
    for lane in ("archive", "icu"):
        assert carina("submit", str(films), "--lane", lane)[0] == 0
    assert carina("status", "--fail-if-waiting-longer", "900", "--lane", "icu")[0] == 0
    as_role("worker")
    assert carina("worker", "--name", "one", "--until-idle")[0] == 0
    shutil.copy(films / "3.dcm", films / "again.dcm")
    as_role("intake")
    assert carina("submit", str(films))[0] == 0
    as_role("worker")
    assert carina("worker", "--name", "one", "--until-idle")[0] == 0
    assert carina("retry", "--all")[0] == 0
    (tmp_path / "peers.toml").write_text(NOBODY.format(port=free_port()))
    monkeypatch.setenv("CARINA_DELIVERY", str(tmp_path / "peers.toml"))
    # Nobody takes it, but it is in the outbox.
    assert carina("deliver", "--once", "--backfill", "2020-01-01")[0] == 3
    assert carina("deliver", "resend", "--all")[0] == 0
    as_role("read_only")
    assert json.loads(carina("deliver", "status", "--json")[1])[0]["counts"] == {"ready": 2}
    for words in (
        ["status", "--json"], ["failed"], ["conflicts", "list"], ["info"],
        ["export", "--format", "csv", "--out", str(tmp_path / "csv")],
        ["export", "--format", "png", "--out", str(tmp_path / "png")],
        ["report", "--out", str(tmp_path / "report")],
    ):  # fmt: skip
        assert carina(*words)[0] == 0, words
    with (tmp_path / "csv" / "films.csv").open() as table:
        assert sum(",done," in line for line in table) == 2
    report = Database(role_urls["report"])
    with report.read() as connection:
        assert connection.scalar(text("SELECT sum(done) FROM overnight_summary")) == 2
    report.close()


@pytest.mark.services
def test_a_listener_needs_no_more_than_the_intakes_role(as_role: Callable[[str], None]) -> None:
    pytest.importorskip("pynetdicom")
    from listener_peers import open_door, small_film, store

    from worker.intake.listener.retention import delete_expired, register_unrecorded
    from worker.service import open_database

    as_role("intake")
    settings = replace(load_settings(), listen_port=0, listen_keep_days=1e-9)
    with open_database(settings) as database, open_door(database, settings) as door:
        assert store(door.port, small_film(17)) == [0]
        assert register_unrecorded(database, settings, door.spool, stop=threading.Event()) == 0
        # Its film waits: nothing goes, but everything was asked.
        assert delete_expired(database, settings, door.spool) == 0
        with database.write() as connection:
            connection.execute(
                update(job)
                .where(job.c.state == "ready")
                .values(state="ineligible", code="NOT_A_CHEST", finished_at=database_now())
            )
        assert delete_expired(database, settings, door.spool) == 1


@pytest.mark.services
def test_the_page_needs_no_more_than_the_reading_role(
    as_role: Callable[[str], None], films: Path, tmp_path: Path
) -> None:
    pytest.importorskip("starlette")
    from page_server import serving

    from worker.service import open_database

    as_role("intake")
    assert carina("submit", str(films))[0] == 0
    for role, allowed in (("read_only", False), ("worker", True)):
        as_role(role)
        settings = load_settings()
        with open_database(settings) as database:
            with database.read() as connection:
                waiting = connection.scalar(text("SELECT max(id) FROM job"))
            if allowed:
                with database.write() as connection:
                    connection.execute(
                        update(job).where(job.c.id == waiting).values(state="failed", code="NOT_A_CHEST")
                    )
            with serving(database, settings) as browser:
                for path in ("/", "/film/1", "/performance", "/drift", "/queue", "/failed"):
                    browser.page(path)
                value = browser.form_value() if allowed else ""
                answer = browser.post("/failed/retry", job=str(waiting), form_value=value)
                assert answer.status == (303 if allowed else 403)


@pytest.mark.services
def test_a_trainer_needs_no_more_than_the_workers_role(as_role: Callable[[str], None], tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    from tiny_bundle import SIZE, make_bundle

    from trainer.rebuild.ledger import RebuildLedger, list_rebuilds
    from trainer.rebuild.place import trainers_place
    from trainer.rebuild.request import make_request
    from worker.inference.registry import add_bundle, champion
    from worker.monitor.labels import current_labels
    from worker.service import open_database

    as_role("worker")
    settings = load_settings()
    steps = ({"step": "min_max"}, {"step": "resize", "height": SIZE, "width": SIZE})
    bundle = make_bundle(tmp_path / "bundle", preprocess=steps)
    with open_database(settings) as database, trainers_place(database, settings) as place:
        ledger = RebuildLedger(database, place)
        request = make_request("carina-findings", data="phantoms", from_database=True)
        serving = champion(database, settings)
        row = ledger.open(request, "films", lambda _: tmp_path / "out", champion_id=serving.id, fresh=False)
        with database.read() as connection:
            assert list(current_labels(connection)) == []
        entry = add_bundle(database, settings, bundle, actor="trainer")
        ledger.finish(ledger.advance(row, "report", {}), entry.id, "done", {})
        assert [(each.bundle, each.outcome) for each in list_rebuilds(database)] == [("tiny:1", "done")]


@pytest.mark.services
def test_the_report_role_may_ask_what_the_cookbook_says(role_urls: dict[str, str]) -> None:
    queries = re.findall(r"```sql\n(.*?)```", (ROOT / "docs" / "sql-cookbook.md").read_text("utf-8"), re.DOTALL)
    personal = [query for query in queries if any(re.search(rf"\b{name}\b", query) for name in PERSONAL)]
    report, everything = Database(role_urls["report"]), Database(role_urls["read_only"])
    for query in queries:
        with everything.read() as connection:
            connection.exec_driver_sql(query).all()
        with contextlib.ExitStack() as stack:
            if query in personal:
                stack.enter_context(pytest.raises(ProgrammingError, match="permission denied"))
            stack.enter_context(report.read()).exec_driver_sql(query).all()
    assert 0 < len(personal) < len(queries)
    for database in (report, everything):
        database.close()


@pytest.mark.services
def test_read_only_is_enough_for_a_backup(
    postgresql_server: servers.Databases, role_urls: dict[str, str], tmp_path: Path
) -> None:
    assert isinstance(postgresql_server, servers.PostgresqlServer)
    url = make_url(role_urls["read_only"]).set(drivername="postgresql").render_as_string(hide_password=False)
    dump = tmp_path / "carina.dump"
    done = subprocess.run(
        [postgresql_server.binaries / "pg_dump", "--format", "custom", "--file", dump, url], capture_output=True
    )
    assert (done.returncode, dump.read_bytes()[:5]) == (0, b"PGDMP"), done.stderr


@pytest.mark.services
@pytest.mark.parametrize(
    ("role", "statement"),
    [
        *[("report", f"SELECT * FROM {table}") for table in sorted(PERSONAL)],
        ("report", "DELETE FROM job"),
        ("read_only", "UPDATE job SET priority = 0"),
        ("intake", "SELECT * FROM finding_score"),
        ("intake", "INSERT INTO segmentation (job_id) VALUES (1)"),
        ("intake", "DELETE FROM job"),
        ("worker", "UPDATE finding_score SET probability = 0"),
        ("worker", "UPDATE label SET value = 'absent'"),
        ("worker", "DELETE FROM rebuild"),
        ("intake", "SELECT * FROM label"),
        ("worker", "DELETE FROM job"),
        ("worker", "UPDATE instance_identity SET patient_id = ''"),
        ("worker", "CREATE TABLE other (id int)"),
        ("intake", "DROP TABLE job"),
    ],
)
def test_a_role_may_do_no_more(role_urls: dict[str, str], role: str, statement: str) -> None:
    database = Database(role_urls[role])
    with (
        pytest.raises(ProgrammingError, match=r"permission denied|must be owner"),
        database.write() as connection,
    ):
        connection.execute(text("SET TRANSACTION READ WRITE"))
        connection.execute(text(statement))
    database.close()


# --- the broker ------------------------------------------------------------------------------


@pytest.fixture
def guarded_broker(secrets: Path, tmp_path: Path) -> Iterator[servers.BrokerServer]:
    """A broker that runs with our configuration and our users."""
    found = servers.broker_binaries()
    if not found:
        pytest.skip("no Valkey or Redis is installed")
    users = tmp_path / "users.acl"
    users.write_text(secret(secrets, "redis_acl") + "\n")
    ours = (DEPLOY / "redis" / "valkey.conf").read_text("utf-8")
    ours = ours.replace("/run/secrets/redis_acl", str(users)).replace("dir /data", f"dir {tmp_path}")
    broker = servers.BrokerServer(found[0])
    config = broker.folder / "broker.conf"
    config.write_text(f"bind 127.0.0.1\nport {broker.port}\n{ours}")
    broker.password = make_url(secret(secrets, "broker_url")).password or ""
    broker.answers = lambda: "PONG" in broker.ask("AUTH health any", "PING")  # type: ignore[method-assign]
    with broker:
        yield broker


@pytest.mark.services
def test_broker_users(guarded_broker: servers.BrokerServer) -> None:
    broker, carina_user = guarded_broker, f"AUTH carina {guarded_broker.password}"
    assert "NOAUTH" in broker.ask("GET carina:x")
    assert "WRONGPASS" in broker.ask("AUTH carina guess")
    assert broker.ask("AUTH health any", "GET carina:x").count("NOPERM") == 1
    assert "NOPERM" in broker.ask(carina_user, "GET other")
    assert "NOPERM" in broker.ask(carina_user, "FLUSHALL")
    assert "NOPERM" in broker.ask(carina_user, "CONFIG GET dir")
    assert "NOPERM" in broker.ask(carina_user, "KEYS *")
    assert "NOPERM" in broker.ask(carina_user, "SUBSCRIBE other")
    assert "NOPERM" not in broker.ask(carina_user, "SET carina:x 1", "PSUBSCRIBE carina:/0.celery.pidbox")


@pytest.mark.services
def test_celery_works_as_the_broker_user(guarded_broker: servers.BrokerServer) -> None:
    celery = pytest.importorskip("celery")
    from celery.contrib.testing.worker import start_worker

    app = celery.Celery(broker=f"redis://carina:{guarded_broker.password}@127.0.0.1:{guarded_broker.port}/0")
    app.conf.update(
        broker_transport_options={"global_keyprefix": "carina:"}, task_ignore_result=True, result_backend=None
    )
    seen: list[int] = []

    @app.task(name="ticket")
    def task(number: int) -> None:
        seen.append(number)

    with start_worker(app, pool="threads", concurrency=1, perform_ping_check=False):
        task.delay(7)
        servers.wait_until(lambda: seen == [7], "the ticket did not come")
        assert [*app.control.ping(timeout=5.0)], "remote control needs its channel by its exact name"


# --- units -----------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_stop_and_start_the_way_a_worker_needs(unit: Path) -> None:
    lines = dict(line.split("=", 1) for line in unit.read_text("utf-8").splitlines() if re.match(r"[A-Z]\w+=", line))
    assert (lines["KillMode"], lines["KillSignal"], lines["TimeoutStopSec"]) == ("mixed", "SIGTERM", "90")
    assert lines["Restart"] == "on-failure"
    assert lines["User"] == "carina"
    assert "MemoryDenyWriteExecute" not in lines
    if unit.name.startswith("carina-worker"):
        from worker.queue.loop import STALLED_EXIT_CODE

        assert lines["RestartForceExitStatus"] == str(STALLED_EXIT_CODE)


def test_a_units_worker_can_change_neither_bundles_nor_engines() -> None:
    lines = (DEPLOY / "systemd" / "carina-worker@.service").read_text("utf-8").splitlines()
    assert "ReadOnlyPaths=-/var/lib/carina/bundles -/var/lib/carina/engines" in lines
    assert "Environment=CARINA_ENGINE_BUILD=never" in lines
    for line in ("Wants", "After"):
        assert any(found.startswith(f"{line}=") and found.endswith(" carina-engines@%i.service") for found in lines)


def test_units_of_the_trainer_give_way_and_may_write() -> None:
    for name in ("carina-trainer@", "carina-engines@"):
        text = (DEPLOY / "systemd" / f"{name}.service").read_text("utf-8")
        assert "ReadOnlyPaths" not in text and "ENGINE_BUILD" not in text
    nice = {
        name: int(re.findall(r"^Nice=(\d+)$", (DEPLOY / "systemd" / f"{name}@.service").read_text("utf-8"), re.M)[0])
        for name in ("carina-worker", "carina-trainer")
    }
    assert nice["carina-trainer"] > nice["carina-worker"]


def test_the_environment_file_is_readable(tmp_path: Path) -> None:
    lines = (DEPLOY / "systemd" / "carina.env").read_text("utf-8").splitlines()
    environment = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    for name in [name for name in environment if name.endswith("_FILE")]:
        (tmp_path / name).write_text("sqlite://")
        environment[name] = str(tmp_path / name)
    assert load_settings(environment).root_folders == {"films": Path("/data")}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for unit in UNITS:
        body = unit.read_text("utf-8").replace("/opt/carina/bin/carina", "/bin/true")
        (tmp_path / unit.name.replace("@", "@instance")).write_text(body)
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, tmp_path.iterdir())],
        capture_output=True, text=True, env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
    )  # fmt: skip
    assert (checked.returncode, checked.stderr) == (0, "")
