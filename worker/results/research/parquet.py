"""Films, findings, regions and flags as Parquet tables that join on the column ``film``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from schema.database import Database
from worker.errors import CarinaError
from worker.results.files import whole_file, writing_to
from worker.results.outputs.objects import Naming
from worker.results.research.documents import LISTS, Document, Progress, documents, film_columns
from worker.results.research.films import count_films

#: Rows of one row group: what is kept in memory of each table.
ROW_GROUP = 20_000
_FILMS = "films"


def export_parquet(
    database: Database,
    out: Path,
    naming: Naming,
    *,
    submission_id: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Write ``films``, ``findings``, ``regions`` and ``flags.parquet``; returns the number of films.

    Raises
    ------
    worker.errors.CarinaError
        The folder cannot be written, or the extra ``research`` is not installed.
    """
    _require_pyarrow()
    total, written = count_films(database, submission_id), 0
    columns = {_FILMS: film_columns(naming), **{name: {"film": "text", **entry} for name, entry in LISTS.items()}}
    with writing_to(out, "The export"), ExitStack() as opened:
        tables = {}
        for name, kinds in columns.items():
            stream = opened.enter_context(whole_file(out / f"{name}.parquet", "wb"))
            tables[name] = _GrowingTable(stream, kinds)
        for page in documents(database, submission_id, naming):
            for document in page:
                _add(tables, document)
            written += len(page)
            if progress:
                progress(written, total)
        for table in tables.values():
            table.close()
    return written


def _require_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise CarinaError("Parquet needs the extra research: pip install 'carina-cxr[research]'") from None


def _add(tables: dict[str, _GrowingTable], document: Document) -> None:
    tables[_FILMS].add({name: value for name, value in document.items() if name not in LISTS})
    for name in LISTS:
        for entry in document[name]:
            tables[name].add({"film": document["film"], **entry})


class _GrowingTable:
    """A Parquet file that is written a row group at a time."""

    def __init__(self, stream: Any, columns: dict[str, str]) -> None:
        import pyarrow
        import pyarrow.parquet

        kinds = {
            "text": pyarrow.string(),
            "number": pyarrow.float64(),
            "whole": pyarrow.int64(),
            "truth": pyarrow.bool_(),
        }
        self._batch = pyarrow.RecordBatch
        self._schema = pyarrow.schema([(name, kinds[kind]) for name, kind in columns.items()])
        self._writer = pyarrow.parquet.ParquetWriter(stream, self._schema, compression="zstd")
        self._rows: list[Document] = []

    def add(self, row: Document) -> None:
        """Keep a row until its group is full."""
        self._rows.append(row)
        if len(self._rows) >= ROW_GROUP:
            self._flush()

    def close(self) -> None:
        """Write what is kept and the end of the file."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_batch(self._batch.from_pylist(self._rows, schema=self._schema))
            self._rows.clear()
