"""Peers of a listener: one in this process, one in its own, senders, and connections that mean no good."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import EXPLICIT, make_dataset
from pydicom.dataset import Dataset
from server_process import free_port
from waiting import wait_until

from schema.database import Database
from worker.intake.listener.gate import Gate
from worker.intake.listener.group_commit import GroupCommit
from worker.intake.listener.policy import read_policy
from worker.intake.listener.spool import Spool
from worker.intake.listener.storage import Storage
from worker.intake.listener.tally import Tally
from worker.intake.rules import PROCESS_EVERYTHING
from worker.settings import Settings, site_key

pynetdicom = pytest.importorskip("pynetdicom")

from pynetdicom.dimse_primitives import C_STORE  # noqa: E402
from pynetdicom.dsutils import encode  # noqa: E402

from worker.intake.listener.server import Listener  # noqa: E402 - only where pynetdicom is installed

ROOT = Path(__file__).resolve().parents[1]
DX = "1.2.840.10008.5.1.4.1.1.1.1"
ECHO = "1.2.840.10008.1.1"


@dataclass
class Door:
    """A listener and what it works with."""

    port: int
    spool: Spool
    tally: Tally = field(default_factory=Tally)


@contextlib.contextmanager
def open_door(database: Database, settings: Settings) -> Iterator[Door]:
    """A listener in this process, on a free port."""
    policy, spool, tally = read_policy(settings), Spool(settings), Tally()
    gate = Gate(database, settings)
    with (
        spool.scratch() as scratch,
        GroupCommit(database, site_key(settings), PROCESS_EVERYTHING) as commit,
        Listener(policy, Storage(spool, commit, gate, tally), gate, tally, scratch) as listener,
    ):
        yield Door(listener.port, spool, tally)


def small_film(level: int = 0, side: int = 8, **attributes: Any) -> Dataset:
    """A tiny radiograph of its own content."""
    pixels = np.zeros((side, side), np.uint16)
    pixels[0, 0] = level
    dataset = make_dataset(pixels, **attributes)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def associate(
    port: int,
    *,
    calling: str = "SENDER",
    called: str = "CARINA",
    classes: Sequence[str] = (DX,),
    syntaxes: Sequence[str] = (EXPLICIT,),
    tls: ssl.SSLContext | None = None,
    seconds: float = 20.0,
) -> Any:
    """An association with the listener, or one that was refused."""
    application = pynetdicom.AE(ae_title=calling)
    application.acse_timeout = application.dimse_timeout = application.network_timeout = seconds
    application.connection_timeout = seconds
    application.add_requested_context(ECHO)
    for uid in classes:
        application.add_requested_context(uid, list(syntaxes))
    options = {"tls_args": (tls, "localhost")} if tls else {}
    return application.associate("127.0.0.1", port, ae_title=called, **options)


def store(port: int, *films: Dataset, **options: Any) -> list[int | None]:
    """The status of each film; None for those that were not answered."""
    options.setdefault("classes", sorted({str(film.SOPClassUID) for film in films}))
    association = associate(port, **options)
    statuses: list[int | None] = []
    try:
        for film in films:
            if not association.is_established:
                statuses.append(None)
                continue
            statuses.append(getattr(association.send_c_store(film), "Status", None))
    finally:
        if association.is_established:
            association.release()
    return statuses


def answer(port: int, film: Dataset, **options: Any) -> tuple[int, str]:
    """Status and error comment of one film."""
    association = associate(port, classes=[str(film.SOPClassUID)], **options)
    assert association.is_established
    try:
        found = association.send_c_store(film)
    finally:
        association.release()
    return int(found.Status), str(found.get("ErrorComment", ""))


def echo(port: int, **options: Any) -> int | None:
    """The status of a C-ECHO; None where no association was had."""
    association = associate(port, classes=(), **options)
    if not association.is_established:
        return None
    try:
        return getattr(association.send_c_echo(), "Status", None)
    finally:
        association.release()


def encoded(film: Dataset) -> bytes:
    """A data set in Explicit VR Little Endian."""
    return bytes(encode(film, False, True) or b"")


def send_raw(association: Any, data: bytes, *, uid: str, sop_class: str = DX) -> int | None:
    """Store bytes as they are; the status, or None where the association ended."""
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = sop_class, uid
    request.DataSet = BytesIO(data)
    context = next(item for item in association.accepted_contexts if item.abstract_syntax == DX)
    association._reactor_checkpoint.clear()
    association.dimse.send_msg(request, context.context_id)
    _, reply = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    return None if reply is None else int(reply.Status)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


class ListenerProcess:
    """``carina listen`` in its own process; everything it says is in :attr:`log`."""

    def __init__(self, home: Path, *words: str, **settings: Any) -> None:
        self.home = home
        self.port = int(settings.pop("listen_port", 0)) or free_port()
        self._words = words
        given = {"home": home, "disk_reserve": 0, "listen_port": self.port, **settings}
        self._environment = {f"CARINA_{name.upper()}": str(value) for name, value in given.items()}
        self._file = home.with_suffix(".log")

    @property
    def log(self) -> str:
        return self._file.read_text("utf-8") if self._file.exists() else ""

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._launch()
        wait_until(lambda: self._answers() or self.process.poll() is not None, lambda: self.log)
        assert self.process.poll() is None, self.log

    def refusal(self) -> str:
        """What it says when it ends at once, with exit code 1."""
        self._launch()
        assert self.process.wait(60) == 1
        return self.log

    def _launch(self) -> None:
        with self._file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worker.cli", "--verbose", "listen", *self._words],
                cwd=ROOT,
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _answers(self) -> bool:
        try:
            connect(self.port).close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL; its children go with it."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.terminate()
        return self.process.wait(60)

    def __enter__(self) -> ListenerProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def spooled(home: Path) -> list[Path]:
    """The films in a spool."""
    return sorted((home / "spool" / "films").rglob("*.dcm"))


def unfinished(home: Path) -> list[Path]:
    """What is being received."""
    return [file for file in (home / "spool" / "incoming").rglob("*") if file.is_file()]
