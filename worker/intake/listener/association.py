"""A pynetdicom association that waits instead of asking, and takes no more than it can hold.

The library's two threads of an association ask a thousand times a second whether there is
something to do; a hundred idle peers would take a whole core. Here they sleep until something
comes. What a peer may send is limited before it is read: the length of a PDU, of a command set,
of a data set, and the time that each may take. Data sets go to a file piece by piece.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationSocket

from worker.film.source import MAX_FILE_BYTES
from worker.intake.listener.places import Place

log = logging.getLogger(__name__)

#: PDUs are read up to this length (bytes); an association request has no negotiated limit.
LONGEST_PDU = 256 << 10
#: What is negotiated for data (PS3.8 annex D.1). DCMTK sends no longer ones.
NEGOTIATED_PDU = 128 << 10
#: A peer has so long for its TLS handshake and again for its association request (seconds).
REQUEST_SECONDS = 5.0
#: Command sets, and data sets that no command of ours has, stay in memory: up to this size.
_LONGEST_COMMAND = 64 << 10
#: Requests that may wait for their turn on one association.
_MOST_WAITING = 1
#: How often a sleeper looks up, in case nobody wakes it (milliseconds).
_LOOK_MS = 500
_HELD_UP_MS = 20
_DISK_STEP = 16 << 20


class ListenerSocket(AssociationSocket):
    """A connection that is read with limits, and whose waiting ends when there is something to send.

    Parameters
    ----------
    association
        Whose connection it is.
    client_socket
        Connected; with TLS, after its handshake.
    place
        Hears of whatever comes.
    disk_full
        Asked again and again while a long data set comes.
    """

    def __init__(
        self, association: Association, client_socket: socket.socket, place: Place, disk_full: Callable[[], bool]
    ) -> None:
        super().__init__(association, client_socket=client_socket)
        self._place = place
        self._disk_full = disk_full
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._bell_or_data, self._bell_alone = select.poll(), select.poll()
        self._bell_or_data.register(self._bell, select.POLLIN)
        self._bell_or_data.register(client_socket, select.POLLIN)
        self._bell_alone.register(self._bell, select.POLLIN)
        self._message_bytes = 0
        self._look_at_disk = _DISK_STEP

    def ring(self) -> None:
        """There is something to send: wake whoever waits in :attr:`ready`."""
        with suppress(BlockingIOError):
            os.eventfd_write(self._bell, 1)

    def message_ended(self) -> None:
        """What comes next is a new message."""
        self._message_bytes, self._look_at_disk = 0, _DISK_STEP

    def discard(self) -> None:
        """Close what the operating system lent; no thread may use the socket any more."""
        os.close(self._bell)

    @property
    def ready(self) -> bool:
        """Whether a PDU has begun to come; waits for one, or for the bell, up to half a second."""
        if self.socket is None or not self._is_connected:
            # Nothing comes any more: only the end of this association is waited for.
            time.sleep(0.005)
            return False
        if isinstance(self.socket, ssl.SSLSocket) and self.socket.pending():
            return True
        patience = _LOOK_MS if self.event_queue.empty() else 0
        if self.assoc.dimse.msg_queue.qsize() > _MOST_WAITING:
            # A peer that sends on without waiting for answers has to wait itself.
            found = self._bell_alone.poll(min(patience, _HELD_UP_MS))
        else:
            found = self._bell_or_data.poll(patience)
        for descriptor, _ in found:
            if descriptor != self._bell:
                return True
            with suppress(BlockingIOError):
                os.eventfd_read(self._bell)
        return False

    def recv(self, nr_bytes: int) -> bytearray:
        """Read ``nr_bytes``; fewer where the peer ends the connection.

        Raises
        ------
        OSError
            The PDU or the data set is too long, came too slowly, or there is no room on the disk.
        """
        try:
            received = self._read(nr_bytes)
        except OSError:
            self._give_up_waiting()
            raise
        if len(received) < nr_bytes:
            self._give_up_waiting()
        return received

    def _read(self, nr_bytes: int) -> bytearray:
        if nr_bytes > LONGEST_PDU:
            raise OSError("the PDU is too long")
        self._message_bytes += nr_bytes
        if self._message_bytes > MAX_FILE_BYTES:
            raise OSError("the data set is too long")
        if self._message_bytes > self._look_at_disk:
            self._look_at_disk += _DISK_STEP
            if self._disk_full():
                raise OSError("the disk is full")
        connection = cast(socket.socket, self.socket)
        allowed = self.assoc.network_timeout if self.assoc.is_established else REQUEST_SECONDS
        until = time.monotonic() + float(allowed or REQUEST_SECONDS)
        received, read = bytearray(nr_bytes), 0
        with memoryview(received) as view:
            while read < nr_bytes:
                left = until - time.monotonic()
                if left <= 0.0:
                    raise TimeoutError
                connection.settimeout(left)
                count = connection.recv_into(view[read:])
                if not count:
                    break
                read += count
                self._place.hear()
        del received[read:]
        return received

    def _give_up_waiting(self) -> None:
        """The connection is over: no association request comes any more, if none has come."""
        dul = self.assoc.dul
        if dul.state_machine.current_state in ("Sta1", "Sta2"):
            dul.to_user_queue.put(cast(Any, None))


class _RingingQueue(queue.Queue[Any]):
    """A queue that wakes its reader, who waits for other things too."""

    def __init__(self, ring: Callable[[], object]) -> None:
        super().__init__()
        self._ring = ring

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._ring()


class _Checkpoint(threading.Event):
    """The event that an association's loop passes each time round: here it sleeps until there is news."""

    def __init__(self, waiting: Callable[[], bool]) -> None:
        super().__init__()
        self._waiting = waiting
        self._news = threading.Event()
        super().set()

    def ring(self) -> None:
        """There is news."""
        self._news.set()

    def set(self) -> None:
        super().set()
        self._news.set()

    def wait(self, timeout: float | None = None) -> bool:
        if not self._waiting():
            self._news.wait(_LOOK_MS / 1000.0)
        self._news.clear()
        return super().wait(timeout)


class _BoundedDimse(DIMSEServiceProvider):
    """Takes messages apart from what a peer may make of them: an endless command, another one's context."""

    def receive_primitive(self, primitive: P_DATA) -> None:
        try:
            super().receive_primitive(primitive)
        except Exception as error:
            # Its words may quote identifiers.
            log.info("a message could not be taken apart: %s", type(error).__name__)
            self.dul.event_queue.put("Evt19")
            return
        message = self.message
        if message is None:
            cast(ListenerSocket, self.dul.socket).message_ended()
        elif any(part is not None and part.tell() > _LONGEST_COMMAND for part in (
            message.encoded_command_set, message.data_set
        )):  # fmt: skip
            log.info("a command set was too long")
            self.dul.event_queue.put("Evt19")


def prepare(
    association: Association, client_socket: socket.socket, place: Place, disk_full: Callable[[], bool]
) -> ListenerSocket:
    """Fit an acceptor that has not begun with the socket, the limits and the bells of this module."""
    dul = association.dul
    # The socket that the library made has announced itself there: ours does it again.
    dul.event_queue = queue.Queue()
    connection = ListenerSocket(association, client_socket, place, disk_full)
    association.dimse = _BoundedDimse(association)
    checkpoint = _Checkpoint(lambda: bool(association.dimse.msg_queue.qsize() or dul.to_user_queue.qsize()))
    association._reactor_checkpoint = checkpoint
    association.dimse.msg_queue = _RingingQueue(checkpoint.ring)
    dul.to_user_queue = _RingingQueue(checkpoint.ring)
    dul.to_provider_queue = _RingingQueue(connection.ring)
    dul.socket = connection
    # It waits where it asks whether the socket is ready.
    dul._run_loop_delay = 0.0
    # The process must be able to end, whatever a peer does.
    dul.daemon = True
    return connection


def forget_unfinished(association: Association) -> None:
    """Delete the temporary files of messages that were never answered."""
    messages = [association.dimse.message]
    with suppress(queue.Empty):
        while True:
            messages.append(association.dimse.msg_queue.get_nowait()[1])  # type: ignore[arg-type]
    for message in messages:
        file = getattr(message, "_data_set_file", None) or getattr(message, "_dataset_file", None)
        if file is not None:
            file.close()
            with suppress(OSError):
                os.unlink(file.name)  # noqa: PTH108
