"""Which studies are to be pulled, and when may the archive be asked?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from datetime import time as clock_time
from pathlib import Path

from worker.errors import CarinaError

_ACCESSION, _STUDY_DATE = "00080050", "00080020"
#: What a search would not take as it is written: wild cards, lists, ranges (PS3.4 section C.2.2.2).
_NOT_PLAIN = set("*?\\")


@dataclass(frozen=True)
class Hours:
    """A daily window of this machine's local time; one that begins in the evening ends next morning."""

    begin: clock_time
    end: clock_time

    def seconds_until_open(self, now: datetime) -> float:
        """0.0 inside the window."""
        moment = now.time()
        if self.begin < self.end:
            inside = self.begin <= moment < self.end
        else:
            inside = moment >= self.begin or moment < self.end
        if inside:
            return 0.0
        opens = datetime.combine(now.date(), self.begin)
        return ((opens if opens > now else opens + timedelta(days=1)) - now).total_seconds()


def parse_hours(text: str) -> Hours:
    """``"20:00-06:00"``; ValueError says what is wrong."""
    first, dash, last = text.partition("-")
    try:
        hours = Hours(clock_time.fromisoformat(first.strip()), clock_time.fromisoformat(last.strip()))
    except ValueError:
        dash = ""
    if not dash or hours.begin == hours.end or hours.begin.tzinfo or hours.end.tzinfo:
        raise ValueError("write two times of day, such as 20:00-06:00")
    return hours


def read_accessions(file: Path) -> tuple[str, ...]:
    """The accession numbers of a text file: one a line, empty lines and lines that begin with # left out.

    Raises
    ------
    CarinaError
        It cannot be read, or a line is no accession number.
    """
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise CarinaError(f"The list of accession numbers cannot be read: {reason}.") from None
    numbers = [(place, line.strip()) for place, line in enumerate(lines, start=1)]
    for place, number in numbers:
        if not number.startswith("#") and (_NOT_PLAIN & set(number) or len(number) > 16):
            raise CarinaError(
                f"Line {place} of the list is no accession number: at most 16 characters, without * ? and backslash."
            )
    return tuple(dict.fromkeys(number for _, number in numbers if number and not number.startswith("#")))


@dataclass(frozen=True)
class Selection:
    """What to pull: studies of these accession numbers, or of the days from ``first`` to ``last``, both included."""

    accessions: tuple[str, ...] = ()
    first: date | None = None
    last: date | None = None

    def searches(self) -> Iterator[tuple[str, str, str]]:
        """Attribute, its tag, and the value, for one search after the other."""
        for number in self.accessions:
            yield "AccessionNumber", _ACCESSION, number
        if self.first is not None and self.last is not None:
            for days in range((self.last - self.first).days + 1):
                yield "StudyDate", _STUDY_DATE, (self.first + timedelta(days)).strftime("%Y%m%d")

    def __len__(self) -> int:
        days = 0 if self.first is None or self.last is None else (self.last - self.first).days + 1
        return len(self.accessions) + max(0, days)
