"""What is in the database, for people who query it: ``docs/data-dictionary.md``, made from the tables and views."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    Column,
    Select,
    Table,
    UniqueConstraint,
    create_engine,
    literal_column,
    select,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.pool import StaticPool

from schema.database import view_statements
from schema.tables import metadata

_POSTGRESQL = postgresql.dialect()  # type: ignore[no-untyped-call]

_HEAD = """# Data dictionary

Made by `carina db dictionary`; a test keeps it current. Types are PostgreSQL's; on SQLite times are text in UTC
(`2026-03-01 23:00:00.000000`), truth values 0 and 1. [SQL cookbook](sql-cookbook.md) has questions and answers.
Research use, not a medical device.

**Personal data** is in these tables and nowhere else: {personal}.
The role `carina_report` reads everything but these ([roles](operations.md#postgresql)). Pseudonyms (`..._key`) are
keyed hashes: without `site.key` nobody can compute them from an identifier, but the rows of one patient belong
together, so treat them as pseudonymous data.
"""


class MeaningMissingError(Exception):
    """A table, view or column that ``meanings.toml`` does not explain, or explains though there is none."""


def data_dictionary() -> str:
    """All tables and views in Markdown.

    Raises
    ------
    MeaningMissingError
        Names what ``schema/meanings.toml`` lacks or has too much.
    """
    given = tomllib.loads((resources.files("schema") / "meanings.toml").read_text("utf-8"))
    columns = view_columns()
    _require_same("tables", given["tables"], metadata.tables)
    _require_same("views", given["views"], columns)
    questions = view_statements("sqlite")
    personal = personal_tables()
    parts = [_HEAD.format(personal=", ".join(f"`{name}`" for name in personal)), "## Views\n"]
    for name, names in columns.items():
        words = given["views"][name]
        _require_same(name, words, names, complete=False)
        rows = [(f"`{column}`", _meaning(name, column, words, given["columns"])) for column in names]
        about = re.split(r"^CREATE VIEW", questions[name], maxsplit=1, flags=re.MULTILINE)[0]
        about = " ".join(line.removeprefix("-- ") for line in about.splitlines())
        parts.append(f"### {name}\n\n{about}\n\n{_table(('column', 'meaning'), rows)}")
    parts.append("## Tables\n")
    for name in sorted(metadata.tables):
        words = dict(given["tables"][name])
        about, remark = words.pop("about"), words.pop("personal", None)
        _require_same(name, words, metadata.tables[name].columns.keys(), complete=False)
        parts.append(_of_table(metadata.tables[name], about, remark, words, given["columns"]))
    return "\n".join(parts)


def personal_tables() -> list[str]:
    """Names of the tables that hold personal data, sorted."""
    given = tomllib.loads((resources.files("schema") / "meanings.toml").read_text("utf-8"))
    return sorted(name for name, words in given["tables"].items() if "personal" in words)


def view_columns() -> dict[str, list[str]]:
    """View → names of its columns, in order."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    found = {}
    with engine.begin() as connection:
        metadata.create_all(connection)
        for name, statement in view_statements("sqlite").items():
            connection.exec_driver_sql(statement)
            query: Select[Any] = select(literal_column("*")).select_from(text(name)).limit(0)
            found[name] = list(connection.execute(query).keys())
    engine.dispose()
    return found


def _of_table(
    table: Table, about: str, personal: str | None, words: Mapping[str, str], shared: Mapping[str, str]
) -> str:
    rows = [
        (f"`{column.name}`", _type(column), _rules(column), _meaning(table.name, column.name, words, shared))
        for column in table.columns
    ]
    said = f"{about}\n\n**Personal data.** {personal}" if personal else about
    rules = "".join(f"- {rule}\n" for rule in sorted(_constraints(table)))
    body = _table(("column", "type", "", "meaning"), rows)
    return f"### {table.name}\n\n{said}\n\n{body}" + (f"\n{rules}" if rules else "")


def _type(column: Column[Any]) -> str:
    return column.type.compile(dialect=_POSTGRESQL).lower()


def _rules(column: Column[Any]) -> str:
    rules = ["key"] if column.primary_key else []
    rules += [] if column.primary_key or not column.nullable else ["may be NULL"]
    rules += ["unique"] if column.unique else []
    rules += [f"→ `{key.target_fullname}`" for key in sorted(column.foreign_keys, key=lambda key: key.target_fullname)]
    return ", ".join(rules)


def _constraints(table: Table) -> Iterator[str]:
    for constraint in table.constraints:
        if isinstance(constraint, CheckConstraint):
            yield f"`{constraint.sqltext}`"
        elif isinstance(constraint, UniqueConstraint) and len(constraint.columns) > 1:
            yield f"unique: {', '.join(f'`{column.name}`' for column in constraint.columns)}"
    for index in table.indexes:
        if index.unique:
            where = index.dialect_options["sqlite"]["where"]
            names = ", ".join(f"`{column.name}`" for column in index.columns)
            yield f"unique: {names}" + ("" if where is None else f" where `{where}`")


def _meaning(owner: str, column: str, words: Mapping[str, str], shared: Mapping[str, str]) -> str:
    try:
        return words[column] if column in words else shared[column]
    except KeyError:
        raise MeaningMissingError(f"schema/meanings.toml does not say what {owner}.{column} means") from None


def _require_same(where: str, given: Any, wanted: Any, *, complete: bool = True) -> None:
    lacking = sorted(set(wanted) - set(given)) if complete else []
    too_many = sorted(set(given) - set(wanted))
    if lacking or too_many:
        raise MeaningMissingError(f"schema/meanings.toml, {where}: lacks {lacking}, has {too_many} too many")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
