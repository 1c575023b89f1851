"""A listener in its own processes: killed, stopped, and spoken to by programs of others."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from dicom_files import save
from intake_rows import rows
from listener_peers import ListenerProcess, associate, echo, small_film, spooled, store, unfinished
from pydicom.dataset import Dataset
from waiting import wait_until

from schema import tables
from schema.database import Database

FILMS, SENDERS = 200, 4
STORESCU = "/usr/bin/storescu"
needs_dcmtk = pytest.mark.skipif(not Path(STORESCU).exists(), reason="dcmtk is not installed: apt-get install dcmtk")


class Sender(threading.Thread):
    """Sends films on one association until one is not acknowledged; notes those that were."""

    def __init__(self, port: int, films: list[Dataset]) -> None:
        super().__init__(daemon=True)
        self.port, self.films = port, films
        self.acknowledged: list[str] = []

    def run(self) -> None:
        association = associate(self.port, seconds=10.0)
        for film in self.films:
            if not association.is_established or association.send_c_store(film).get("Status") != 0:
                return
            self.acknowledged.append(str(film.SOPInstanceUID))
        association.release()


def send(port: int, films: list[Dataset]) -> list[Sender]:
    senders = [Sender(port, films[number::SENDERS]) for number in range(SENDERS)]
    for sender in senders:
        sender.start()
    return senders


def acknowledged(senders: list[Sender]) -> set[str]:
    return {uid for sender in senders for uid in sender.acknowledged}


def kill_amid(listener: ListenerProcess, films: list[Dataset], count: int, dice: random.Random) -> set[str]:
    """Send ``films`` and kill the listener once ``count`` are acknowledged; returns all that were."""
    senders = send(listener.port, films)
    wait_until(lambda: len(acknowledged(senders)) >= count, lambda: listener.log)
    time.sleep(dice.uniform(0.0, 0.05))
    listener.kill()
    for sender in senders:
        sender.join(60)
    return acknowledged(senders)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_kill_9_while_four_senders_send(tmp_path: Path, database_url: str, processes: int) -> None:
    films = [small_film(number) for number in range(FILMS)]
    database = Database(database_url)
    home = tmp_path / "home"
    dice = random.Random(processes)
    words = ("--processes", str(processes))
    safe: set[str] = set()
    with ListenerProcess(home, *words, database_url=database_url) as listener:
        for _ in range(2):
            left = [film for film in films if str(film.SOPInstanceUID) not in safe]
            safe |= kill_amid(listener, left, FILMS // 4, dice)
            assert 0 < len(safe) < FILMS
            # What was acknowledged is on the disk and in the ledger, now.
            known = {row.sop_instance_uid for row in rows(database, tables.instance_identity)}
            assert safe <= known
            assert len(spooled(home)) >= len(known)
            listener.start()
        # A film between disk and ledger is registered; one that was half received is gone.
        wait_until(lambda: len(rows(database, tables.arrival)) == len(spooled(home)), lambda: listener.log)
        # Senders send again whatever was not acknowledged to them, and for once all that was.
        senders = send(listener.port, films)
        for sender in senders:
            sender.join(120)
        assert len(acknowledged(senders)) == FILMS
        assert listener.stop() == 0
    assert len(spooled(home)) == FILMS
    assert unfinished(home) == []
    for table in (tables.instance, tables.arrival, tables.job):
        assert len(rows(database, table)) == FILMS, table.name
    assert all(row.state == "ready" and row.kind == "process" for row in rows(database, tables.job))
    assert "Traceback" not in listener.log
    database.close()


@pytest.mark.slow
def test_several_processes_share_the_port_and_one_that_dies_is_replaced(tmp_path: Path) -> None:
    with ListenerProcess(tmp_path / "home", "--processes", "2") as listener:
        wait_until(lambda: len(psutil.Process(listener.process.pid).children()) == 2, lambda: listener.log)
        victim = psutil.Process(listener.process.pid).children()[0]
        wait_until(lambda: echo(listener.port) == 0, lambda: listener.log)
        victim.kill()
        wait_until(
            lambda: len(psutil.Process(listener.process.pid).children()) == 2 and not victim.is_running(),
            lambda: listener.log,
        )
        wait_until(lambda: echo(listener.port) == 0, lambda: listener.log)
        other = ListenerProcess(listener.home, listen_port=listener.port)
        assert "Another listener uses this home folder" in other.refusal()
        assert listener.stop() == 0
    assert listener.log.count("Listening on") == 1


def test_it_says_what_it_does_and_stops_in_good_order(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with ListenerProcess(home, listen_senders="SENDER", listen_archive="SENDER") as listener:
        assert store(listener.port, small_film()) == [0]
        assert echo(listener.port, calling="OTHER") is None
        assert listener.stop() == 0
    assert f"Listening on 127.0.0.1 port {listener.port} as CARINA" in listener.log
    assert "Admitted: SENDER; from any address." in listener.log
    assert "1 films received" in listener.log and "AE title not admitted: 1" in listener.log
    database = Database(f"sqlite:///{home / 'carina.sqlite'}")
    (film,) = rows(database, tables.job)
    assert film.priority == tables.PRIORITY["archive"]
    assert str(home) not in listener.log and "2.25." not in listener.log
    database.close()


@pytest.mark.services
@needs_dcmtk
def test_dcmtk_sends_and_what_it_sent_is_processed(tmp_path: Path) -> None:
    from worker.phantom import make_phantom, phantom_dataset

    home, films = tmp_path / "home", tmp_path / "films"
    films.mkdir()
    for seed in (3, 4):
        phantom_dataset(make_phantom(seed, rows=256, columns=224)).save_as(films / f"{seed}.dcm")
    save(small_film(SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1.1"), films / "raw.dcm")
    with ListenerProcess(home) as listener:
        peer = ["--call", "CARINA", "127.0.0.1", str(listener.port)]
        assert subprocess.run(["/usr/bin/echoscu", *peer]).returncode == 0
        sent = subprocess.run(
            [STORESCU, "--verbose", "--no-halt", *peer, *map(str, sorted(films.iterdir()))],
            capture_output=True,
            text=True,
        )
        assert sent.stderr.count("Received Store Response (Success)") == 2, sent.stderr
        assert "RefusedSOPClassNotSupported" in sent.stderr.replace(" ", "").replace(":", "") or "0x0122" in sent.stderr
        worked = subprocess.run(
            [sys.executable, "-m", "worker.cli", "worker", "--until-idle"],
            env={"PATH": "/usr/bin:/bin", "CARINA_HOME": str(home), "CARINA_DISK_RESERVE": "0"},
            capture_output=True,
            text=True,
        )
        assert worked.returncode == 0, worked.stderr
    database = Database(f"sqlite:///{home / 'carina.sqlite'}")
    assert [row.state for row in rows(database, tables.job)] == ["done", "done"]
    database.close()
