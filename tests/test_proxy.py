from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator

import pytest
from proxy import Proxy
from server_process import wait_until


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(client: socket.socket) -> None:
        with client:
            try:
                while piece := client.recv(4096):
                    client.sendall(piece)
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    with Proxy(echo) as opened:
        yield opened


def connect(proxy: Proxy, seconds: float = 30.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=seconds)


def ask(client: socket.socket, words: bytes = b"hello") -> bytes:
    client.sendall(words)
    return client.recv(4096)


def test_pass_and_delay_carry_everything(proxy: Proxy) -> None:
    proxy.delay_seconds = 0.01
    seen: list[tuple[bytes, bool]] = []
    proxy.on_piece = lambda piece, from_client: seen.append((piece, from_client))
    with connect(proxy) as client:
        assert ask(client) == b"hello"
        proxy.mode = "delay"
        assert ask(client, b"again") == b"again"
    assert seen == [(b"hello", True), (b"hello", False), (b"again", True), (b"again", False)]
    wait_until(lambda: proxy.connections == 0, "the link stays after its client is gone")


def test_blackhole_takes_and_never_answers(proxy: Proxy) -> None:
    with connect(proxy, 0.2) as client:
        proxy.mode = "blackhole"
        with pytest.raises(TimeoutError):
            ask(client)
        proxy.mode = "pass"
        assert ask(client, b"later") == b"later"


def test_reset_breaks_old_and_new_connections(proxy: Proxy) -> None:
    with connect(proxy) as client:
        assert ask(client) == b"hello"
        proxy.mode = "reset"
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with pytest.raises(ConnectionError), connect(proxy) as client:
        assert ask(client) == b""
        raise ConnectionError
    proxy.mode = "pass"
    with connect(proxy) as client:
        assert ask(client) == b"hello"


def test_refuse_keeps_old_connections_and_the_port(proxy: Proxy) -> None:
    with connect(proxy) as client:
        assert ask(client) == b"hello"
        proxy.mode = "refuse"
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        assert ask(client, b"still") == b"still"
    proxy.mode = "pass"
    with connect(proxy) as client:
        assert ask(client) == b"hello"


def test_freeze_holds_what_exists_and_spares_what_is_new(proxy: Proxy) -> None:
    with connect(proxy, 0.2) as frozen:
        assert ask(frozen) == b"hello"
        proxy.freeze()
        with pytest.raises(TimeoutError):
            ask(frozen, b"held back")
        with connect(proxy) as fresh:
            assert ask(fresh) == b"hello"
        proxy.thaw()
        frozen.settimeout(30.0)
        assert frozen.recv(4096) == b"held back"


def test_a_server_that_is_gone_ends_the_client(proxy: Proxy) -> None:
    with Proxy(1) as nowhere, connect(nowhere) as client:
        assert client.recv(1) == b""


@pytest.mark.parametrize("error", [TimeoutError(), OSError(errno.EMFILE, "Too many open files")])
def test_goes_on_after_its_server_could_not_be_reached(
    proxy: Proxy, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> socket.socket:
        raise error

    with socket.socket() as client, monkeypatch.context() as patch:
        client.settimeout(30)
        patch.setattr(socket, "create_connection", fail)
        client.connect(("127.0.0.1", proxy.port))
        assert client.recv(4096) == b""
    with connect(proxy) as client:
        assert ask(client) == b"hello"
