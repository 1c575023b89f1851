"""How objects leave: C-STORE to a DICOM node, or STOW-RS to a DICOMweb service."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from pydicom import Dataset
from pydicom.uid import (
    ComprehensiveSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from worker.peers.configuration import Certificates, DicomPeer, WebPeer
from worker.peers.trouble import PeerError, storage_trouble

#: What our outputs are (docs/pacs.md, conformance statement).
SOP_CLASSES = (SegmentationStorage, ComprehensiveSRStorage, SecondaryCaptureImageStorage)
TRANSFER_SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_VERIFICATION = "1.2.840.10008.1.1"


class Sender(Protocol):
    """An open way to a destination, for one thread; :class:`worker.peers.trouble.PeerError` where it does not open."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def send(self, objects: Sequence[Dataset]) -> None:
        """Send the objects of one output; ``PeerError`` for the first that was not stored."""

    def check(self) -> list[str]:
        """Ask the other side whether it would take our outputs; lines for a person."""


def sender_to(peer: DicomPeer | WebPeer) -> Sender:
    """The sender that speaks the peer's language."""
    return Association(peer) if isinstance(peer, DicomPeer) else WebStore(peer)


class WebStore:
    """STOW-RS (PS3.18 section 10.5)."""

    def __init__(self, peer: WebPeer) -> None:
        from worker.peers.dicomweb import DicomWeb

        self._web = DicomWeb(peer)

    def __enter__(self) -> Self:
        self._web.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._web.__exit__(kind, error, trace)

    def send(self, objects: Sequence[Dataset]) -> None:
        """See :class:`Sender`."""
        trouble = self._web.store(objects)
        if trouble is not None:
            raise trouble

    def check(self) -> list[str]:
        """See :class:`Sender`. A search shows address and login; what is stored only a store could show."""
        return [f"search: {self._web.check()}"]


class Association:
    """C-STORE and C-ECHO over one association (PS3.4 annexes A and B)."""

    def __init__(self, peer: DicomPeer) -> None:
        import pynetdicom

        # It would print data sets, and quote them in its errors; what matters is raised here.
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
        self._peer = peer
        self._ae = pynetdicom.AE(ae_title=peer.calling_ae_title)
        self._ae.connection_timeout = self._ae.acse_timeout = min(peer.timeout_seconds, 10.0)
        self._ae.dimse_timeout = peer.timeout_seconds
        # Between two objects we may be busy with making the next one.
        self._ae.network_timeout = None
        self._ae.add_requested_context(_VERIFICATION)
        for sop_class in SOP_CLASSES:
            # A context for each: of several in one the other side chooses, and not always ours.
            for transfer_syntax in TRANSFER_SYNTAXES:
                self._ae.add_requested_context(sop_class, transfer_syntax)
        self._association: Any = None

    def __enter__(self) -> Self:
        self._open()
        return self

    def _open(self) -> None:
        from pynetdicom import evt

        peer = self._peer
        connected: list[bool] = []

        def opened(event: Any) -> None:
            connected.append(True)
            # A peer that reads no more must not hold us for ever: pynetdicom itself sends without a limit.
            event.assoc.dul.socket.socket.settimeout(peer.timeout_seconds)

        self._association = self._ae.associate(
            peer.host,
            peer.port,
            ae_title=peer.ae_title,
            tls_args=None if peer.tls is None else (_tls_context(peer.tls), peer.host),
            evt_handlers=[(evt.EVT_CONN_OPEN, opened)],
        )
        if not self._association.is_established:
            raise self._not_established(bool(connected))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._association.is_established:
            self._association.release()

    def send(self, objects: Sequence[Dataset]) -> None:
        """See :class:`Sender`."""
        if not self._association.is_established:
            # The other side was tired of waiting for the next object.
            self._open()
        accepted = {context.abstract_syntax for context in self._association.accepted_contexts}
        for each in objects:
            if each.SOPClassUID not in accepted:
                raise PeerError("SOP_CLASS_REFUSED", "no presentation context was accepted for it")
            try:
                status = self._association.send_c_store(each)
            except RuntimeError:
                raise PeerError("NO_ANSWER", "the association ended") from None
            except ValueError as error:
                raise PeerError("OUTPUT_FAILED", f"it cannot be encoded: {type(error).__name__}") from None
            if "Status" not in status:
                raise PeerError("NO_ANSWER", "to a C-STORE")
            trouble = storage_trouble(int(status.Status))
            if trouble is not None:
                raise trouble

    def check(self) -> list[str]:
        """See :class:`Sender`."""
        status = self._association.send_c_echo()
        if "Status" not in status:
            raise PeerError("NO_ANSWER", "to a C-ECHO")
        lines = [f"C-ECHO: status {int(status.Status):04X}H"]
        for sop_class in SOP_CLASSES:
            syntaxes = [
                context.transfer_syntax[0].name
                for context in self._association.accepted_contexts
                if context.abstract_syntax == sop_class
            ]
            lines.append(f"{sop_class.name}: {', '.join(syntaxes) or 'refused'}")
        return lines

    def _not_established(self, connected: bool) -> PeerError:
        answer = self._association.acceptor.primitive
        if self._association.is_rejected and answer is not None:
            return PeerError("ASSOCIATION_REFUSED", answer.reason_str.lower().rstrip("."))
        if connected:
            return PeerError("ASSOCIATION_REFUSED", "it broke off or gave no answer in time")
        if self._peer.tls is not None and _listens(self._peer):
            return PeerError("TLS_FAILED")
        return PeerError("UNREACHABLE")


def _tls_context(certificates: Certificates) -> ssl.SSLContext:
    """TLS 1.2 or newer, as BCP 195 and PS3.15 section B.12 ask, and the peer's certificate checked."""
    try:
        context = ssl.create_default_context(cafile=certificates.ca_file)
        if certificates.certificate_file is not None:
            context.load_cert_chain(certificates.certificate_file, certificates.key_file)
    except ssl.SSLError:
        raise PeerError("TLS_FAILED", "our own certificate or key cannot be used") from None
    except OSError:
        raise PeerError("SECRET_MISSING") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _listens(peer: DicomPeer) -> bool:
    try:
        socket.create_connection((peer.host, peer.port), timeout=5.0).close()
    except OSError:
        return False
    return True
