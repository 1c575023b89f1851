"""Where does a received film lie, and when is it safe there?

::

    spool/incoming/<process>/   films that are being received; swept at the start
    spool/films/a/b/<sha256>.dcm

A film comes into place by a link, which appears whole or not at all and never replaces
another one: the same bytes sent twice are one file.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from worker.errors import CarinaError
from worker.intake.sources import Roots
from worker.queue.outcomes import SourceReference
from worker.settings import Settings

_DIGITS = "0123456789abcdef"


class Spool:
    """The folder ``spool`` of the home folder; made where it is missing.

    Raises
    ------
    CarinaError
        It cannot be made.
    """

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.spool
        self.incoming = self.folder / "incoming"
        self.films = self.folder / "films"
        try:
            self._make()
        except OSError as error:
            raise CarinaError(
                f"The listener's spool cannot be made: {error.strerror}. It lies in the home folder: see CARINA_HOME."
            ) from None
        self._roots = Roots(settings)

    @contextmanager
    def ours(self) -> Iterator[None]:
        """Hold the spool for this process and those it starts.

        Raises
        ------
        CarinaError
            Another listener holds it.
        """
        with (self.folder / "listener.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                raise CarinaError(
                    "Another listener uses this home folder. Stop it, or give it more processes: "
                    "carina listen --processes 2"
                ) from None
            yield

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for what this process is receiving; gone afterwards."""
        folder = self.incoming / str(os.getpid())
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self, process_id: int | None = None) -> int:
        """Delete what a listener that died was receiving: of one process, or of all; returns how many films."""
        folders = [self.incoming / str(process_id)] if process_id else list(self.incoming.iterdir())
        swept = 0
        for folder in folders:
            with suppress(FileNotFoundError, NotADirectoryError):
                swept += sum(1 for _ in folder.iterdir())
            shutil.rmtree(folder, ignore_errors=True)
        return swept

    def keep(self, temporary: Path) -> SourceReference:
        """Bring a received file to the disk and into its place; it survives a power cut from now on.

        Raises
        ------
        OSError
            The disk is full or fails; what was received is not kept.
        """
        with temporary.open("rb+") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            os.fsync(stream.fileno())
        place = self.films / digest[0] / digest[1] / f"{digest}.dcm"
        with suppress(FileExistsError):
            os.link(temporary, place)
        # Also where the file was there already: whoever put it there may not have got so far yet.
        _flush_folder(place.parent)
        temporary.unlink()
        status = place.stat()
        root, path = self._roots.locate(str(place))
        return SourceReference(root, path, "", status.st_size, status.st_mtime_ns)

    def _make(self) -> None:
        for folder in (self.folder, self.incoming, self.films):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # All at once, so that no film waits for a folder to reach the disk.
        for first in _DIGITS:
            for second in _DIGITS:
                (self.films / first / second).mkdir(parents=True, exist_ok=True)
            _flush_folder(self.films / first)
        for folder in (self.films, self.folder, self.folder.parent):
            _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
