"""What do the headers of these files say?

Headers are read in threads: on a network share most of the time is waiting, and the
database commits meanwhile. The parser holds the interpreter, but it is not the bottleneck:
``benchmarks/scan.py`` has figures.
"""

from __future__ import annotations

import logging
import threading
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from worker.errors import FilmError
from worker.film.reader import FilmHeader, read_header
from worker.film.source import open_member, open_source
from worker.intake.folders import FoundFile
from worker.intake.register import Examined

log = logging.getLogger(__name__)

_THREADS = 8
#: Files a thread reads in one go: handing over fewer would cost more than reading them.
_PIECE = 128


class HeaderReader:
    """Reads headers of files and of members of zip archives; never raises for a file's sake."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="header")
        self._lock = threading.Lock()
        self._archive: tuple[tuple[str, int], zipfile.ZipFile] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        if self._archive is not None:
            self._archive[1].close()

    def start(self, files: Sequence[FoundFile]) -> list[Future[list[Examined]]]:
        """Begin to read the headers of ``files``; the results together are in their order."""
        pieces = (files[start : start + _PIECE] for start in range(0, len(files), _PIECE))
        return [self._threads.submit(self.read, piece) for piece in pieces]

    def read(self, files: Sequence[FoundFile]) -> list[Examined]:
        """Read the headers of ``files`` here and now."""
        return [self._examine(file) for file in files]

    def _examine(self, file: FoundFile) -> Examined:
        try:
            return Examined(file.source, self._header(file))
        except FilmError as error:
            return Examined(file.source, None, error.code, error.detail)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
            return Examined(file.source, None, "BAD_ARCHIVE", "a member is damaged or packed in an unknown way")
        except OSError as error:
            return Examined(file.source, None, "READ_ERROR", type(error).__name__)
        except Exception as error:
            # A fault of ours on one header must not stop the others; its words may hold identity.
            log.error("a header could not be read: %s", type(error).__name__)
            return Examined(file.source, None, "BAD_HEADER", type(error).__name__)

    def _header(self, file: FoundFile) -> FilmHeader:
        if not file.source.member:
            with open_source(Path(file.path)) as (stream, size):
                return read_header(stream, size)
        with open_member(self._opened(file), file.source.member) as (stream, size):
            return read_header(stream, size)

    def _opened(self, file: FoundFile) -> zipfile.ZipFile:
        """The archive of a member, opened once for all that follow each other.

        One that is replaced stays open for the threads that still read from it and is closed
        with the last reference.
        """
        key = (file.path, file.source.modified_ns)
        with self._lock:
            if self._archive is None or self._archive[0] != key:
                self._archive = (key, zipfile.ZipFile(file.path))
            return self._archive[1]
