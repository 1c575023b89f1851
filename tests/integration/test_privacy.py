"""A night over films that shout who they are: no log, no message and no ticket repeats it, at any level.

Every identifying attribute and every path holds a word, a date or a UID that nothing else holds.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import subprocess
import sys
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
from click.testing import CliRunner
from dicom_files import DEFLATED, JPEG_LS, chest_pixels, encode, encode_frame, make_dataset, set_frame, to_bytes
from pydicom import Dataset
from sqlalchemy import func, insert, select

from schema.database import Database
from schema.tables import instance_identity, job
from worker.cli import main
from worker.phantom import make_phantom, phantom_dataset

WORD, ROOT, DATES, TIME = "zebra", "2.25.404142", ("20190807", "2019-08-07", "20260213", "2026-02-13"), "031749"
#: What nothing that is written for people or programs may contain.
TRACES = (WORD, ROOT, *DATES, TIME)
PATIENT = "ZEBRA-4711"
#: Attributes of PS3.15 table E.1-1 that name somebody, as far as films carry them.
IDENTIFYING: dict[str, Any] = {
    "AccessionNumber": "ZEBRA-ACC",
    "AdmissionID": "ZEBRA-ADM",
    "DerivationDescription": "by Zebra",
    "DetectorID": "ZEBRA-DET",
    "DeviceSerialNumber": "ZEBRA-SER",
    "FrameOfReferenceUID": ROOT + "3",
    "ImageComments": "Zebra was restless",
    "InstitutionAddress": "1 Zebra Road",
    "InstitutionName": "Zebra Clinic",
    "InstitutionalDepartmentName": "Zebra Ward",
    "IssuerOfPatientID": "ZEBRA-ISSUER",
    "OperatorsName": "Zebra^Operator",
    "OtherPatientIDs": "ZEBRA-OTHER",
    "PatientAddress": "2 Zebra Road",
    "PatientBirthDate": DATES[0],
    "PatientComments": "son of Zebra",
    "PatientID": PATIENT,
    "PatientMotherBirthName": "Zebra^Mother",
    "PatientName": "Zebraname^Zebrafirst",
    "PatientTelephoneNumbers": "ZEBRA-555",
    "PerformingPhysicianName": "Zebra^Physician",
    "ProtocolName": "Zebra thorax",
    "ReferringPhysicianName": "Zebra^Referrer",
    "RequestedProcedureDescription": "Zebra check",
    "SeriesDescription": "Zebra a.p.",
    "SeriesInstanceUID": ROOT + "2",
    "StudyDate": DATES[2],
    "StudyDescription": "Thorax Zebra",
    "StudyID": "ZEBRA-ST",
    "StudyInstanceUID": ROOT + "1",
    "StudyTime": TIME,
}
_numbers = count(100)
DECLARED_ELSEWHERE = b"\x08\x00\x18\x00UI"


def identified(dataset: Dataset, **attributes: Any) -> Dataset:
    """The data set with everything that identifies, and a UID of its own."""
    named = {**IDENTIFYING, "SOPInstanceUID": f"{ROOT}.{next(_numbers)}", **attributes}
    for keyword, value in named.items():
        setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    return dataset


def film(**attributes: Any) -> Dataset:
    return identified(make_dataset(chest_pixels()), **attributes)


def chest(seed: int, **attributes: Any) -> Dataset:
    return identified(phantom_dataset(make_phantom(seed, rows=256, columns=224)), **attributes)


def colour() -> Dataset:
    dataset = film(SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    dataset.PixelData = np.zeros((120, 100, 3), np.uint16).tobytes()
    return dataset


def disagreeing_codestream() -> Dataset:
    dataset = encode(film(), JPEG_LS)
    set_frame(dataset, encode_frame(chest_pixels(64, 64), 12, JPEG_LS))
    return dataset


def archive() -> bytes:
    """A zip with a film, a damaged member and one that is encrypted."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        packed.writestr("Zebra/film.dcm", to_bytes(film()))
        packed.writestr("Zebra/damaged.dcm", to_bytes(film()) + b"ZEBRA-DAMAGED")
        packed.writestr("Zebra/locked.dcm", to_bytes(film()))
    data = stream.getvalue().replace(b"ZEBRA-DAMAGED", b"ZEBRA-damaged")
    place = data.rindex(b"PK\x01\x02")
    return data[: place + 8] + b"\x01" + data[place + 9 :]


_UNREADABLE_TEXT = b"Zebra\xff\xfe^\x1b$B"
#: Kind of trouble → the file's bytes.
FILES: dict[str, Callable[[], bytes]] = {
    "good": lambda: to_bytes(chest(3)),
    "good again": lambda: to_bytes(chest(3, SOPInstanceUID=f"{ROOT}.90")),
    "other patient": lambda: to_bytes(chest(4, PatientID="ZEBRA-4712")),
    "conflict one": lambda: to_bytes(chest(5, SOPInstanceUID=f"{ROOT}.91")),
    "conflict two": lambda: to_bytes(chest(6, SOPInstanceUID=f"{ROOT}.91")),
    "lateral": lambda: to_bytes(identified(make_dataset(np.zeros((300, 300), np.uint16)), ViewPosition="LL")),
    "skipped": lambda: to_bytes(film(BodyPartExamined="HAND")),
    "empty": bytes,
    "header cut": lambda: to_bytes(film())[:701],
    "pixels cut": lambda: to_bytes(film())[:-9000],
    "codestream": lambda: to_bytes(disagreeing_codestream()),
    "too large": lambda: to_bytes(film(Rows=65535, Columns=65535)),
    "no uid": lambda: to_bytes(film()).replace(DECLARED_ELSEWHERE, b"\x08\x00\x19\x00UI"),
    "bad uid": lambda: to_bytes(film(), SOPInstanceUID=("UI", b"ZEBRA-UID ")),
    "bad number": lambda: to_bytes(film(), NumberOfFrames=("IS", b"ZEBRA ")),
    "bad window": lambda: to_bytes(film(), WindowCenter=("DS", b"ZEBRA ")),
    "bad age": lambda: to_bytes(film(), PatientAge=("AS", b"ZEBRA ")),
    "bad characters": lambda: to_bytes(
        film(SpecificCharacterSet="ISO_IR 100"), PatientID=("LO", _UNREADABLE_TEXT)
    ).replace(b"ISO_IR 100", b"ZEBRA SETS"),
    "bad syntax": lambda: to_bytes(film()).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.113619.5.2.1"),
    "bad deflate": lambda: to_bytes(film()).replace(b"1.2.840.10008.1.2.1\0", DEFLATED.encode()[:20].ljust(20, b"\0")),
    "colour": lambda: to_bytes(colour()),
    "frames": lambda: to_bytes(film(NumberOfFrames=2)),
    "ct": lambda: to_bytes(film(SOPClassUID="1.2.840.10008.5.1.4.1.1.2", Modality="CT")),
    "no rows": lambda: to_bytes(film(Rows=None)),
    "not dicom": lambda: b"Zebra was here.",
}
RULES = """
[[rule]]
name = "hands"
decision = "skip"
reason = "only chests"
body_part = "HAND"
description = "*zebra*"
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a home, rules and films."""
    site = tmp_path_factory.mktemp("site")
    films = site / "Zebra" / "Zebraname^Zebrafirst"
    films.mkdir(parents=True)
    for name, make in FILES.items():
        (films / f"{name} ZEBRA.dcm").write_bytes(make())
    (films / "archive ZEBRA.zip").write_bytes(archive())
    (films / "no archive ZEBRA.zip").write_bytes(b"PK\x03\x04" + b"ZEBRA" * 40)
    (films / "nowhere ZEBRA.dcm").symlink_to(films / "gone ZEBRA.dcm")
    (films / "loop ZEBRA").symlink_to(films, target_is_directory=True)
    (site / "rules.toml").write_text(RULES)
    (site / "debug").mkdir()
    # Imported by every Python that starts: all loggers say all they have, also in children.
    (site / "debug" / "sitecustomize.py").write_text(
        "import logging, sys\n"
        "logging.basicConfig(stream=sys.stderr, level=logging.DEBUG)\n"
        "logging.debug('everything is logged')\n"
    )
    return site


def settings(site: Path, **more: str) -> dict[str, str]:
    return {
        "CARINA_HOME": str(site / "home"),
        "CARINA_RULES": str(site / "rules.toml"),
        "CARINA_DISK_RESERVE": "0",
        "CARINA_DECODERS": "1",
        "CARINA_POLL_SECONDS": "0.05",
        "CARINA_BACKOFF_SECONDS": "0.01",
        "CARINA_MAX_ATTEMPTS": "2",
        **more,
    }


@contextmanager
def everything_logged() -> Iterator[io.StringIO]:
    """Collects all that this process logs and warns about, with tracebacks."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        try:
            yield said
        finally:
            logging.captureWarnings(False)
            root.removeHandler(handler)
            root.setLevel(level)


def carina(site: Path, *words: str, code: int | None = 0, **more: str) -> str:
    """All that a command says and logs in this process, and the exception it ends with, if any."""
    with everything_logged() as said, pytest.MonkeyPatch.context() as patch:
        for name, value in settings(site, **more).items():
            patch.setenv(name, value)
        result = CliRunner().invoke(main, words)
        if result.exc_info is not None and not isinstance(result.exception, SystemExit | type(None)):
            traceback.print_exception(*result.exc_info, file=said)
    text = result.output + said.getvalue()
    assert code is None or result.exit_code == code, text
    return text


def found(text: str) -> set[str]:
    """The lines of ``text`` that give somebody away."""
    return {line for line in text.splitlines() if any(trace in line.lower() for trace in TRACES)}


@pytest.fixture(scope="module")
def night(site: Path) -> str:
    """All that ``carina run`` and its children say."""
    environment = {**os.environ, **settings(site), "PYTHONPATH": os.pathsep.join([str(site / "debug"), *sys.path])}
    run = subprocess.run(
        [sys.executable, "-m", "worker.cli", "-v", "run", str(site / "Zebra")],
        env=environment, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert run.returncode == 3, run.stdout + run.stderr
    return run.stdout + run.stderr


def codes(site: Path) -> set[str]:
    database = Database(f"sqlite:///{site / 'home' / 'carina.sqlite'}")
    with database.read() as connection:
        ended = set(connection.scalars(select(job.c.code).where(job.c.code.is_not(None))))
        ended |= {"done"} if connection.scalar(select(func.count()).where(job.c.state == "done")) else set()
    database.close()
    return ended


def test_a_night_says_nothing(night: str, site: Path) -> None:
    assert night.count("everything is logged") >= 2, "the worker does not log all it could"
    assert {"done", "RULE_SKIPPED", "MULTI_FRAME", "TRUNCATED_PIXELS", "CODESTREAM_MISMATCH"} <= codes(site)
    assert found(night) == set()


def test_details_in_the_ledger_say_nothing(night: str, site: Path) -> None:
    database = Database(f"sqlite:///{site / 'home' / 'carina.sqlite'}")
    with database.read() as connection:
        tables = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars().all()
        told = {
            name: found("\n".join(map(str, connection.exec_driver_sql(f'SELECT * FROM "{name}"').all())))
            for name in tables
            if name not in ("identity", "instance_identity")
        }
    database.close()
    assert {name: lines for name, lines in told.items() if lines} == {}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("rules", "check"), 0),
        (("submit", "FILMS", "--json"), 0),
        (("submit", "FILMS", "--dry-run"), 0),
        (("submit", "FILMS", "/nowhere/Zebra"), 1),
        (("watch", "/nowhere/Zebra"), 2),
        (("status",), 0),
        (("doctor",), None),
        (("retry", "--all"), 0),
        (("conflicts", "accept", "9999"), 1),
        (("report", "--out", "OUT"), 0),
        (("export", "--format", "png", "--out", "OUT"), 0),
        (("forget", PATIENT, "--dry-run"), 0),
        (("forget", "ZEBRA-NOBODY", "--yes"), 0),
        (("forget", PATIENT), 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_commands_say_nothing(night: str, site: Path, words: tuple[str, ...], code: int | None) -> None:
    places = {"FILMS": str(site / "Zebra"), "OUT": str(site / "out")}
    said = carina(site, *(places.get(word, word) for word in words), code=code)
    # Click repeats what was typed when it is no folder: only to whoever typed it.
    assert words[0] == "watch" or found(said) == set()


def test_rules_test_names_files_and_nothing_else(night: str, site: Path) -> None:
    films = sorted(path for path in (site / "Zebra").rglob("*.dcm") if path.is_file())
    said = carina(site, "rules", "test", *map(str, films), code=3)
    for path in films:
        said = said.replace(str(path), "a file")
    assert found(said) == set()


def test_failed_names_files_on_purpose_and_no_attribute(night: str, site: Path) -> None:
    said = carina(site, "failed", "--json", code=0)
    assert "ZEBRA.dcm" in said
    assert not any(word in said for word in ("ZEBRA-ACC", PATIENT, "Zebra Clinic", DATES[0]))


def test_an_exception_of_the_database_quotes_no_values(site: Path, night: str) -> None:
    database = Database(f"sqlite:///{site / 'home' / 'carina.sqlite'}")
    row = {"instance_id": 1, "sop_instance_uid": ROOT, "patient_id": PATIENT}
    with pytest.raises(Exception, match="UNIQUE") as refused, database.write() as connection:
        connection.execute(insert(instance_identity), [row, row])
    database.close()
    assert found("".join(traceback.format_exception(refused.value))) == set()


def test_forgetting_says_nothing_and_leaves_the_other_patient(night: str, site: Path, tmp_path: Path) -> None:
    shutil.copytree(site / "home", tmp_path / "home")
    said = carina(site, "forget", PATIENT, "--yes", CARINA_HOME=str(tmp_path / "home"))
    assert "Deleted:" in said and found(said) == set()
    content = b"".join(part.read_bytes() for part in (tmp_path / "home").glob("carina.sqlite*"))
    assert b"ZEBRA-4712" in content and b"ZEBRA-4711" not in content


class TestOverTheNetwork:
    """The listener, the pull and the delivery, with peers in this process."""

    def test_the_listener_says_nothing(self, site: Path, tmp_path: Path) -> None:
        pytest.importorskip("pynetdicom")
        from ledger_rows import fresh_database, settings_for
        from listener_peers import open_door, store
        from pydicom.uid import UID

        database = fresh_database(tmp_path)
        processing = film(SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1.1")
        foreign = film()
        foreign.file_meta.MediaStorageSOPInstanceUID = UID(f"{ROOT}.999")
        with (
            everything_logged() as said,
            open_door(database, settings_for(tmp_path, listen_port=0, listen_senders="MODALITY")) as door,
        ):
            statuses = store(door.port, film(), processing, foreign, film(SOPInstanceUID=""), calling="MODALITY")
        database.close()
        assert statuses[0] == 0 and found(said.getvalue()) == set()

    def test_the_pull_says_nothing(self, tmp_path: Path) -> None:
        pytest.importorskip("pynetdicom")
        pytest.importorskip("requests")
        from web_archive import Answer, WebArchive, is_retrieval

        films = [to_bytes(film()) for _ in range(3)]
        asked = count()

        def fault(method: str, path: str) -> Answer | None:
            number = next(asked)
            if is_retrieval(path) and number % 4 == 0:
                return Answer(404, b"Zebra has no such film", "text/plain")
            return None

        with WebArchive(films=films, fault=fault) as web:
            (tmp_path / "peers.toml").write_text(f'[source.archive]\nurl = "{web.url}"\n')
            (tmp_path / "accessions").write_text("ZEBRA-ACC\nZEBRA-NONE\n")
            (tmp_path / "rules.toml").write_text("")
            said = carina(
                tmp_path, "pull", "--accessions", str(tmp_path / "accessions"), code=None,
                CARINA_DELIVERY=str(tmp_path / "peers.toml"),
            )  # fmt: skip
        assert web.asked and found(said) == set()

    def test_the_delivery_says_nothing(self, night: str, site: Path, tmp_path: Path) -> None:
        pytest.importorskip("pynetdicom")
        pytest.importorskip("highdicom")
        from dicom_node import DicomNode
        from server_process import free_port
        from web_archive import WebArchive

        node = DicomNode()
        node.status = lambda dataset: 0xA900 if "Segmentation" in dataset.SOPClassUID.name else 0
        with node, WebArchive() as web:
            (tmp_path / "peers.toml").write_text(
                "".join(
                    f'[destination.{name}]\nkind = "{kind}"\n{where}\noutputs = ["segmentation", "report", "overlay"]\n'
                    for name, kind, where in (
                        ("node", "dicom", f'host = "127.0.0.1"\nport = {node.port}\nae_title = "PACS"'),
                        ("web", "dicomweb", f'url = "{web.url}"'),
                        ("away", "dicom", f'host = "127.0.0.1"\nport = {free_port()}\nae_title = "AWAY"'),
                    )
                )
            )
            said = carina(
                site, "deliver", "--once", "--backfill", "2020-01-01", code=None,
                CARINA_DELIVERY=str(tmp_path / "peers.toml"),
            )  # fmt: skip
        assert node.received and web.stored and found(said) == set()


@pytest.mark.services
def test_a_broker_is_told_nothing(
    site: Path, tmp_path: Path, broker_server: servers.BrokerServer | servers.GivenBroker
) -> None:
    redis = pytest.importorskip("redis")
    pytest.importorskip("celery")
    client = redis.Redis.from_url(broker_server.url)
    before = set(client.scan_iter("*"))
    carina(site, "submit", str(site / "Zebra"), CARINA_HOME=str(tmp_path / "home"), CARINA_BROKER_URL=broker_server.url)
    held = b"".join(key + (client.dump(key) or b"") for key in client.scan_iter("*"))
    written: Sequence[bytes] = [
        value for key in client.scan_iter("*", _type="list") for value in client.lrange(key, 0, -1)
    ]
    client.delete(*(set(client.scan_iter("*")) - before))
    client.close()
    assert b"carina" in held and written
    assert found(b"\n".join([held, *written]).decode("latin-1")) == set()
