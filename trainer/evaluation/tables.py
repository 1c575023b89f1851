"""Numbers as people, spreadsheets and programs read them: Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from worker.bootstrap import Interval

RESEARCH_USE = "Research use, not a medical device."

#: Shown where a number cannot be computed.
NOTHING = "–"

Row = Sequence[object]


def number(value: object, digits: int = 3) -> str:
    """A number for a person; strings and integers as they are, NaN and None as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOTHING
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def with_interval(interval: Interval, digits: int = 3) -> str:
    """``0.709 (0.690-0.729)``, as the classifier paper prints it."""
    if math.isnan(interval.low):
        return number(interval.value, digits)
    return f"{interval.value:.{digits}f} ({interval.low:.{digits}f}-{interval.high:.{digits}f})"


def as_figure(interval: Interval) -> dict[str, float | int | None]:
    """An interval as plain values for ``summary.json``."""
    return {
        "value": plain(interval.value),
        "low": plain(interval.low),
        "high": plain(interval.high),
        "replicates": interval.replicates,
    }


def plain(value: Any) -> Any:
    """``value`` as JSON may hold it: NaN becomes null, numpy numbers Python's, tables and lists likewise."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def markdown(headers: Sequence[str], rows: Iterable[Row]) -> str:
    """A Markdown table; cells are formatted by :func:`number`."""
    lines = [headers, ["---"] * len(headers), *([number(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def write_csv(path: Path, headers: Sequence[str], rows: Iterable[Row]) -> None:
    """A CSV file with full precision; what cannot be computed is empty."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(headers)
        writer.writerows(["" if plain(cell) is None else plain(cell) for cell in row] for row in rows)


def as_json(summary: Mapping[str, Any]) -> str:
    """A summary as indented JSON; NaN as null."""
    return json.dumps(plain(summary), indent=2, ensure_ascii=False)


def write_json(path: Path, summary: Mapping[str, Any]) -> None:
    """A summary as a file."""
    path.write_text(as_json(summary) + "\n", "utf-8")
