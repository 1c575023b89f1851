from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from delivery_rows import destination, destination_row, rows, set_up, sooner, states
from dicom_node import DicomNode
from pydicom import Dataset
from read_films import ReadFilms
from waiting import wait_until
from web_archive import WebArchive

from schema.outputs import OutputKind
from worker.peers.configuration import Destination, WebPeer
from worker.results.delivery.courier import TROUBLES_IN_A_ROW, Courier
from worker.results.delivery.destinations import mirror
from worker.results.delivery.service import make_outbox

ALL = tuple(OutputKind)
MakeCourier = Callable[[Destination], Courier]


def maps(node: DicomNode) -> Destination:
    """Segmentations alone: a report takes a few times longer to make."""
    return destination(port=node.port, outputs=(OutputKind.SEGMENTATION,))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[ReadFilms]:
    made = ReadFilms.at(tmp_path)
    yield made
    made.database.close()


@pytest.fixture
def node() -> Iterator[DicomNode]:
    with DicomNode() as started:
        yield started


@pytest.fixture
def courier_to(site: ReadFilms) -> MakeCourier:
    """A courier to a destination that was set up a day ago."""

    def make(one: Destination) -> Courier:
        ids = mirror(site.database, {one.name: one}, actor="test")
        set_up(site.database, ids[one.name], timedelta(days=1))
        outbox = make_outbox(site.database, site.settings, ids[one.name], one)
        return Courier(site.database, site.settings, one, outbox, threading.Event())

    return make


def test_every_output_of_a_film_arrives_in_its_study(site: ReadFilms, node: DicomNode, courier_to: MakeCourier) -> None:
    site.add()
    with courier_to(destination(port=node.port, outputs=ALL)) as courier:
        courier.drain()
    assert states(site.database) == {"sent": 4}
    # Class activation maps are a picture for each finding.
    assert Counter(str(each.Modality) for each in node.received)["SEG"] == 1
    assert Counter(str(each.Modality) for each in node.received)["SR"] == 1
    assert {str(each.StudyInstanceUID) for each in node.received} == site.studies()
    assert len(node.uids) == len(set(node.uids))
    assert (courier.tally.sent, node.associations) == (4, 1)
    courier.drain()
    assert courier.tally.sent == 4


def test_the_same_over_http(site: ReadFilms, courier_to: MakeCourier) -> None:
    site.add(2)
    with WebArchive() as archive:
        courier_to(destination(peer=WebPeer(archive.url))).drain()
    assert states(site.database) == {"sent": 4}
    assert {str(each.StudyInstanceUID) for each in archive.stored} == site.studies()


def test_sent_again_an_object_has_the_same_name(site: ReadFilms, node: DicomNode, courier_to: MakeCourier) -> None:
    from worker.results.delivery.overview import resend

    site.add()
    courier = courier_to(maps(node))
    courier.drain()
    first = node.uids
    assert resend(site.database, actor="me", states=["sent"], destination="pacs") == 1
    courier.drain()
    assert node.uids == first * 2


def test_a_node_that_is_down_costs_nothing_and_is_served_when_it_is_back(
    site: ReadFilms, courier_to: MakeCourier, caplog: pytest.LogCaptureFixture
) -> None:
    site.add(2)
    node = DicomNode()
    courier = courier_to(maps(node))
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            courier.step(even_resting=True)
    assert states(site.database) == {"ready": 2}
    assert [row.attempts for row in rows(site.database)] == [0] * 2
    assert destination_row(site.database).failures == 4
    # Said once, not each time.
    assert [record.message.partition(":")[0] for record in caplog.records] == ["pacs"]
    with node:
        wait_until(lambda: courier.step() and states(site.database) == {"sent": 2}, "the delivery", 60)
    assert destination_row(site.database).failures == 0
    assert len(node.uids) == len(set(node.uids)) == 2


def test_a_full_node_rests_and_the_object_waits(site: ReadFilms, node: DicomNode, courier_to: MakeCourier) -> None:
    site.add()
    node.status = lambda dataset: 0xA700
    courier = courier_to(maps(node))
    courier.drain()
    assert states(site.database) == {"ready": 1}
    assert destination_row(site.database).code == "OUT_OF_RESOURCES"
    node.status = lambda dataset: 0
    courier.drain()
    assert states(site.database) == {"sent": 1}


def test_one_object_that_is_refused_does_not_stop_the_others(
    site: ReadFilms, node: DicomNode, courier_to: MakeCourier
) -> None:
    site.add(3)
    studies: list[str] = []

    def refuses_the_first_study(dataset: Dataset) -> int:
        studies.append(str(dataset.StudyInstanceUID))
        return 0xC000 if dataset.StudyInstanceUID == studies[0] else 0

    node.status = refuses_the_first_study
    courier = courier_to(maps(node))
    courier.drain()
    assert states(site.database) == {"failed": 1, "sent": 2}
    assert {row.code for row in rows(site.database, state="failed")} == {"CANNOT_UNDERSTAND"}
    assert destination_row(site.database).failures == 0


def test_a_node_that_fails_over_everything_is_let_alone(
    site: ReadFilms, node: DicomNode, courier_to: MakeCourier
) -> None:
    site.add(4)
    node.status = lambda dataset: 0x0110
    courier = courier_to(maps(node))
    courier.step()
    assert states(site.database) == {"delayed": TROUBLES_IN_A_ROW, "ready": 4 - TROUBLES_IN_A_ROW}
    assert destination_row(site.database).code == "SERVER_ERROR"
    node.status = lambda dataset: 0
    sooner(site.database, "available_at")
    courier.drain()
    assert states(site.database) == {"sent": 4}


def test_a_node_that_dies_over_an_object_gets_it_again(
    site: ReadFilms, node: DicomNode, courier_to: MakeCourier
) -> None:
    site.add(2)
    dead: list[bool] = []

    def dies_once(dataset: Dataset) -> int:
        if not dead:
            dead.append(True)
            # Only the association ends: a server that is shut down waits for this handler.
            for association in node._server.active_associations:
                association.abort()
        return 0

    node.status = dies_once
    courier = courier_to(maps(node))
    courier.step()
    (row,) = rows(site.database, state="delayed")
    assert (row.code, row.attempts) == ("NO_ANSWER", 1)
    sooner(site.database, "available_at")
    courier.drain()
    assert states(site.database) == {"sent": 2}


def test_a_film_whose_file_is_gone_waits_for_it(site: ReadFilms, node: DicomNode, courier_to: MakeCourier) -> None:
    site.add(4)
    hidden = [file.rename(file.with_suffix(".away")) for file in sorted(site.folder.iterdir())[:3]]
    courier = courier_to(maps(node))
    courier.drain()
    # However many there are, the node is not to blame.
    assert states(site.database) == {"delayed": 3, "sent": 1}
    assert {row.code for row in rows(site.database, state="delayed")} == {"SOURCE_MISSING"}
    assert destination_row(site.database).failures == 0
    for file in hidden:
        file.rename(file.with_suffix(".dcm"))
    sooner(site.database, "available_at")
    courier.drain()
    assert states(site.database) == {"sent": 4}


def test_a_fault_of_ours_over_one_film_is_that_films(
    site: ReadFilms, node: DicomNode, courier_to: MakeCourier, caplog: pytest.LogCaptureFixture
) -> None:
    from sqlalchemy import update

    from schema import tables

    broken, whole = site.add(2)
    with site.database.write() as connection:
        connection.execute(update(tables.segmentation).where(tables.segmentation.c.job_id == broken).values(mask=b"x"))
    courier_to(maps(node)).drain()
    assert {(row.job_id, row.state) for row in rows(site.database)} == {(broken, "failed"), (whole, "sent")}
    assert {row.code for row in rows(site.database, job_id=broken)} == {"OUTPUT_FAILED"}
    assert str(site.folder) not in caplog.text


def test_two_couriers_of_two_processes_send_each_output_once(
    site: ReadFilms, node: DicomNode, courier_to: MakeCourier
) -> None:
    site.add(5)
    one = maps(node)
    couriers = [courier_to(one), courier_to(one)]
    threads = [threading.Thread(target=courier.drain) for courier in couriers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    couriers[0].drain()
    assert states(site.database) == {"sent": 5}
    assert len(node.uids) == len(set(node.uids)) == 5
    assert sum(courier.tally.sent for courier in couriers) == 5
