"""Databases and brokers for every test.

``database`` and ``database_url`` give a test a fresh, empty database of the newest version:
once on SQLite and, marked ``services``, once on PostgreSQL. A folder's own conftest may have
a ``database`` of its own. ``postgresql_url`` and ``broker_server`` are for tests that are about the
servers. Where a server cannot be had, the test is skipped and says why.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from phantom_bundle import PHANTOM_BUNDLE
from server_process import ServersUnavailableError

from schema.database import Database

# The first bundle of every home, in the programs that tests start too.
os.environ["CARINA_BUNDLE"] = str(PHANTOM_BUNDLE)

DIALECTS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.services)]


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty ledger as one file, to be copied: migrating takes longer than a small test."""
    file = tmp_path_factory.mktemp("template") / "carina.sqlite"
    database = Database(f"sqlite:///{file}")
    database.upgrade()
    database.close()
    return file


@pytest.fixture(scope="session")
def postgresql_server() -> servers.Databases:
    """The PostgreSQL server of this run."""
    try:
        return servers.postgresql()
    except ServersUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture
def own_postgresql(postgresql_server: servers.Databases) -> Iterator[servers.PostgresqlServer]:
    """A PostgreSQL server that the test may kill and freeze; it runs again afterwards."""
    if not isinstance(postgresql_server, servers.PostgresqlServer):
        pytest.skip("the server that CARINA_TEST_DATABASE_URL names is not ours to kill")
    yield postgresql_server
    postgresql_server.resume()
    postgresql_server.start()


@pytest.fixture(scope="session")
def broker_server() -> servers.BrokerServer | servers.GivenBroker:
    """The Valkey or Redis server of this run."""
    try:
        return servers.broker()
    except ServersUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture
def own_broker(broker_server: servers.BrokerServer | servers.GivenBroker) -> Iterator[servers.BrokerServer]:
    """A broker that the test may kill and freeze; it runs again afterwards."""
    if not isinstance(broker_server, servers.BrokerServer):
        pytest.skip("the broker that CARINA_TEST_BROKER_URL names is not ours to kill")
    yield broker_server
    broker_server.resume()
    broker_server.start()


@pytest.fixture
def postgresql_url(postgresql_server: servers.Databases) -> Iterator[str]:
    """A fresh PostgreSQL database of the newest version."""
    url = postgresql_server.fresh_database()
    yield url
    postgresql_server.drop(url)


@pytest.fixture
def empty_postgresql_url(postgresql_server: servers.Databases) -> Iterator[str]:
    """A fresh PostgreSQL database without tables."""
    url = postgresql_server.empty_database()
    yield url
    postgresql_server.drop(url)


@pytest.fixture(params=DIALECTS)
def database_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A fresh database of the newest version; not in ``tmp_path``, where a test may keep its films."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgresql_url"))
    file = tmp_path_factory.mktemp("database") / "carina.sqlite"
    shutil.copy(request.getfixturevalue("sqlite_template"), file)
    return f"sqlite:///{file}"


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A fresh database of the newest version, open."""
    opened = Database(database_url)
    yield opened
    opened.close()
