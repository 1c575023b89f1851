from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from server_process import wait_until
from servers import BrokerServer, Databases, GivenPostgresql, PostgresqlServer
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError

from schema.database import Database

pytestmark = pytest.mark.services


def test_a_server_given_by_its_url_is_used_and_left_clean(postgresql_server: Databases) -> None:
    given = GivenPostgresql(postgresql_server.admin_url.render_as_string(hide_password=False))
    given._numbers = iter(range(10_000, 10_010))
    made = given.fresh_database()
    database = Database(made)
    database.require_current()
    database.close()
    given.drop_all()
    atexit.unregister(given.drop_all)
    with pytest.raises(DBAPIError, match="does not exist"):
        Database(made).version()


def test_servers_leave_nothing_behind(tmp_path: Path) -> None:
    """The process that started them is killed: they end too."""
    script = (
        "import sys, servers\n"
        "server = servers.PostgresqlServer(servers.postgresql_binaries()[-1]).start()\n"
        "broker = servers.BrokerServer(servers.broker_binaries()[-1]).start()\n"
        "print(server.port, broker.port, server.folder, broker.folder, flush=True)\n"
        "sys.stdin.read()\n"
    )
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}"},
        text=True,
    ) as child:
        assert child.stdout is not None
        first, second, *folders = child.stdout.readline().split()
        ports = [int(first), int(second)]
        assert all(map(listening, ports))
        child.kill()
        child.wait()
    wait_until(lambda: not any(map(listening, ports)), "the servers did not end with their starter")
    for folder in folders:
        shutil.rmtree(folder)


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_killed_postgresql_keeps_what_was_committed(own_postgresql: PostgresqlServer, postgresql_url: str) -> None:
    database = Database(postgresql_url)
    with database.write() as connection:
        connection.execute(text("CREATE TABLE kept AS SELECT 1 AS one"))
    own_postgresql.kill9()
    assert not own_postgresql.running and not listening(own_postgresql.port)
    own_postgresql.start()
    database.close()
    with database.read() as connection:
        assert connection.scalar(text("SELECT one FROM kept")) == 1
    database.close()


def test_a_killed_broker_forgets_unless_it_is_told_to_keep(own_broker: BrokerServer) -> None:
    with BrokerServer(own_broker.binary, persistent=True) as keeper:
        for broker, kept in ((own_broker, "$-1"), (keeper, "$5\r\nvalue")):
            login = f"AUTH {broker.password}"
            assert "+OK" in broker.ask(login, "SET key value")
            broker.kill9()
            assert not broker.running and broker.ask("PING") == ""
            broker.start()
            assert broker.ask(login, "GET key").removeprefix("+OK\r\n").strip() == kept
    assert not keeper.folder.exists()


def test_nobody_gets_in_without_the_password(own_broker: BrokerServer, own_postgresql: PostgresqlServer) -> None:
    assert "NOAUTH" in own_broker.ask("KEYS *")
    stranger = Database(make_url(own_postgresql.admin_url).set(password="guessed"))
    with pytest.raises(DBAPIError, match="password authentication failed"):
        stranger.version()
