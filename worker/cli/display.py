"""Progress and summary tables: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from schema.queries import SubmissionCounts
from worker.intake.scan import SubmissionReport
from worker.supervisor import Night

if TYPE_CHECKING:
    from worker.intake.pull import PullReport

_LINE_SECONDS = 10.0


class _Display:
    """A bar on a terminal; elsewhere a line every ten seconds, when something changed."""

    def __init__(self, console: Console, description: str) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._line_at = time.monotonic()
        self._line = ""
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                console=console, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task(description, total=None)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _show(self, description: str, done: int, total: int | None) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=description, completed=done, total=total)
            return
        line = f"{description}: {done}" + (f" of {total}" if total is not None else "")
        if line != self._line and time.monotonic() - self._line_at >= _LINE_SECONDS:
            self._console.print(line, highlight=False)
            self._line, self._line_at = line, time.monotonic()


class NightDisplay(_Display):
    """How far ``carina run`` is."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, "Registering")

    def update(self, counts: SubmissionCounts, *, scanning: bool) -> None:
        """Show films that are through against films registered so far."""
        description = "Registering and processing" if scanning else "Processing"
        self._show(description, counts.finished, counts.finished + counts.open)


class ScanDisplay(_Display):
    """How far ``carina submit`` is."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, "Files seen")

    def update(self, report: SubmissionReport) -> None:
        """Show the files seen so far; their total is not known before the end."""
        self._show("Files seen", report.files_seen, None)


class PullDisplay(_Display):
    """How far ``carina pull`` is."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, "Searches")

    def update(self, report: PullReport) -> None:
        """Show the searches done against all, and what they brought."""
        waiting = f", waiting {report.waiting}" if report.waiting else ""
        self._show(
            f"Films pulled {report.pulled}, known {report.known}{waiting}; searches", report.searched, report.searches
        )


class MergeDisplay(_Display):
    """How far ``carina merge`` is."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, "Merging")
        self._description = "Merging"

    def next_file(self, number: int, count: int) -> None:
        """Go on with file ``number`` of ``count``."""
        self._description = f"Merging file {number} of {count}"

    def update(self, done: int, total: int) -> None:
        """Show films and other files looked at against all of the file."""
        self._show(self._description, done, total)


def summary_table(night: Night) -> Table:
    """What came of a run, a line for each way a file can end."""
    counts = night.counts
    table = Table(title=f"Submission {night.submission_id}", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    table.add_column("films", justify="right")
    table.add_column("")
    rows = (
        ("done", counts.done, f"{counts.flagged} of them flagged"),
        ("duplicate", counts.duplicate, "same UID, same content"),
        ("alias", counts.alias, "other UID, same content"),
        ("conflict", counts.conflict, "same UID, other content: carina conflicts list"),
        ("ineligible", counts.ineligible, "not a frontal chest radiograph"),
        ("failed", counts.failed, "carina failed" if counts.failed else ""),
        ("rejected", counts.rejected, "DICOM that cannot be read: carina failed" if counts.rejected else ""),
        ("waiting", counts.open, ""),
        ("not DICOM", counts.not_dicom, "ignored"),
    )
    for name, number, remark in rows:
        if number or name in {"done", "failed"}:
            table.add_row(name, str(number), remark)
    table.caption = f"{night.seconds:.0f} s. Research use, not a medical device."
    table.caption_justify = "left"
    return table


def submission_table(report: SubmissionReport, *, dry_run: bool) -> Table:
    """What was, or would be, registered and why the rest was not."""
    title = "Would be registered (dry run)" if dry_run else f"Submission {report.submission_id}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    table.add_column("files", justify="right")
    table.add_column("")
    for name, number, remark in report.lines():
        table.add_row(name, str(number), remark)
    return table
