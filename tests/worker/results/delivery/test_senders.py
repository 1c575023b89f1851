from __future__ import annotations

import logging
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dicom_files import chest_pixels, make_dataset
from dicom_node import DicomNode
from pydicom import Dataset
from pydicom.uid import SecondaryCaptureImageStorage, SegmentationStorage
from server_process import free_port
from waiting import wait_until

from worker.peers.configuration import Certificates, DicomPeer
from worker.peers.trouble import PeerError
from worker.results.delivery.senders import sender_to


def peer(port: int, **changes: object) -> DicomPeer:
    values: dict[str, object] = {"timeout_seconds": 3.0, "ae_title": "PACS"}
    return DicomPeer(host="127.0.0.1", port=port, **{**values, **changes})  # type: ignore[arg-type]


def capture(**attributes: object) -> Dataset:
    return make_dataset(chest_pixels(40, 30), SOPClassUID=SecondaryCaptureImageStorage, **attributes)


def refusal(to: DicomPeer, *objects: Dataset) -> str:
    with pytest.raises(PeerError) as refused, sender_to(to) as sender:
        sender.send(objects)
    return f"{refused.value.code} {refused.value.detail}".strip()


def test_objects_arrive_as_they_are_and_one_association_does_for_many() -> None:
    objects = [capture() for _ in range(3)]
    with DicomNode() as node, sender_to(peer(node.port, calling_ae_title="CARINA 2")) as sender:
        for each in objects:
            sender.send([each])
    assert node.uids == [str(each.SOPInstanceUID) for each in objects]
    assert [each.PixelData for each in node.received] == [each.PixelData for each in objects]
    assert node.received[0] == objects[0]
    assert (node.associations, node.calling) == (1, {"CARINA 2"})


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (0xA701, "OUT_OF_RESOURCES status A701H"),
        (0xA900, "DATA_MISMATCH status A900H"),
        (0xC000, "CANNOT_UNDERSTAND status C000H"),
        (0x0110, "SERVER_ERROR status 0110H"),
    ],
)
def test_what_the_node_answers_is_told(status: int, said: str) -> None:
    with DicomNode() as node:
        node.status = lambda dataset: status
        assert refusal(peer(node.port), capture()) == said


def test_a_node_that_has_it_already_or_remarks_on_it_has_stored_it() -> None:
    with DicomNode() as node, sender_to(peer(node.port)) as sender:
        for status in (0x0111, 0xB000):
            node.status = lambda dataset, status=status: status  # type: ignore[misc]
            sender.send([capture()])


def test_a_kind_of_object_that_the_node_does_not_take() -> None:
    node = DicomNode()
    node.contexts = [context for context in node.contexts if context != SegmentationStorage]
    with node:
        said = refusal(peer(node.port), make_dataset(chest_pixels(40, 30), SOPClassUID=SegmentationStorage))
        with sender_to(peer(node.port)) as sender:
            told = "\n".join(sender.check())
    assert said == "SOP_CLASS_REFUSED no presentation context was accepted for it"
    assert "C-ECHO: status 0000H" in told
    assert "Segmentation Storage: refused" in told
    assert "Comprehensive SR Storage: Explicit VR Little Endian" in told


def test_a_node_that_knows_us_not_or_is_another_one() -> None:
    with DicomNode(require_calling="CARINA") as node:
        assert refusal(peer(node.port, calling_ae_title="WHO")).startswith("ASSOCIATION_REFUSED calling ae title")
        assert refusal(peer(node.port, ae_title="OTHER")).startswith("ASSOCIATION_REFUSED called ae title")
    assert refusal(peer(node.port)) == "UNREACHABLE"


@contextmanager
def silence() -> Iterator[int]:
    """A port that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_node_that_says_nothing_is_not_waited_for_long() -> None:
    with silence() as port:
        assert refusal(peer(port, timeout_seconds=0.3)).startswith("ASSOCIATION_REFUSED it broke off")


def test_a_node_that_falls_silent_over_an_object() -> None:
    go_on = threading.Event()

    def ponder(dataset: Dataset) -> int:
        go_on.wait(60)
        return 0

    with DicomNode() as node:
        node.status = ponder
        assert refusal(peer(node.port, timeout_seconds=0.3), capture()) == "NO_ANSWER to a C-STORE"
        go_on.set()


def test_a_node_that_was_tired_of_waiting_is_asked_again() -> None:
    with DicomNode() as node, sender_to(peer(node.port)) as sender:
        sender.send([capture()])
        for association in node._server.active_associations:
            association.abort()
        wait_until(lambda: not node._server.active_associations, "the end of the association")
        sender.send([capture()])
        assert (len(node.received), node.associations) == (2, 2)


def test_an_identifier_gets_into_no_log_and_no_message(caplog: pytest.LogCaptureFixture) -> None:
    refused = capture(PatientID="SECRET-1", SOPInstanceUID="1.2.826.777")
    with pytest.warns(UserWarning, match="cannot be assigned"):
        broken = capture(PatientID="SECRET-1", SOPInstanceUID="1.2.826.777", Rows="many")
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    with DicomNode() as node:
        node.status = lambda dataset: 0xC000
        said = refusal(peer(node.port), refused)
        assert refusal(peer(node.port), broken).startswith("OUTPUT_FAILED")
    assert not any(word in text for word in ("SECRET", "777", "many") for text in (caplog.text, said))


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, and two certificates of it for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*words: str) -> None:
        done = subprocess.run(["openssl", *words], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    common = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    openssl("req", "-x509", *common, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
    for name in ("pacs", "carina"):
        openssl(
            "req", "-x509", *common, "-CA", "ca.pem", "-CAkey", "ca.key", "-keyout", f"{name}.key", "-out",
            f"{name}.pem", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
        )  # fmt: skip
    return folder


def test_an_encrypted_association_where_both_sides_show_who_they_are(certificates: Path) -> None:
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates / "ca.pem")
    theirs.verify_mode = ssl.CERT_REQUIRED
    theirs.load_cert_chain(certificates / "pacs.pem", certificates / "pacs.key")
    ours = Certificates(certificates / "ca.pem", certificates / "carina.pem", certificates / "carina.key")
    with DicomNode(tls=theirs) as node:
        with sender_to(peer(node.port, tls=ours)) as sender:
            sender.send([capture()])
        # A certificate of nobody we know, none of ours, a file that is not there, one that is none.
        assert refusal(peer(node.port, tls=Certificates())) == "TLS_FAILED"
        unknown = Certificates(certificates / "absent.pem")
        assert refusal(peer(node.port, tls=unknown)) == "SECRET_MISSING"
        broken = Certificates(None, certificates / "ca.key", certificates / "ca.key")
        assert refusal(peer(node.port, tls=broken)).startswith("TLS_FAILED our own certificate")
    assert len(node.received) == 1
    assert refusal(peer(free_port(), tls=ours)) == "UNREACHABLE"
