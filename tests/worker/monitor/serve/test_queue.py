from __future__ import annotations

import http.client
import json

from page_server import Browser
from sqlalchemy import select
from stored_films import Films

from schema import tables
from schema.database import Database


def states(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.scalars(select(tables.job.c.state).order_by(tables.job.c.id)))


def test_failed_films_are_told_with_what_to_do(films: Films, browser: Browser) -> None:
    films.film("failed", detail="12 of 13 bytes")
    words = browser.page("/failed").words
    assert "The decoder refused the pixel data: 12 of 13 bytes." in words
    assert "Send the film again from the archive." in words


def test_one_film_is_tried_again(films: Films, database: Database, browser: Browser) -> None:
    jobs = [films.film("failed") for _ in range(3)]
    answer = browser.post("/failed/retry", job=str(jobs[1]), form_value=browser.form_value())
    assert (answer.status, answer.headers["Location"]) == (303, "/failed?retried=1")
    assert states(database) == ["failed", "ready", "failed"]
    assert browser.announced == [1]
    assert "1 film is ready again" in browser.page(answer.headers["Location"]).words
    with database.read() as connection:
        audit = connection.execute(select(tables.audit_event)).one()
    assert (audit.actor, audit.action) == ("page, from 127.0.0.1", "retry")


def test_all_of_a_code_are_tried_again(films: Films, database: Database, browser: Browser) -> None:
    films.film("failed")
    films.film("failed", code="EMPTY_FILE")
    films.film("failed")
    assert "EMPTY_FILE" not in browser.page("/failed?code=DECODE_FAILED").text.partition("<h2>Films")[2]
    browser.post("/failed/retry", code="DECODE_FAILED", form_value=browser.form_value())
    assert states(database) == ["ready", "failed", "ready"]


def test_no_other_site_can_make_it_retry(films: Films, database: Database, browser: Browser) -> None:
    job = str(films.film("failed"))
    browser.page("/failed")
    assert browser.post("/failed/retry", job=job).status == 403
    assert browser.post("/failed/retry", job=job, form_value="0" * 64).status == 403
    value = browser.form_value()
    browser.cookie = ""
    assert browser.post("/failed/retry", job=job, form_value=value).status == 403
    assert browser.get(f"/failed/retry?job={job}").status == 405
    assert states(database) == ["failed"]


def test_what_cannot_be_meant_is_refused(films: Films, database: Database, browser: Browser) -> None:
    films.film("failed")
    value = browser.form_value()
    for form in ({}, {"code": "X"}, {"job": "x"}, {"job": "1", "code": "DECODE_FAILED"}):
        assert browser.post("/failed/retry", form_value=value, **form).status == 400
    for query in ("code=X", "after=x"):
        assert browser.get(f"/failed?{query}").status == 400
    assert states(database) == ["failed"]


def test_the_queue_says_what_waits_and_who_works(films: Films, browser: Browser) -> None:
    films.film("ready")
    films.film("leased")
    films.film("failed")
    words = browser.page("/queue").words
    assert "icu 1 1 0" in words and "host-1" in words and "running" in words and "phantom:1" in words
    assert "1 film failed" in words


def test_the_queue_is_told_anew(films: Films, browser: Browser) -> None:
    films.film("ready")
    browser.page("/queue")
    connection = http.client.HTTPConnection("127.0.0.1", browser.port, timeout=30)
    connection.request("GET", "/queue/live")
    response = connection.getresponse()
    assert response.headers["Content-Type"].startswith("text/event-stream")
    line = response.readline().decode("utf-8")
    assert line.startswith("data: ") and "Oldest waits" in json.loads(line.removeprefix("data: "))
    connection.close()


def test_health_says_nothing_else(browser: Browser) -> None:
    assert browser.get("/health").text == "ok"
