"""Every query of docs/sql-cookbook.md is run as it is printed, and answers what is printed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import cookbook_rows
import pytest
from stored_films import DIALECTS, fresh_database

from schema.daily import count_days
from schema.database import Database
from schema.dictionary import personal_tables

COOKBOOK = Path(__file__).resolve().parents[2] / "docs" / "sql-cookbook.md"
#: Heading, explanation, query, answer.
RECIPE = re.compile(r"^## (\d+\. .+?)\n(.*?)```sql\n(.*?)```\n+```text\n(.*?)```", re.MULTILINE | re.DOTALL)
RECIPES = RECIPE.findall(COOKBOOK.read_text("utf-8"))
NEEDS_IDENTITY = "carina_read_only"


@pytest.fixture(scope="module", params=DIALECTS)
def hospital(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with fresh_database(request.param, tmp_path_factory.mktemp("cookbook")) as database:
        cookbook_rows.fill(database)
        yield database


def printed(database: Database, query: str) -> str:
    """The answer as the cookbook prints it."""
    with database.read() as connection:
        found = connection.exec_driver_sql(query)
        lines = [list(found.keys()), *([_shown(value) for value in row] for row in found)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "".join(
        " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n"
        for line in lines
    )


def _shown(value: Any) -> str:
    """Times to the minute, numbers to three decimals; NULL is empty."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, float | Decimal | int):
        return f"{float(value):.3f}".rstrip("0").rstrip(".")
    text = str(value)
    return text[:16] if re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}", text) else text


def test_there_are_twenty_questions_and_more_and_all_are_found() -> None:
    text = COOKBOOK.read_text("utf-8")
    assert len(RECIPES) >= 20
    assert text.count("```sql\n") == len(RECIPES)
    assert [int(heading.split(".")[0]) for heading, *_ in RECIPES] == list(range(1, len(RECIPES) + 1))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe[0].split(".")[0])
def test_each_query_answers_what_is_printed(hospital: Database, recipe: tuple[str, str, str, str]) -> None:
    _, _, query, answer = recipe
    assert printed(hospital, query) == answer


def test_counted_days_answer_the_same(hospital: Database) -> None:
    """Runs last: from here on the views read counts."""
    assert count_days(hospital) > 0
    for heading, _, query, answer in RECIPES:
        assert printed(hospital, query) == answer, heading


def test_the_size_of_each_table_can_be_asked(hospital: Database) -> None:
    (query,) = re.findall(rf"```sql {hospital.dialect}\n(.*?)```", COOKBOOK.read_text("utf-8"), re.DOTALL)
    with hospital.read() as connection:
        if hospital.dialect == "sqlite":
            options = connection.exec_driver_sql("PRAGMA compile_options").scalars().all()
            if "ENABLE_DBSTAT_VTAB" not in options:
                pytest.skip("this SQLite was built without dbstat")
        sizes = {row[0]: row[1] for row in connection.exec_driver_sql(query)}
    assert sizes["segmentation"] > 0


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe[0].split(".")[0])
def test_what_needs_identity_says_so(recipe: tuple[str, str, str, str]) -> None:
    _, explanation, query, _ = recipe
    personal = any(re.search(rf"\b{name}\b", query) for name in personal_tables())
    assert (NEEDS_IDENTITY in explanation) == personal
