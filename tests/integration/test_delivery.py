"""Results go to a real Orthanc and come back from it, by both doors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from orthanc import Orthanc
from pydicom import Dataset, dcmread
from server_process import ServersUnavailableError
from sqlalchemy import select
from waiting import wait_until

from schema import tables
from schema.database import Database
from schema.view_tables import published_result
from worker.film.geometry import to_film_grid
from worker.phantom import make_phantom, phantom_dataset
from worker.results.delivery.senders import SOP_CLASSES
from worker.results.export import geometry_of
from worker.results.masks import decode_mask

pytestmark = pytest.mark.services

FILMS = 3
FILE = """
[destination.dimse]
kind = "dicom"
host = "127.0.0.1"
port = {port}
ae_title = "ORTHANC"
outputs = ["segmentation", "report", "overlay"]
timeout_seconds = 20

[destination.web]
kind = "dicomweb"
url = "{url}"
user = "carina"
password_file = "password"
outputs = ["segmentation", "report", "overlay"]
timeout_seconds = 20

[source.web]
url = "{url}"
user = "carina"
password_file = "password"
timeout_seconds = 20
"""


@dataclass
class Hospital:
    """A home folder, its films, and the file that names the PACS."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "CARINA_HOME": str(self.folder / "home"),
            "CARINA_DELIVERY": str(self.folder / "peers.toml"),
            "CARINA_BACKOFF_SECONDS": "0.2",
            "CARINA_POLL_SECONDS": "0.2",
        }

    def knows(self, pacs: Orthanc) -> None:
        (self.folder / "peers.toml").write_text(FILE.format(port=pacs.port, url=pacs.dicomweb_url))
        (self.folder / "password").write_text(pacs.password)

    def carina(self, *words: str, codes: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "worker.cli", *words],
            env=self.environment, capture_output=True, text=True, timeout=280,
        )  # fmt: skip
        assert done.returncode in codes, done.stdout + done.stderr
        return done.stdout

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        with (self.folder / "deliver.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "worker.cli", *words], env=self.environment, stdout=log, stderr=log
            )

    def database(self) -> Database:
        return Database(f"sqlite:///{self.folder / 'home' / 'carina.sqlite'}")

    def standings(self) -> dict[str, dict[str, Any]]:
        return {one["name"]: one for one in json.loads(self.carina("deliver", "status", "--json"))}


@pytest.fixture
def pacs() -> Iterator[Orthanc]:
    try:
        server = Orthanc()
    except ServersUnavailableError as error:
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture
def hospital(tmp_path: Path, pacs: Orthanc) -> Hospital:
    made = Hospital(tmp_path)
    made.knows(pacs)
    return made


@pytest.fixture
def night(hospital: Hospital) -> Hospital:
    """Films that were read, with destinations that were known before."""
    hospital.carina("deliver", "--once")
    films = hospital.folder / "films"
    films.mkdir()
    for number in range(FILMS):
        phantom_dataset(make_phantom(number + 1, rows=320, columns=288)).save_as(films / f"{number}.dcm")
    hospital.carina("run", str(films), codes=(0, 3))
    return hospital


def stored_maps(hospital: Hospital) -> dict[str, np.ndarray]:
    """SOP Instance UID of a film → its label map on the film's grid, from the database."""
    database = hospital.database()
    of_film = tables.instance_identity.c.instance_id == published_result.c.instance_id
    query = (
        select(tables.segmentation, tables.instance_identity.c.sop_instance_uid)
        .join(published_result, published_result.c.job_id == tables.segmentation.c.job_id)
        .join(tables.instance_identity, of_film)
    )
    with database.read() as connection:
        rows = connection.execute(query).all()
    database.close()
    return {
        row.sop_instance_uid: to_film_grid(decode_mask(row.mask, (row.height, row.width)), geometry_of(row))
        for row in rows
    }


def film_of(segmentation: Dataset) -> str:
    return str(segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID)


def assert_delivered_whole(hospital: Hospital, held: list[Dataset]) -> None:
    maps = stored_maps(hospital)
    assert len(maps) == FILMS
    assert Counter(each.SOPClassUID for each in held) == dict.fromkeys(SOP_CLASSES, FILMS)
    films = {str(dcmread(file).StudyInstanceUID) for file in (hospital.folder / "films").iterdir()}
    assert {str(each.StudyInstanceUID) for each in held} == films
    for each in (each for each in held if each.Modality == "SEG"):
        expected = maps[film_of(each)]
        frames = each.pixel_array.reshape(-1, *expected.shape)
        numbers = [
            int(item.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
            for item in each.PerFrameFunctionalGroupsSequence
        ]
        found = np.zeros_like(expected)
        for number, frame in zip(numbers, frames, strict=True):
            found[frame.astype(bool)] = number
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("door", ["dimse", "web"])
def test_what_comes_back_from_the_pacs_is_what_the_database_holds(night: Hospital, pacs: Orthanc, door: str) -> None:
    report = json.loads(night.carina("deliver", "--once", "--destination", door, "--json"))
    assert report["destinations"][door]["sent"] == 3 * FILMS
    assert_delivered_whole(night, pacs.instances())
    # Sent again it is the same: the PACS knows every object.
    night.carina("deliver", "resend", "--state", "sent", "--all")
    night.carina("deliver", "--once", "--destination", door)
    assert len(pacs.get("instances")) == 3 * FILMS
    assert night.standings()[door]["counts"] == {"sent": 3 * FILMS}


def test_a_pacs_that_is_down_all_night_gets_everything_once_afterwards(hospital: Hospital, pacs: Orthanc) -> None:
    hospital.carina("deliver", "--once")
    pacs.kill9()
    deliverers = [hospital.start("deliver") for _ in range(2)]
    try:
        films = hospital.folder / "films"
        films.mkdir()
        for number in range(FILMS):
            phantom_dataset(make_phantom(number + 1, rows=320, columns=288)).save_as(films / f"{number}.dcm")
        # The night is done as if there were no PACS.
        hospital.carina("run", str(films), codes=(0, 3))

        def both_noticed() -> bool:
            found = hospital.standings()
            return all(found[name]["code"] == "UNREACHABLE" and found[name]["open"] == 9 for name in ("dimse", "web"))

        wait_until(both_noticed, lambda: str(hospital.standings()))
        pacs.start()
        wait_until(
            lambda: all(one["counts"] == {"sent": 9} for one in hospital.standings().values()),
            lambda: str(hospital.standings()),
        )
    finally:
        for process in deliverers:
            process.terminate()
        codes = [process.wait(60) for process in deliverers]
    assert codes == [0, 0]
    assert_delivered_whole(hospital, pacs.instances())
    sent = (hospital.folder / "deliver.log").read_text()
    # Both processes together sent each output once to each destination.
    assert sum(int(line.split()[1]) for line in sent.splitlines() if " sent, " in line) == 18
    assert "Traceback" not in sent


def test_a_pacs_that_freezes_in_the_middle_holds_up_nobody_and_gets_the_rest(night: Hospital, pacs: Orthanc) -> None:
    text = (night.folder / "peers.toml").read_text().replace("timeout_seconds = 20", "timeout_seconds = 1")
    (night.folder / "peers.toml").write_text(text)
    with pacs.paused():
        night.carina("deliver", "--once", codes=(3,))
    found = night.standings()
    assert all(one["open"] == 9 and not one["counts"].get("failed") for one in found.values()), found
    (night.folder / "peers.toml").write_text(text.replace("timeout_seconds = 1", "timeout_seconds = 20"))
    process = night.start("deliver")
    try:
        wait_until(
            lambda: all(one["counts"] == {"sent": 9} for one in night.standings().values()),
            lambda: str(night.standings()),
        )
    finally:
        process.terminate()
        process.wait(60)
    assert_delivered_whole(night, pacs.instances())


def test_films_are_pulled_by_accession_number_and_by_day(hospital: Hospital, pacs: Orthanc) -> None:
    films = [phantom_dataset(make_phantom(number, rows=256, columns=224)) for number in (1, 2, 3)]
    for number, film in enumerate(films):
        film.AccessionNumber = f"ACC{number}"
        film.StudyDate = f"2026030{number + 1}"
        pacs.store(film)
    (hospital.folder / "list").write_text("ACC1\n")
    by_number = json.loads(hospital.carina("pull", "--accessions", str(hospital.folder / "list"), "--json"))
    assert (by_number["pulled"], by_number["registered"]) == (1, 1)
    by_day = json.loads(hospital.carina("pull", "--since", "2026-03-01", "--until", "2026-03-02", "--json"))
    assert (by_day["known"], by_day["pulled"], by_day["registered"]) == (1, 1, 1)
    spooled = [dcmread(file) for file in (hospital.folder / "home" / "spool" / "films").rglob("*.dcm")]
    expected = {str(film.SOPInstanceUID): film.PixelData for film in films[:2]}
    assert {str(film.SOPInstanceUID): film.PixelData for film in spooled} == expected
    hospital.carina("worker", "--until-idle")
    database = hospital.database()
    with database.read() as connection:
        assert set(connection.scalars(select(tables.job.c.state))) <= {"done", "ineligible"}
    database.close()
