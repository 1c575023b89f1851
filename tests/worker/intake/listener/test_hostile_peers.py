"""Peers that mean no good, or are broken: a good one is served all the while."""

from __future__ import annotations

import random
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from listener_peers import (
    DX,
    Door,
    answer,
    associate,
    connect,
    echo,
    encoded,
    open_door,
    send_raw,
    small_film,
    spooled,
    store,
    unfinished,
)
from waiting import wait_until

from schema.database import Database
from worker.intake.listener.association import LONGEST_PDU
from worker.settings import Settings

#: A good peer is served within so long, whatever the others do.
SERVED_SECONDS = 5.0


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, listen_port=0)


def served(door: Door, **options: object) -> None:
    """A good peer stores a film, in time."""
    started = time.monotonic()
    assert answer(door.port, small_film(int(started * 1000) % 4096), **options) == (0, "")  # type: ignore[arg-type]
    assert time.monotonic() - started < SERVED_SECONDS


@pytest.fixture
def door(database: Database, settings: Settings) -> Iterator[Door]:
    with open_door(database, settings) as opened:
        yield opened


@pytest.fixture
def peers() -> Iterator[list[socket.socket]]:
    opened: list[socket.socket] = []
    yield opened
    for peer in opened:
        peer.close()


def threads() -> int:
    return threading.active_count()


def test_idle_connections_do_not_lock_anybody_out(door: Door, peers: list[socket.socket]) -> None:
    before = threads()
    peers += [connect(door.port) for _ in range(200)]
    for _ in range(3):
        served(door)
    assert threads() < before + 2 * 110
    # None of them is kept for long.
    wait_until(lambda: threads() <= before + 1, lambda: f"{threads()} threads, {before} before", seconds=60)
    assert "idle, gave way" in door.tally.line()


def test_idle_associations_give_way(database: Database, settings: Settings) -> None:
    with open_door(database, replace(settings, listen_connections=5)) as door:
        idle = [associate(door.port) for _ in range(5)]
        assert all(association.is_established for association in idle)
        wait_until(lambda: echo(door.port) == 0, "an association that had been idle to give way", seconds=20)
        for association in idle:
            association.abort()


@pytest.mark.parametrize("kind", [0x01, 0x04])
def test_a_pdu_that_claims_4_gigabytes_is_not_waited_for(door: Door, peers: list[socket.socket], kind: int) -> None:
    memory = psutil.Process().memory_info().rss
    for length in (0xFFFFFFFF, LONGEST_PDU + 1):
        peer = connect(door.port)
        peers.append(peer)
        peer.sendall(struct.pack(">BBL", kind, 0, length) + b"\0" * 4096)
        assert closed(peer)
    served(door)
    assert psutil.Process().memory_info().rss - memory < 64 << 20


def closed(peer: socket.socket) -> bool:
    """Whether the other side ends the connection, whatever it says before."""
    with suppress(ConnectionError):
        while peer.recv(4096):
            pass
    return True


def test_data_that_never_end_are_cut_off(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.intake.listener.association.MAX_FILE_BYTES", 200_000)
    with open_door(database, settings) as door:
        assert store(door.port, small_film(side=400)) == [None]
        assert store(door.port, small_film(side=200)) == [0]
        wait_until(lambda: not unfinished(settings.home), "the half film to go", seconds=20)


def test_a_disk_that_fills_up_while_a_film_comes(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.intake.listener.association._DISK_STEP", 100_000)
    with open_door(database, replace(settings, disk_reserve=1 << 60)) as door:
        assert store(door.port, small_film(side=400)) == [None]
        wait_until(lambda: not unfinished(settings.home), "the half film to go", seconds=20)


def test_an_endless_command_set_is_cut_off(door: Door) -> None:
    association = associate(door.port)
    context = association.accepted_contexts[0].context_id
    piece = bytes([context, 0x01]) + b"\0" * 16_000
    pdv = struct.pack(">L", len(piece)) + piece
    connection = association.dul.socket.socket
    with suppress(OSError):
        for _ in range(64):
            connection.sendall(struct.pack(">BBL", 4, 0, len(pdv)) + pdv)
    wait_until(lambda: not association.is_established, "the association to be aborted", seconds=20)
    served(door)


def test_a_peer_that_is_slow_within_its_request_is_let_go(door: Door, peers: list[socket.socket]) -> None:
    peer = connect(door.port)
    peers.append(peer)
    peer.sendall(struct.pack(">BBL", 1, 0, 500) + b"\0")
    served(door)
    assert closed(peer)


def test_noise_of_every_kind(door: Door, settings: Settings) -> None:
    dice = random.Random(5)
    before = threads()
    request = association_request()
    for number in range(60):
        with connect(door.port) as peer, suppress(OSError):
            if number % 3 == 0:
                peer.sendall(dice.randbytes(dice.randrange(1, 300)))
            else:
                damaged = bytearray(request)
                for _ in range(dice.randrange(1, 12)):
                    damaged[dice.randrange(6, len(damaged))] = dice.randrange(256)
                peer.sendall(bytes(damaged[: dice.randrange(10, len(damaged) + 1)]))
    served(door)
    wait_until(lambda: threads() <= before + 1, lambda: f"{threads()} threads, {before} before", seconds=60)
    assert unfinished(settings.home) == []


def association_request() -> bytes:
    """A good A-ASSOCIATE-RQ, as a peer sends it."""
    import pynetdicom
    from pynetdicom.pdu import A_ASSOCIATE_RQ
    from pynetdicom.pdu_primitives import (
        A_ASSOCIATE,
        ImplementationClassUIDNotification,
        MaximumLengthNotification,
    )

    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = "SENDER", "CARINA"
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received, implementation.implementation_class_uid = 16_384, "2.25.1"
    primitive.user_information = [length, implementation]
    context = pynetdicom.build_context(DX)
    context.context_id = 1
    primitive.presentation_context_definition_list = [context]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return bytes(pdu.encode())


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(200, id="short"),
        pytest.param(10_000, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
def test_mutated_data_sets(door: Door, settings: Settings, count: int) -> None:
    dice = random.Random(11)
    memory = psutil.Process().memory_info().rss
    sent = acknowledged = 0
    association = associate(door.port)
    for number in range(count):
        if not association.is_established:
            association = associate(door.port)
        status = send_raw(association, mutated(dice, number), uid="2.25.1")
        sent += 1
        acknowledged += status == 0
        assert status is None or status == 0 or status >= 0xA700, hex(status)
        if number % (count // 4) == 0:
            served(door)
            acknowledged += 1
    association.abort()
    served(door)
    assert len(spooled(settings.home)) <= acknowledged + 1
    assert sent == count
    assert psutil.Process().memory_info().rss - memory < 200 << 20
    wait_until(lambda: not unfinished(settings.home), "half films to go", seconds=20)


def mutated(dice: random.Random, number: int) -> bytes:
    """A film's data set with bytes changed, cut, doubled or grown."""
    data = bytearray(encoded(small_film(number % 4096, SOPInstanceUID="2.25.1")))
    for _ in range(dice.randrange(1, 8)):
        place = dice.randrange(len(data))
        kind = dice.randrange(4)
        if kind == 0:
            data[place] = dice.randrange(256)
        elif kind == 1:
            data[place : place + 4] = struct.pack("<L", dice.choice([0, 0xFFFFFFFF, 0x7FFFFFFF, 65_535]))
        elif kind == 2:
            del data[place : place + dice.randrange(1, 40)]
        else:
            data[place:place] = dice.randbytes(dice.randrange(1, 40))
    return bytes(data) + b"\0" * (len(data) % 2)


# --- TLS -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, ``ca`` and ``other``, and a certificate of each: ``peer`` and ``stranger``."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=folder)

    for authority, name in (("ca", "peer"), ("other", "stranger")):
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        openssl(
            "req", "-x509", *key, "-keyout", f"{authority}.key", "-out", f"{authority}.pem", "-subj", f"/CN={authority}"
        )
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", "/CN=localhost")
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key",
            "-CAcreateserial", "-out", f"{name}.pem", "-days", "2",
        )  # fmt: skip
    return folder


def client(certificates: Path, name: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(certificates / "ca.pem")
    if name is not None:
        context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    return context


def test_mutual_tls(database: Database, settings: Settings, certificates: Path, peers: list[socket.socket]) -> None:
    secured = replace(
        settings,
        listen_tls_certificate=str(certificates / "peer.pem"),
        listen_tls_key=str(certificates / "peer.key"),
        listen_tls_ca=str(certificates / "ca.pem"),
    )
    with open_door(database, secured) as door:
        good = client(certificates, "peer")
        served(door, tls=good)
        # Plain text, silence, and certificates of nobody and of others.
        for words in (b"GET / HTTP/1.1\r\n\r\n", association_request(), b""):
            peer = connect(door.port)
            peers.append(peer)
            peer.sendall(words)
        served(door, tls=good)
        assert echo(door.port, tls=client(certificates, None)) is None
        assert echo(door.port, tls=client(certificates, "stranger")) is None
        assert store(door.port, small_film(7, side=700), tls=good) == [0]
        assert all(closed(peer) for peer in peers)
        wait_until(lambda: "TLS handshake" in door.tally.line(), seconds=20)
