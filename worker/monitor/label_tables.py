"""How is a table read, be it CSV or Parquet, so that an error can name its line?"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from worker.errors import CarinaError


def read_table(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header of a CSV or Parquet file, and each row with its line; the header is line 1.

    Cells are text without spaces around them; what a Parquet file lacks is empty.

    Raises
    ------
    CarinaError
        The file cannot be read or has no header; also while its rows are read.
    """
    try:
        rows = _parquet(path) if path.suffix.lower() in {".parquet", ".pq"} else _csv(path)
        _, header = next(rows)
    except StopIteration:
        raise CarinaError(f"{path.name} is empty: it needs a header and a row per film.") from None
    except OSError as error:
        raise CarinaError(f"{path.name} cannot be read: {error.strerror or type(error).__name__}.") from None
    return header, rows


def _csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        try:
            first = stream.readline()
            stream.seek(0)
            separator = max(",;\t", key=first.count)
            reader = csv.reader(stream, delimiter=separator, strict=True)
            line = 1
            for cells in reader:
                if cells:
                    yield line, [cell.strip() for cell in cells]
                line = reader.line_num + 1
        except UnicodeDecodeError:
            raise CarinaError(f"{path.name} is not text in UTF-8: save it so and import it again.") from None
        except csv.Error as error:
            raise CarinaError(f"{path.name}, near line {reader.line_num}: {error}.") from None


def _parquet(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError:
        raise CarinaError("Parquet needs another package. Run: pip install 'carina-cxr[research]'") from None
    try:
        with path.open("rb") as stream:
            table = ParquetFile(stream)
            names = list(table.schema_arrow.names)
            yield 1, names
            line = 1
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    line += 1
                    yield line, [_written(row[name]) for name in names]
    except ArrowException as error:
        raise CarinaError(f"{path.name} is not a Parquet file that can be read ({type(error).__name__}).") from None


def _written(value: Any) -> str:
    """A typed cell as a CSV file has it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return value.isoformat() if isinstance(value, datetime) else str(value).strip()
