from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path

from click.testing import CliRunner

from schema.database import view_statements
from schema.dictionary import data_dictionary, personal_tables, view_columns
from schema.tables import metadata
from worker.cli import main

COMMITTED = Path(__file__).resolve().parents[2] / "docs" / "data-dictionary.md"


def test_the_committed_dictionary_is_current() -> None:
    assert COMMITTED.read_text("utf-8") == data_dictionary(), "run: carina db dictionary > docs/data-dictionary.md"


def test_every_table_view_and_column_is_in_it() -> None:
    written = data_dictionary()
    for name in [*metadata.tables, *view_statements("sqlite")]:
        assert f"\n### {name}\n" in written
    for table in metadata.tables.values():
        section = written.split(f"\n### {table.name}\n")[1].split("\n### ")[0]
        assert all(f"| `{column.name}` |" in section for column in table.columns), table.name


def test_no_shared_meaning_is_left_over() -> None:
    shared = tomllib.loads((resources.files("schema") / "meanings.toml").read_text("utf-8"))["columns"]
    used = {column.name for table in metadata.tables.values() for column in table.columns}
    used |= {column for columns in view_columns().values() for column in columns}
    assert set(shared) <= used


def test_what_identifies_people_is_marked() -> None:
    """A new table with such a column must be marked, or the column named otherwise."""
    telling = {"path", "patient_id", "sop_instance_uid", "accession_number", "actor", "folder"}
    for table in metadata.tables.values():
        assert (table.name in personal_tables()) == bool(telling & {column.name for column in table.columns}), (
            table.name
        )


def test_the_command_prints_it() -> None:
    result = CliRunner().invoke(main, ["db", "dictionary"])
    assert (result.exit_code, result.output) == (0, data_dictionary())
