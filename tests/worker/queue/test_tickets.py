from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import pytest
import servers
from ledger_rows import Ledger, job_states, settings_for
from proxy import Proxy
from sqlalchemy import update

from schema import tables
from worker.intake.scan import submit
from worker.intake.watch import watch
from worker.phantom import make_phantom, phantom_dataset
from worker.queue.ledger import register_worker
from worker.settings import Settings

pytest.importorskip("celery")

from worker.queue import tickets
from worker.queue.app import QUEUE, make_app
from worker.queue.loop import IN_FLIGHT
from worker.queue.tickets import TICKETS_PER_SLOT, announcing

NOBODY = "redis://127.0.0.1:1/0"


@pytest.fixture
def broker(own_broker: servers.BrokerServer) -> Iterator[servers.BrokerServer]:
    flush(own_broker)
    yield own_broker
    own_broker.start()
    flush(own_broker)


def flush(broker: servers.BrokerServer) -> None:
    assert "+OK" in broker.ask(f"AUTH {broker.password}", "FLUSHALL")


def waiting(settings: Settings) -> int:
    with make_app(settings).connection_for_read() as connection:
        return int(connection.default_channel.queue_declare(queue=QUEUE, durable=True).message_count)


def announce(ledger: Ledger, settings: Settings, *films: int) -> int:
    """Announce, wait until it is sent, and say how many tickets wait now."""
    with announcing(settings, ledger.database) as tell:
        for count in films:
            tell(count)
    return waiting(settings)


def test_without_a_broker_there_is_nothing_to_do(ledger: Ledger) -> None:
    before = threading.active_count()
    with announcing(ledger.settings, ledger.database) as tell:
        tell(1000)
        assert threading.active_count() == before


@pytest.mark.services
class TestWithBroker:
    def settings(self, ledger: Ledger, broker: servers.BrokerServer, **changes: object) -> Settings:
        return settings_for(ledger.settings.home, broker_url=broker.url, **changes)

    @pytest.mark.parametrize(("films", "sent"), [(0, 0), (1, 1), (16, 1), (17, 2), (48, 3)])
    def test_a_ticket_for_each_batch(self, ledger: Ledger, broker: servers.BrokerServer, films: int, sent: int) -> None:
        assert announce(ledger, self.settings(ledger, broker), films) == sent

    def test_never_many_more_than_the_workers_can_use(self, ledger: Ledger, broker: servers.BrokerServer) -> None:
        settings = self.settings(ledger, broker)
        bound = TICKETS_PER_SLOT * IN_FLIGHT
        assert announce(ledger, settings, *[1000] * 20) == bound
        second = register_worker(ledger.database, settings, "two")
        assert announce(ledger, settings, 1000) == 2 * bound
        assert announce(ledger, settings, 1000) == 2 * bound
        second.release_name()

    def test_workers_that_are_gone_do_not_count(self, ledger: Ledger, broker: servers.BrokerServer) -> None:
        settings = self.settings(ledger, broker, lease_seconds=0.0)
        with ledger.database.write() as connection:
            connection.execute(update(tables.worker).values(seen_at=tables.worker.c.started_at))
        assert announce(ledger, settings, 1000) == TICKETS_PER_SLOT * IN_FLIGHT

    def test_a_flushed_broker_takes_tickets_at_once(self, ledger: Ledger, broker: servers.BrokerServer) -> None:
        settings = self.settings(ledger, broker)
        assert announce(ledger, settings, 16) == 1
        flush(broker)
        assert announce(ledger, settings, 16) == 1

    def test_a_broker_that_comes_back_is_used_again(
        self,
        ledger: Ledger,
        broker: servers.BrokerServer,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(tickets, "_REST_SECONDS", 0.0)
        settings = self.settings(ledger, broker)
        with caplog.at_level(logging.WARNING), announcing(settings, ledger.database) as tell:
            tell(16)
            servers.wait_until(lambda: waiting(settings) == 1, "the first ticket")
            broker.kill9()
            for _ in range(3):
                tell(16)
                servers.wait_until(lambda: "takes no tickets" in caplog.text, "the outage to be noticed")
            broker.start()

            def arrived() -> bool:
                tell(16)
                return "takes tickets again" in caplog.text

            servers.wait_until(arrived, "the broker to be used again")
        assert caplog.text.count("takes no tickets") == 1
        assert waiting(settings) >= 1

    def test_a_broker_that_swallows_everything_holds_nobody_up(
        self, ledger: Ledger, broker: servers.BrokerServer
    ) -> None:
        with contextlib.closing(Proxy(broker.port)) as proxy:
            proxy.mode = "blackhole"
            url = broker.url.replace(f":{broker.port}/", f":{proxy.port}/")
            with announcing(settings_for(ledger.settings.home, broker_url=url), ledger.database) as tell:
                for _ in range(100):
                    tell(16)
        assert waiting(self.settings(ledger, broker)) == 0


def test_a_broker_that_is_away_is_said_once_and_then_left_alone(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(ledger.settings.home, broker_url=NOBODY)
    with caplog.at_level(logging.WARNING), announcing(settings, ledger.database) as tell:
        for _ in range(50):
            tell(16)
        servers.wait_until(lambda: "takes no tickets" in caplog.text, "the outage to be noticed")
        for _ in range(50):
            tell(16)
    assert caplog.text.count("takes no tickets") == 1
    assert "127.0.0.1" not in caplog.text


class TestWhenItIsSaid:
    """After the commit: whoever hears it finds the films."""

    def folder(self, tmp_path: Path, count: int) -> Path:
        folder = tmp_path / "films"
        folder.mkdir()
        for number in range(count):
            phantom_dataset(make_phantom(number, rows=128, columns=112)).save_as(folder / f"{number}.dcm")
        (folder / "README").write_text("hello")
        return folder

    def test_of_each_chunk_of_a_submission(self, ledger: Ledger, tmp_path: Path) -> None:
        settings = settings_for(ledger.settings.home, scan_chunk=2)
        heard: list[tuple[int, int]] = []

        def announce(films: int) -> None:
            heard.append((films, len(job_states(ledger.database))))

        folder = self.folder(tmp_path, 5)
        submit(ledger.database, settings, [folder], dry_run=True, announce=announce)
        assert heard == []
        submit(ledger.database, settings, [folder], announce=announce)
        assert sum(films for films, _ in heard) == 5
        assert [ready for _, ready in heard] == list(accumulate(films for films, _ in heard))
        submit(ledger.database, settings, [folder], announce=announce)
        assert sum(films for films, _ in heard) == 5

    def test_of_what_appears_in_a_watched_folder(self, ledger: Ledger, tmp_path: Path) -> None:
        settings = settings_for(ledger.settings.home, settle_seconds=0.0)
        stop = threading.Event()
        heard: list[tuple[int, int]] = []

        def announce(films: int) -> None:
            heard.append((films, len(job_states(ledger.database))))
            if sum(films for films, _ in heard) == 2:
                stop.set()

        watch(ledger.database, settings, self.folder(tmp_path, 2), stop=stop, announce=announce)
        assert [ready for _, ready in heard] == list(accumulate(films for films, _ in heard))
