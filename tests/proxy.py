"""A TCP proxy that misbehaves on request, to stand between a client and its server.

=============  ========================================================================
mode           new and existing connections
=============  ========================================================================
``pass``       go through
``delay``      go through, each piece ``delay_seconds`` later
``blackhole``  are accepted and swallow everything that is sent, both ways
``reset``      end with a TCP reset, existing ones at once
``refuse``     new ones are refused: nobody listens; existing ones go through
=============  ========================================================================

``freeze()`` holds back what existing connections send, until ``thaw()``, whatever the mode;
connections made afterwards are not touched by it: a half-open connection behind a firewall.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Literal, Self

Mode = Literal["pass", "delay", "blackhole", "reset", "refuse"]

_RESET = struct.pack("ii", 1, 0)
#: What accept() says of a listener that was shut down or closed.
_STOPPED = (errno.EINVAL, errno.EBADF)


class _Link:
    """One client's connection and its twin to the server."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.ends = (client, server)
        self.flowing = threading.Event()
        self.flowing.set()

    def close(self, *, reset: bool = False) -> None:
        for end in self.ends:
            with contextlib.suppress(OSError):
                if reset:
                    # Lingering for no time makes close() send RST instead of FIN.
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                end.shutdown(socket.SHUT_RD)
            end.close()
        self.flowing.set()


class Proxy:
    """Listens on ``port`` of the loopback interface and forwards to ``127.0.0.1:target``."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.delay_seconds = 0.2
        self._mode: Mode = "pass"
        self._links: set[_Link] = set()
        self._lock = threading.Lock()
        #: Sees every piece before it is forwarded: (bytes, whether it comes from the client).
        self.on_piece: Callable[[bytes, bool], object] = lambda _piece, _from_client: None
        self._listener = self._listen(0)
        self.port: int = self._listener.getsockname()[1]

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        before, self._mode = self._mode, mode
        if mode == "refuse" and before != "refuse":
            self._stop_listening()
        if mode != "refuse" and before == "refuse":
            self._listener = self._listen(self.port)
        if mode == "reset":
            self.drop(reset=True)

    @property
    def connections(self) -> int:
        """How many connections are open."""
        with self._lock:
            return len(self._links)

    def freeze(self) -> None:
        """Hold back everything on the connections that exist now."""
        with self._lock:
            for link in self._links:
                link.flowing.clear()

    def thaw(self) -> None:
        """Let what was held back go on its way."""
        with self._lock:
            for link in self._links:
                link.flowing.set()

    def drop(self, *, reset: bool = False) -> None:
        """End the connections that exist now, in good order or with a reset."""
        with self._lock:
            links, self._links = self._links, set()
        for link in links:
            link.close(reset=reset)

    def close(self) -> None:
        """Stop listening and end all connections."""
        if self._mode != "refuse":
            self._mode = "refuse"
            self._stop_listening()
        self.drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, args=(listener,), daemon=True, name="proxy-accept").start()
        return listener

    def _stop_listening(self) -> None:
        # shutdown() first: it wakes the thread in accept(), which would keep the port otherwise.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError as error:
                if error.errno in _STOPPED:
                    return
                # Too many open files, for example: clients wait in the queue until it gets better.
                time.sleep(0.1)
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.target), timeout=5.0)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            link = _Link(client, server)
            if self._mode == "reset":
                link.close(reset=True)
                continue
            with self._lock:
                self._links.add(link)
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(link, source, sink), daemon=True, name="proxy-pump").start()

    def _pump(self, link: _Link, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                self.on_piece(piece, source is link.ends[0])
                link.flowing.wait()
                if self._mode == "blackhole":
                    continue
                if self._mode == "delay":
                    time.sleep(self.delay_seconds)
                sink.sendall(piece)
        with self._lock:
            self._links.discard(link)
        if self._mode != "blackhole":
            link.close()
