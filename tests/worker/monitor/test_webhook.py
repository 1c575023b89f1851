from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sqlalchemy import select, update
from stored_films import Films

from schema import tables
from schema.database import Database
from worker.monitor.webhook import SIGNATURE, WebhookError, post, send_news
from worker.settings import Settings, load_settings

SECRET = "a long secret"


class Receiver:
    """A server that takes what is posted, and answers what it is told to."""

    def __init__(self) -> None:
        self.status = 204
        self.taken: list[tuple[str, dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.taken.append((self.path, dict(self.headers), body))
                self.send_response(receiver.status)
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook?site=1"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        if self.thread.is_alive():
            self.server.shutdown()
            self.server.server_close()
            self.thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    opened = Receiver()
    yield opened
    opened.close()


@pytest.fixture
def settings(receiver: Receiver) -> Settings:
    return Settings(webhook_url=receiver.url, webhook_secret=SECRET, webhook_seconds=300.0)


def add(films: Films, subject: str, **values: object) -> int:
    return films.insert(tables.alert, **{"rule": "oldest_ready", "subject": subject, "detail": "It waits.", **values})


def forget_when(database: Database) -> None:
    """As if what was told had been told an hour ago."""
    hour = datetime.now(UTC) - timedelta(hours=1)
    with database.write() as connection:
        for column in (tables.alert.c.opening_sent_at, tables.alert.c.closing_sent_at):
            connection.execute(update(tables.alert).where(column.is_not(None)).values({column.name: hour}))


def test_an_alert_is_told_once_signed_and_without_identity(
    films: Films, receiver: Receiver, settings: Settings
) -> None:
    number = add(films, "icu", value=7.0, threshold=5.0)
    assert send_news(films.database, settings) == "1 alerts told"
    forget_when(films.database)
    assert send_news(films.database, settings) == "nothing to tell"
    ((path, headers, body),) = receiver.taken
    assert path == "/hook?site=1" and headers["Content-Type"] == "application/json"
    assert headers[SIGNATURE] == "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    said = json.loads(body)
    (alert,) = said["alerts"]
    assert said["source"] == "carina" and alert["id"] == number
    assert {name: alert[name] for name in ("rule", "subject", "state", "detail", "value", "threshold")} == {
        "rule": "oldest_ready",
        "subject": "icu",
        "state": "open",
        "detail": "It waits.",
        "value": 7.0,
        "threshold": 5.0,
    }
    assert alert["meaning"] and alert["advice"] and alert["closed_at"] is None
    assert SECRET.encode() not in body


def test_news_are_told_together_and_no_faster_than_agreed(films: Films, receiver: Receiver, settings: Settings) -> None:
    add(films, "icu")
    add(films, "archive")
    assert send_news(films.database, settings) == "2 alerts told"
    add(films, "third")
    assert send_news(films.database, settings) == "1 alerts wait to be told"
    forget_when(films.database)
    assert send_news(films.database, settings) == "1 alerts told"
    assert [len(json.loads(body)["alerts"]) for _, _, body in receiver.taken] == [2, 1]


def test_that_it_is_over_is_told_too(films: Films, receiver: Receiver, settings: Settings) -> None:
    number = add(films, "icu")
    send_news(films.database, settings)
    forget_when(films.database)
    now = datetime.now(UTC)
    films.update(tables.alert, number, quiet_since=now, closed_at=now)
    assert send_news(films.database, settings) == "1 alerts told"
    forget_when(films.database)
    assert send_news(films.database, settings) == "nothing to tell"
    assert [json.loads(body)["alerts"][0]["state"] for _, _, body in receiver.taken] == ["open", "closed"]


@pytest.mark.parametrize("status", [500, 302, 404])
def test_what_was_not_taken_is_told_again(films: Films, receiver: Receiver, settings: Settings, status: int) -> None:
    add(films, "icu")
    receiver.status = status
    assert send_news(films.database, settings).startswith(f"1 alerts not told: The webhook answered {status}")
    assert films.value(select(tables.alert.c.opening_sent_at)) is None
    receiver.status = 200
    assert send_news(films.database, settings) == "1 alerts told"
    assert len(receiver.taken) == 2


def test_nobody_there_is_no_end_of_the_world(films: Films, receiver: Receiver, settings: Settings) -> None:
    add(films, "icu")
    receiver.close()
    said = send_news(films.database, settings)
    assert "ConnectionRefusedError" in said and "127.0.0.1" not in said


def test_old_news_are_none(films: Films, receiver: Receiver, settings: Settings) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=2)
    add(films, "icu", opened_at=long_ago, quiet_since=long_ago, closed_at=long_ago)
    assert send_news(films.database, settings) == "nothing to tell"
    add(films, "archive", opened_at=long_ago)
    assert send_news(films.database, settings) == "1 alerts told"


def test_without_a_secret_nothing_is_signed_and_without_an_address_nothing_sent(
    films: Films, receiver: Receiver
) -> None:
    add(films, "icu")
    assert send_news(films.database, Settings()) == "no webhook"
    send_news(films.database, Settings(webhook_url=receiver.url))
    assert SIGNATURE not in receiver.taken[0][1]


@pytest.mark.parametrize("url", ["ftp://example.org/", "example.org", "http:///path", "http://host:port/"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(WebhookError, match="CARINA_WEBHOOK_URL") as refusal:
        post(url, "", b"{}")
    assert url not in str(refusal.value)


def test_the_secret_comes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    assert load_settings({"CARINA_WEBHOOK_SECRET_FILE": str(file)}).webhook_secret == SECRET
