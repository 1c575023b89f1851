from __future__ import annotations

from datetime import date, datetime
from pathlib import Path

import pytest

from worker.errors import CarinaError
from worker.intake.pull_selection import Selection, parse_hours, read_accessions


@pytest.mark.parametrize(
    ("hours", "now", "seconds"),
    [
        ("20:00-06:00", "2026-03-01T19:59:00", 60),
        ("20:00-06:00", "2026-03-01T20:00:00", 0),
        ("20:00-06:00", "2026-03-01T03:00:00", 0),
        ("20:00-06:00", "2026-03-01T06:00:00", 14 * 3600),
        ("01:00-02:30", "2026-03-01T02:29:59", 0),
        ("01:00-02:30", "2026-03-01T02:30:00", 22.5 * 3600),
        ("01:00-02:30", "2026-03-01T00:00:00", 3600),
    ],
)
def test_hours(hours: str, now: str, seconds: float) -> None:
    assert parse_hours(hours).seconds_until_open(datetime.fromisoformat(now)) == seconds


@pytest.mark.parametrize("text", ["", "20:00", "20-6", "20:00-20:00", "20:00-25:00", "a-b", "20:00Z-06:00"])
def test_hours_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="20:00-06:00"):
        parse_hours(text)


def test_accession_numbers_one_a_line(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("\ufeff# last week\nA1\n\n  B 2 \r\nA1\n", encoding="utf-8")
    assert read_accessions(tmp_path / "list") == ("A1", "B 2")


@pytest.mark.parametrize("line", ["A*", "A?", "A\\B", "12345678901234567"])
def test_a_line_that_would_find_other_studies_is_refused_without_quoting_it(tmp_path: Path, line: str) -> None:
    (tmp_path / "list").write_text(f"A1\n{line}\n")
    with pytest.raises(CarinaError, match="Line 2 of the list") as refused:
        read_accessions(tmp_path / "list")
    assert line not in str(refused.value)


def test_a_list_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CarinaError, match="No such file"):
        read_accessions(tmp_path / "absent")
    (tmp_path / "list").write_bytes(b"\xff\xfe")
    with pytest.raises(CarinaError, match="not UTF-8"):
        read_accessions(tmp_path / "list")


def test_days_are_searched_one_by_one() -> None:
    selection = Selection(first=date(2026, 2, 27), last=date(2026, 3, 1))
    assert len(selection) == 3
    assert list(selection.searches()) == [
        ("StudyDate", "00080020", day) for day in ("20260227", "20260228", "20260301")
    ]
    assert list(Selection(("A1",)).searches()) == [("AccessionNumber", "00080050", "A1")]
