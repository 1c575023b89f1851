from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from delivery_rows import rows, states
from dicom_node import DicomNode
from read_films import ReadFilms
from server_process import free_port
from sqlalchemy import select
from waiting import wait_until

from schema import tables
from worker.errors import CarinaError
from worker.results.delivery.overview import resend, standings
from worker.results.delivery.service import check_destination, deliver

FILE = """
[destination.pacs]
kind = "dicom"
host = "127.0.0.1"
port = {pacs}
ae_title = "PACS"
outputs = ["segmentation"]

[destination.other]
kind = "dicom"
host = "127.0.0.1"
port = {other}
ae_title = "OTHER"
timeout_seconds = 2
outputs = ["report"]
"""


@pytest.fixture
def node() -> Iterator[DicomNode]:
    with DicomNode() as started:
        yield started


@pytest.fixture
def site(tmp_path: Path, node: DicomNode) -> Iterator[ReadFilms]:
    (tmp_path / "peers.toml").write_text(FILE.format(pacs=node.port, other=free_port()))
    made = ReadFilms.at(tmp_path, delivery=str(tmp_path / "peers.toml"))
    # Destinations are known from the first start on.
    deliver(made.database, made.settings, actor="me", stop=threading.Event(), once=True)
    yield made
    made.database.close()


def test_a_dead_destination_costs_the_others_nothing(site: ReadFilms, node: DicomNode) -> None:
    site.add(2)
    lines: list[str] = []
    stop = threading.Event()
    report = deliver(site.database, site.settings, actor="me", stop=stop, once=True, say=lines.append)
    assert {name: tally.sent for name, tally in report.destinations.items()} == {"pacs": 2, "other": 0}
    assert lines[0] == f"pacs: segmentation to PACS at 127.0.0.1:{node.port}"
    assert len(node.received) == 2
    pacs, other = (one for name in ("pacs", "other") for one in standings(site.database) if one.name == name)
    assert (pacs.counts, pacs.code, pacs.words) == ({"sent": 2}, None, "")
    assert (other.counts, other.open, other.code) == ({"ready": 2}, 2, "UNREACHABLE")
    assert other.words.startswith("The other system cannot be reached. Check its address")
    assert other.oldest_open_seconds is not None and other.to_json()["open"] == 2


def test_it_runs_until_it_is_stopped_and_takes_what_comes(site: ReadFilms, node: DicomNode) -> None:
    stop = threading.Event()
    arguments = {"actor": "me", "stop": stop, "only": ["pacs"]}
    thread = threading.Thread(target=deliver, args=(site.database, site.settings), kwargs=arguments)
    thread.start()
    site.add()
    wait_until(lambda: len(node.received) == 1, "the first film", 60)
    site.add()
    wait_until(lambda: len(node.received) == 2, "the second film", 60)
    stop.set()
    thread.join(60)
    assert not thread.is_alive()


def test_only_the_named_destinations_are_served(site: ReadFilms) -> None:
    site.add()
    report = deliver(site.database, site.settings, actor="me", stop=threading.Event(), once=True, only=["other"])
    assert list(report.destinations) == ["other"]
    assert states(site.database) == {"ready": 1}
    with pytest.raises(CarinaError, match="No destination is called pax: pacs, other are known"):
        deliver(site.database, site.settings, actor="me", stop=threading.Event(), once=True, only=["pax"])


def test_without_a_file_or_without_a_destination_in_it(site: ReadFilms, tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text("")
    for file, said in (("", "name it in CARINA_DELIVERY"), (str(tmp_path / "empty.toml"), "has no .destination.NAME.")):
        with pytest.raises(CarinaError, match=said):
            deliver(site.database, replace(site.settings, delivery=file), actor="me", stop=threading.Event())


def test_asking_a_destination(site: ReadFilms, node: DicomNode) -> None:
    assert check_destination(site.settings, "pacs")[0] == "C-ECHO: status 0000H"
    with pytest.raises(CarinaError, match="cannot be reached"):
        check_destination(site.settings, "other")
    with pytest.raises(CarinaError, match="no destination or source called nobody"):
        check_destination(site.settings, "nobody")


def test_dead_letters_are_sent_again_when_a_person_says_so(site: ReadFilms, node: DicomNode) -> None:
    first, second = site.add(2)
    node.status = lambda dataset: 0xA900
    run = {"actor": "me", "stop": threading.Event(), "once": True, "only": ["pacs"]}
    deliver(site.database, site.settings, **run)
    (pacs,) = (one for one in standings(site.database) if one.name == "pacs")
    assert pacs.counts == {"failed": 2}
    assert pacs.words == "2 x The other system says that the object does not match its class."
    node.status = lambda dataset: 0
    assert resend(site.database, actor="me", destination="other") == 0
    assert resend(site.database, actor="me", jobs=[first]) == 1
    deliver(site.database, site.settings, **run)
    assert {row.job_id for row in rows(site.database, state="sent")} == {first}
    assert resend(site.database, actor="me") == 1
    deliver(site.database, site.settings, **run)
    assert {row.job_id for row in rows(site.database, state="sent")} == {first, second}
    with pytest.raises(CarinaError, match="No destination is called nobody"):
        resend(site.database, actor="me", destination="nobody")
    with site.database.read() as connection:
        audit = connection.execute(select(tables.audit_event).where(tables.audit_event.c.action == "resend")).all()
    assert [(row.actor, row.detail["outputs"]) for row in audit] == [("me", 1), ("me", 1)]
