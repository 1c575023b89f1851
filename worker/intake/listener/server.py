"""Takes connections and serves their associations, a thread group for each."""

from __future__ import annotations

import logging
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, _config, evt
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import AssociationServer, RequestHandler

from worker.errors import CarinaError
from worker.film.codecs import SYNTAXES
from worker.intake.listener.association import NEGOTIATED_PDU, REQUEST_SECONDS, forget_unfinished, prepare
from worker.intake.listener.gate import Gate
from worker.intake.listener.places import Place, Places
from worker.intake.listener.policy import Policy
from worker.intake.listener.storage import FOR_PROCESSING, Answer, Request, Storage
from worker.intake.listener.tally import Tally

log = logging.getLogger(__name__)

_STORAGE = "1.2.840.10008.5.1.4.1.1."
#: SOP class → what it is: the classes that are negotiated.
SOP_CLASSES: dict[str, str] = {
    _STORAGE + "1": "Computed Radiography Image Storage",
    _STORAGE + "1.1": "Digital X-Ray Image Storage - For Presentation",
    FOR_PROCESSING: "Digital X-Ray Image Storage - For Processing (refused with a reason)",
    _STORAGE + "7": "Secondary Capture Image Storage",
    _STORAGE + "7.2": "Multi-frame Grayscale Byte Secondary Capture Image Storage",
    _STORAGE + "7.3": "Multi-frame Grayscale Word Secondary Capture Image Storage",
    _STORAGE + "7.4": "Multi-frame True Color Secondary Capture Image Storage",
}

#: A stopping listener gives what is being stored so long to end (seconds).
_STOP_SECONDS = 30.0
#: An answer is on its way to the peer for so long at most.
_ANSWER_SECONDS = 0.2


def contexts() -> list[PresentationContext]:
    """What is negotiated: the classes above in every transfer syntax that can be read, and verification."""
    syntaxes = list(SYNTAXES)
    return [build_context(Verification), *(build_context(UID(uid), syntaxes) for uid in SOP_CLASSES)]


class Listener:
    """A DICOM listener of this process; a context manager that stops in good order.

    Parameters
    ----------
    policy
        Where to listen and whom to admit. Port 0 takes a free one: see :attr:`port`.
    storage, gate, tally
        What becomes of films.
    scratch
        A folder on the spool's file system for what is being received.
    shared_port
        Whether other processes listen on the same port (SO_REUSEPORT).

    Raises
    ------
    CarinaError
        The address cannot be listened on.
    """

    def __init__(
        self,
        policy: Policy,
        storage: Storage,
        gate: Gate,
        tally: Tally,
        scratch: Path,
        *,
        shared_port: bool = False,
    ) -> None:
        self._scratch = scratch
        application = AE(ae_title=policy.ae_title)
        application.maximum_pdu_size = NEGOTIATED_PDU
        application.require_called_aet = True
        application.require_calling_aet = sorted(policy.senders)
        application.acse_timeout = REQUEST_SECONDS
        application.network_timeout = policy.timeout
        # Places are given before an association is asked for.
        application.maximum_associations = 1_000_000
        kind = type("_Server", (_Server,), {"shared_port": shared_port, "parts": (policy, storage, gate, tally)})
        with quiet(scratch):
            try:
                self._server: _Server = kind(
                    application, (policy.address, policy.port), policy.ae_title, contexts(), policy.tls
                )
            except OSError as error:
                raise CarinaError(
                    f"The listener cannot listen on {policy.address} port {policy.port}: {error.strerror}. "
                    "See CARINA_LISTEN_ADDRESS and CARINA_LISTEN_PORT."
                ) from None
        self._thread = threading.Thread(target=self._serve, name="listener", daemon=True)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self._quiet = quiet(self._scratch)
        self._quiet.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._server.stop()
            self._thread.join()
        finally:
            self._quiet.__exit__(kind, error, trace)

    def _serve(self) -> None:
        self._server.serve_forever(poll_interval=0.1)


class _Server(AssociationServer):
    """Gives each connection its place and threads."""

    request_queue_size = 128
    shared_port = False
    parts: tuple[Policy, Storage, Gate, Tally]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.policy, self.storage, self.gate, self.tally = self.parts
        self.places = Places(self.policy.connections)
        super().__init__(*arguments, **options)
        self.bind(evt.EVT_C_STORE, self._store)
        self.bind(evt.EVT_REJECTED, self._note_rejection)

    def server_bind(self) -> None:
        assert self.socket is not None
        if self.shared_port:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept only: a TLS handshake here would let one peer hold up all others."""
        assert self.socket is not None
        connection, address = self.socket.accept()
        connection.settimeout(REQUEST_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether the address is admitted."""
        if self.policy.admits_address(client_address[0]):
            return True
        self.tally.turned_away("address not admitted")
        log.info("a connection from %s was refused: see CARINA_LISTEN_NETWORKS", client_address[0])
        return False

    def process_request(self, request: Any, client_address: Any) -> None:
        place = Place(request)
        try:
            leaver = self.places.take(place)
        except BlockingIOError:
            self.tally.turned_away("all places are taken")
            log.warning("a connection was refused: all %d places are taken", self.policy.connections)
            self.shutdown_request(request)
            return
        if leaver is not None:
            self.tally.turned_away("idle, gave way")
            leaver.close()
        threading.Thread(target=self._converse, args=(place, client_address), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: the library would print the exception with whatever it quotes."""

    def stop(self) -> None:
        """Take no more connections, let what is being stored end, and break off the rest."""
        super(AssociationServer, self).shutdown()
        self.server_close()
        until = time.monotonic() + _STOP_SECONDS
        while (left := self.places.taken()) and time.monotonic() < until:
            for place in left:
                if place.idle_seconds() > _ANSWER_SECONDS or not place.established:
                    place.close()
            time.sleep(0.02)

    def _converse(self, place: Place, address: Any) -> None:
        """Serve one connection from its handshake to its end."""
        try:
            if self.ssl_context is not None:
                place.connection = self.ssl_context.wrap_socket(place.connection, server_side=True)
            _Conversation(place, address, self)
        except OSError as error:
            # A scanner, a peer without TLS, one with a certificate of others.
            self.tally.turned_away("TLS handshake" if self.ssl_context else "connection broke")
            log.info("a connection from %s ended before it began: %s", address[0], type(error).__name__)
        except Exception as error:
            log.error("a connection ended with %s", type(error).__name__)
        finally:
            self.places.leave(place)
            self.shutdown_request(place.connection)

    def _store(self, event: evt.Event) -> int | Dataset:
        request: Any = event.request
        place: Place = event.assoc.place  # type: ignore[attr-defined]
        sender = event.assoc.requestor.ae_title
        place.begin_storing()
        try:
            answer = self.storage.store(
                Request(
                    str(request.AffectedSOPClassUID),
                    str(request.AffectedSOPInstanceUID),
                    str(event.context.abstract_syntax),
                    sender,
                    event.dataset_path,
                ),
                self.policy.lane(sender),
            )
        except Exception as error:
            # Its words may quote values of the film.
            log.error("a film could not be stored: %s", type(error).__name__)
            answer = Answer(0x0110, "Internal error")
        finally:
            place.end_storing()
        if not answer.comment:
            return answer.status
        status = Dataset()
        status.Status, status.ErrorComment = answer.status, answer.comment
        return status

    def _note_rejection(self, event: evt.Event) -> None:
        self.tally.turned_away("AE title not admitted")
        log.info(
            "an association of %r from %s was refused: see CARINA_LISTEN_SENDERS and CARINA_LISTEN_AE_TITLE",
            event.assoc.requestor.ae_title,
            event.assoc.requestor.address,
        )


class _Conversation(RequestHandler):
    """One association, from its request to its end."""

    def __init__(self, place: Place, address: Any, server: _Server) -> None:
        self._place = place
        super().__init__(place.connection, address, server)

    def handle(self) -> None:
        server: _Server = self.server  # type: ignore[assignment]
        association = self._create_association()
        association.place = self._place  # type: ignore[attr-defined]
        association.bind(evt.EVT_ESTABLISHED, self._note_established)
        connection = prepare(association, self.request, self._place, server.gate.disk_full)
        try:
            # In this thread, which is there already.
            association.run()
            association.dul.join()
        finally:
            forget_unfinished(association)
            connection.discard()

    def _note_established(self, event: evt.Event) -> None:
        self._place.established = True


@contextmanager
def quiet(scratch: Path) -> Iterator[None]:
    """Let the library write data sets into ``scratch`` as they come, and nothing into the log.

    Its messages print data sets, and pydicom's warnings quote identifiers.
    """
    loggers = [logging.getLogger(name) for name in ("pynetdicom", "pydicom")]
    before = [logger.level for logger in loggers]
    hook, folder = threading.excepthook, tempfile.tempdir
    chunked, events = _config.STORE_RECV_CHUNKED_DATASET, _config.LOG_HANDLER_LEVEL
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        threading.excepthook = _say_only_the_kind
        tempfile.tempdir = str(scratch)
        _config.STORE_RECV_CHUNKED_DATASET, _config.LOG_HANDLER_LEVEL = True, "none"
        try:
            yield
        finally:
            _config.STORE_RECV_CHUNKED_DATASET, _config.LOG_HANDLER_LEVEL = chunked, events
            tempfile.tempdir = folder
            threading.excepthook = hook
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


def _say_only_the_kind(trouble: threading.ExceptHookArgs) -> None:
    log.info("a thread of an association ended with %s", trouble.exc_type.__name__)
