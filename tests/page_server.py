"""The page, served over a real socket of this machine, and a browser of sorts that asks it."""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from urllib.parse import urlencode

from waiting import wait_until

from schema.database import Database
from worker.monitor.serve.access import Access
from worker.monitor.serve.app import make_app
from worker.monitor.serve.server import listening_socket, make_server
from worker.settings import Settings

TOKEN = "a-token-for-tests-0123456789"


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8")

    @property
    def words(self) -> str:
        """What a person reads, in one line."""
        return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", self.text))


@dataclass
class Browser:
    """Asks the page and keeps its cookie; follows nothing by itself."""

    port: int
    cookie: str = ""
    announced: list[int] = field(default_factory=list)

    def ask(self, method: str, path: str, body: str | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        if self.cookie:
            headers.setdefault("Cookie", self.cookie)
        if body is not None:
            headers.setdefault("Content-Type", "application/x-www-form-urlencoded")
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        answer = Answer(response.status, response.headers, response.read())
        connection.close()
        for cookie in response.headers.get_all("Set-Cookie") or ():
            self.cookie = cookie.partition(";")[0]
        return answer

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def page(self, path: str) -> Answer:
        """A page that must be well-formed and there."""
        answer = self.get(path)
        assert answer.status == 200, answer.words
        check = Balance()
        check.feed(answer.text)
        assert check.open == []
        return answer

    def post(self, path: str, **form: str) -> Answer:
        return self.ask("POST", path, urlencode(form))

    def form_value(self, path: str = "/failed") -> str:
        found = re.search(r'name="form_value" value="([0-9a-f]+)"', self.get(path).text)
        assert found
        return found[1]


class Balance(HTMLParser):
    """Every element that is opened is closed, in order."""

    VOID = {"meta", "img", "br", "input", "link"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "style" not in dict(attrs), "the Content-Security-Policy forbids it"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@contextmanager
def serving(database: Database, settings: Settings, *, signed_in: bool = True) -> Iterator[Browser]:
    """Serve until the block ends; without a token in the settings the page is open."""
    settings = replace(settings, serve_port=0, serve_open="no" if settings.serve_token else "yes")
    announced: list[int] = []
    access = Access.of(settings)
    with listening_socket(settings) as listening:
        server = make_server(make_app(settings, database, access, announced.append))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            wait_until(lambda: server.started, "the page did not start")
            browser = Browser(listening.getsockname()[1], announced=announced)
            if signed_in and settings.serve_token:
                browser.get(f"/?token={settings.serve_token}")
            yield browser
        finally:
            server.stop()
            thread.join(30)
