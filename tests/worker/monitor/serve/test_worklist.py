from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from bulk_rows import register_many
from page_server import Browser, serving
from sqlalchemy import update
from stored_films import Films, result

from schema import tables
from schema.database import Database
from worker.monitor.serve.worklist import PAGE, FilterError, Filters
from worker.settings import Settings

UID = "1.2.840.99.4711"


def numbers(page: str) -> list[int]:
    return [int(found) for found in re.findall(r'<a class="film" href="/film/(\d+)', page)]


@pytest.fixture
def night(films: Films) -> Films:
    """Film 1 is flagged, 2 has pneumonia, 3 failed, 4 waits in the archive lane, 5 is a file of no film."""
    films.film(stored=result(flags=("missing_region",)))
    films.film(stored=result(pneumonia=0.8), uid=UID)
    films.film("failed")
    films.film("ready", priority=10)
    films.arrival("rejected", None, code="EMPTY_FILE")
    films.update(tables.instance, 2, station="ROOM1", age_days=400)
    films.update_identity(2, accession_number="A-17")
    return films


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [5, 4, 3, 2, 1]),
        ("sort=oldest", [1, 2, 3, 4, 5]),
        ("flag=any", [1]),
        ("flag=missing_region", [1]),
        ("flag=low_confidence", []),
        ("flag=none", [2]),
        ("finding=pneumonia", [2]),
        ("finding=no_finding", [2, 1]),
        ("finding=pneumonia&sort=score", [2, 1]),
        ("state=failed", [3]),
        ("state=ready", [4]),
        ("state=done", [2, 1]),
        ("state=rejected", [5]),
        ("lane=archive", [4]),
        ("lane=icu", [3, 2, 1]),
        ("station=ROOM1", [2]),
        ("state=done&flag=any&lane=icu", [1]),
    ],
)
def test_filters_and_orders(night: Films, browser: Browser, query: str, expected: list[int]) -> None:
    assert numbers(browser.page(f"/?{query}").text) == expected


def test_days_are_of_the_arrival_and_both_included(night: Films, browser: Browser) -> None:
    noon = datetime(2026, 3, 2, 12, tzinfo=UTC)
    with night.database.write() as connection:
        for number in range(1, 6):
            connection.execute(
                update(tables.arrival)
                .where(tables.arrival.c.id == number)
                .values(arrived_at=noon + timedelta(days=number))
            )
    assert numbers(browser.page("/?since=2026-03-04&until=2026-03-05").text) == [3, 2]
    page = browser.page("/").words
    assert page.index("Saturday, 07 March 2026") < page.index("Tuesday, 03 March 2026")


def test_a_line_says_what_matters(night: Films, browser: Browser) -> None:
    words = browser.page("/").words
    for expected in (
        "Missing region",
        "Pneumonia 0.80",
        "DECODE_FAILED",
        "EMPTY_FILE",
        "ROOM1",
        "13 months",
        "archive",
    ):
        assert expected in words, expected
    assert "2 done in the last 24 h" in words and "1 of them flagged" in words and "1 waiting now" in words


def test_identity_is_shown_only_where_the_site_says_so(
    night: Films, database: Database, page_settings: Settings
) -> None:
    with serving(database, page_settings) as browser:
        for path in ("/", "/film/2"):
            page = browser.page(path).text
            assert UID not in page and "A-17" not in page and ".dcm" not in page
    named = replace(page_settings, serve_identifiers="accession_number, sop_instance_uid")
    with serving(database, named) as browser:
        for path in ("/", "/film/2"):
            page = browser.page(path).text
            assert UID in page and "A-17" in page and ".dcm" not in page


def test_pages_follow_one_another_without_a_gap(database: Database, films: Films, browser: Browser) -> None:
    register_many(database, 2 * PAGE + 7)
    for order in ("newest", "oldest"):
        seen: list[int] = []
        address = f"/?sort={order}"
        while address:
            page = browser.page(address).text
            seen += numbers(page)
            following = re.search(r'rel="next" href="([^"]+)"', page)
            address = following[1].replace("&amp;", "&") if following else ""
        assert seen == sorted(seen, reverse=order == "newest") and len(set(seen)) == len(seen) == 2 * PAGE + 7


def test_equal_scores_are_not_lost_between_pages(films: Films, browser: Browser) -> None:
    for _ in range(PAGE + 3):
        films.film(stored=result(pneumonia=0.8))
    page = browser.page("/?finding=pneumonia&sort=score").text
    following = re.search(r'rel="next" href="([^"]+)"', page)
    assert following
    rest = numbers(browser.page(following[1].replace("&amp;", "&")).text)
    assert sorted(numbers(page) + rest) == list(range(1, PAGE + 4))


@pytest.mark.parametrize(
    "query",
    ["flag=x", "finding=x", "state=x", "lane=x", "sort=x", "since=yesterday", "after=x", "sort=score"],
)
def test_what_cannot_be_meant_is_said(browser: Browser, query: str) -> None:
    answer = browser.get(f"/?{query}")
    assert (answer.status == 400 and query.partition("=")[0] in answer.words) or "score" in answer.words


def test_a_nameless_filter_does_nothing() -> None:
    assert Filters.parse({"station": "  ", "unknown": "x"}) == Filters()
    with pytest.raises(FilterError, match="2026-03-01"):
        Filters.parse({"until": "1.3.2026"})


def test_an_empty_database_says_what_to_do(browser: Browser) -> None:
    assert "carina submit FOLDER" in browser.page("/").words
    assert "No film is like that" in browser.page("/?lane=icu").words


def test_what_came_from_outside_is_escaped(films: Films, browser: Browser) -> None:
    films.film("ready")
    films.update(tables.instance, 1, station="<script>alert(1)</script>")
    page = browser.page("/?station=%3Cscript%3Ealert(1)%3C/script%3E").text
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page


def test_open_alerts_come_first(films: Films, browser: Browser) -> None:
    films.insert(tables.alert, rule="disk", subject="host-1", detail="Half a gigabyte is free.")
    over = datetime.now(UTC)
    films.insert(tables.alert, rule="disk", subject="host-2", detail="It is over.", quiet_since=over, closed_at=over)
    words = browser.page("/").words
    assert "1 alert open Half a gigabyte is free." in words and "It is over" not in words
