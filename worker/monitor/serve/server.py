"""Serves the page until it is told to stop."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from schema.database import Database
from worker.errors import CarinaError
from worker.monitor.serve.access import Access
from worker.monitor.serve.app import make_app
from worker.service import stop_on_signals
from worker.settings import Settings

#: Watchers of the queue are let go after so many seconds.
_CLOSE_SECONDS = 3


def serve(
    settings: Settings, database: Database, *, announce: Callable[[int], object], say: Callable[[str], object]
) -> None:
    """Answer until SIGTERM or SIGINT; ``say`` is told the address to open.

    Raises
    ------
    CarinaError
        The address cannot be had, or a setting has a value that cannot be meant.
    """
    access = Access.of(settings)
    app = make_app(settings, database, access, announce)
    with listening_socket(settings) as listening:
        say(f"Open {address(settings, listening, access)}\nResearch use, not a medical device. Stop with Ctrl-C.")
        server = make_server(app)
        with stop_on_signals(server.stop):
            server.run(sockets=[listening])


class PageServer(uvicorn.Server):
    """A server that ends when :meth:`stop` is called, and leaves signals to who runs it."""

    def stop(self) -> None:
        """End soon."""
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: uvicorn would raise them anew at its end and with that end the process."""
        yield


def make_server(app: Starlette) -> PageServer:
    """A server of the application."""
    # No access log: an address may carry the token, and which film was looked at is nobody's business.
    return PageServer(
        uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=_CLOSE_SECONDS
        )
    )


def listening_socket(settings: Settings) -> socket.socket:
    """A socket that takes connections at the address of the settings.

    Raises
    ------
    CarinaError
        The address is taken or not one of this machine.
    """
    place = (settings.serve_address, settings.serve_port)
    try:
        family = socket.getaddrinfo(*place, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server(place, family=family)
    except OSError as error:
        raise CarinaError(
            f"The page cannot be served at {place[0]}, port {place[1]}: {error.strerror}. "
            "Set CARINA_SERVE_ADDRESS and CARINA_SERVE_PORT."
        ) from None


def address(settings: Settings, listening: socket.socket, access: Access) -> str:
    """What to open; a token that was made for this run is part of it, one that was set is known."""
    host = f"[{settings.serve_address}]" if ":" in settings.serve_address else settings.serve_address
    token = "" if settings.serve_token or not access.token else f"?token={access.token}"
    return f"http://{host}:{listening.getsockname()[1]}/{token}"
