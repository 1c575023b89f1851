from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from page_server import TOKEN, Browser, serving
from stored_films import Films

from schema.database import Database
from worker.errors import CarinaError
from worker.monitor.serve import access as access_module
from worker.monitor.serve import answers
from worker.monitor.serve.access import LEAST_TOKEN, SESSION_SECONDS, Access, is_loopback, local_path
from worker.settings import Settings


@pytest.fixture
def guarded(page_settings: Settings) -> Settings:
    return replace(page_settings, serve_token=TOKEN)


def test_without_the_token_only_the_form_is_shown(database: Database, films: Films, guarded: Settings) -> None:
    films.film("failed")
    with serving(database, guarded, signed_in=False) as browser:
        for path in ("/", "/film/1", "/film/1/layer.png", "/failed", "/queue/live", "/nothing"):
            answer = browser.get(path)
            assert (answer.status, "Token" in answer.text) == (401, True), path
        assert browser.post("/failed/retry", job="1").status == 401
        assert browser.get("/health").text == "ok"
        assert browser.get("/static/page.css").status == 200
        assert browser.cookie == ""


def test_the_token_in_the_address_is_taken_out_of_it(database: Database, guarded: Settings) -> None:
    with serving(database, guarded, signed_in=False) as browser:
        answer = browser.get(f"/?state=failed&token={TOKEN}")
        assert (answer.status, answer.headers["Location"]) == (303, "/?state=failed")
        cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and TOKEN not in cookie and "Secure" not in cookie
        assert browser.page("/").status == 200


def test_the_form_signs_in_and_out(database: Database, guarded: Settings) -> None:
    with serving(database, guarded, signed_in=False) as browser:
        refused = browser.post("/sign-in", token="a-guess-of-someone", next="/queue")
        assert (refused.status, browser.cookie, "not the token" in refused.text) == (403, "", True)
        answer = browser.post("/sign-in", token=TOKEN, next="/queue")
        assert (answer.status, answer.headers["Location"]) == (303, "/queue")
        assert browser.post("/sign-out", form_value="0").status == 403
        assert browser.post("/sign-out", form_value=browser.form_value()).status == 303
        browser.cookie = ""
        assert browser.get("/queue").status == 401


@pytest.mark.parametrize("elsewhere", ["//evil.example/", "https://evil.example", "/\\evil.example", "evil", "/\nx"])
def test_nobody_is_sent_elsewhere(elsewhere: str) -> None:
    assert local_path(elsewhere) == "/"


def test_the_way_back_is_escaped(database: Database, guarded: Settings) -> None:
    with serving(database, guarded, signed_in=False) as browser:
        answer = browser.get('/?station="><script>alert(1)</script>'.replace("<", "%3C").replace('"', "%22"))
        assert answer.status == 401 and "<script" not in answer.text


def test_every_answer_is_fenced_in(database: Database, guarded: Settings) -> None:
    with serving(database, guarded) as browser:
        for path in ("/", "/nothing", "/static/page.js", "/film/7", "/?since=x"):
            headers = browser.get(path).headers
            policy = headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'") and "unsafe" not in policy
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Cache-Control"] == ("public, max-age=3600" if "static" in path else "no-store")


def test_a_fault_of_ours_is_fenced_in_and_quotes_nobody(
    browser: Browser, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_given: object) -> None:
        raise RuntimeError("Doe^Jane")

    monkeypatch.setattr(answers, "read_performance", fail)
    answer = browser.get("/performance")
    assert answer.status == 500 and "The page failed" not in answer.words and "log says where" in answer.words
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "The page /performance failed: RuntimeError in test_access.py" in caplog.text
    assert "Doe" not in caplog.text + answer.text
    assert browser.get("/queue").status == 200


def test_nothing_is_loaded_from_elsewhere(browser: Browser) -> None:
    for path in ("/", "/performance", "/drift", "/queue", "/failed", "/static/page.css", "/static/page.js"):
        assert "//" not in browser.get(path).text.replace("// ", "").replace('"http://www.w3.org', ""), path


def test_an_open_page_answers_to_loopback_names_only(browser: Browser) -> None:
    assert browser.get("/", Host="evil.example").status == 421
    assert browser.get("/", Host=f"localhost:{browser.port}").status == 200
    assert browser.get("/", Host="[::1]:80").status == 200


def test_sessions_are_signed_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    access = Access.of(Settings(serve_token=TOKEN))
    session = access.new_session()
    assert access.knows(session)
    assert not access.knows(session[:-1] + ("0" if session[-1] != "0" else "1"))
    assert not access.knows("") and not access.knows("x.y.z")
    assert not Access.of(Settings(serve_token=TOKEN + "!")).knows(session)
    assert Access.of(Settings(serve_token=TOKEN)).knows(session)
    later = access_module.time.time() + SESSION_SECONDS + 1
    monkeypatch.setattr(access_module.time, "time", lambda: later)
    assert not access.knows(session)


def test_a_token_is_made_where_none_is_set() -> None:
    first, second = Access.of(Settings()), Access.of(Settings())
    assert first.token != second.token and len(first.token) >= LEAST_TOKEN
    assert first.admits(first.token) and not first.admits(second.token) and not first.admits("")
    assert first.token not in repr(first.key)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"serve_token": "short"}, "at least 16"),
        ({"serve_open": "maybe"}, "yes or no"),
        ({"serve_open": "yes", "serve_address": "0.0.0.0"}, "loopback"),
    ],
)
def test_settings_that_would_open_the_door_are_refused(given: dict[str, str], words: str) -> None:
    with pytest.raises(CarinaError, match=words):
        Access.of(Settings(**given))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "inside"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("10.1.1.1", False), ("x", False)]
)
def test_what_is_loopback(address: str, inside: bool) -> None:
    assert is_loopback(address) is inside


def test_a_large_form_is_no_form(database: Database, guarded: Settings, tmp_path: Path) -> None:
    with serving(database, guarded, signed_in=False) as browser:
        assert browser.post("/sign-in", token=TOKEN, filler="x" * 20_000).status == 403
