"""Where does a file lie, said so that another machine can find it too?

A source is a named root and a path below it (``CARINA_ROOTS``). Stored paths are plain text:
bytes of a file name that are not UTF-8, and the percent sign itself, are percent-encoded.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes

from worker.errors import CarinaError, FilmError
from worker.queue.outcomes import SourceReference
from worker.settings import Settings

#: Clocks of shares keep times more or less exactly: a difference of less is no change.
_MODIFIED_TOLERANCE_NS = 2_000_000_000
_TO_ENCODE = re.compile("[%\udc80-\udcff]")


class Roots:
    """The named root folders of this machine."""

    def __init__(self, settings: Settings) -> None:
        folders = {name: os.path.normpath(folder) for name, folder in settings.root_folders.items()}
        # Longest first: the most specific root wins.
        self._folders = sorted(
            ((folder if folder.endswith("/") else folder + "/", name) for name, folder in folders.items()),
            key=lambda item: -len(item[0]),
        )

    def locate(self, path: str) -> tuple[str, str]:
        """Root name and stored path of the absolute ``path``.

        Raises
        ------
        CarinaError
            It lies under none of the roots.
        """
        for folder, name in self._folders:
            if path.startswith(folder):
                return name, stored_path(path[len(folder) :])
            if path + "/" == folder:
                return name, "."
        raise CarinaError(
            "A given path lies under none of the folders in CARINA_ROOTS. Add NAME=FOLDER for it to CARINA_ROOTS."
        )


def stored_path(path: str) -> str:
    """A path of this operating system as storable text; see :func:`system_path`."""
    return _TO_ENCODE.sub(lambda match: f"%{ord(match[0]) & 0xFF:02X}", path)


def system_path(stored: str) -> str:
    """The path that :func:`stored_path` was given."""
    return os.fsdecode(unquote_to_bytes(stored)) if "%" in stored else stored


def resolve(settings: Settings, source: SourceReference) -> Path:
    """The file of ``source`` on this machine, unchanged since it was registered.

    Raises
    ------
    FilmError
        ``SOURCE_MISSING`` (also for a root this machine does not know), ``SOURCE_CHANGED``,
        ``NO_PERMISSION``, ``READ_ERROR``.
    """
    folder = settings.root_folders.get(source.root)
    if folder is None:
        raise FilmError("SOURCE_MISSING", "its root is unknown here, see CARINA_ROOTS")
    path = folder / system_path(source.path)
    try:
        status = path.stat()
    except OSError as error:
        raise FilmError(*trouble(error)) from None
    changed = abs(status.st_mtime_ns - source.modified_ns) > _MODIFIED_TOLERANCE_NS
    if changed or (not source.member and status.st_size != source.size):
        raise FilmError("SOURCE_CHANGED", "size or time differ from those at registration")
    return path


def trouble(error: OSError) -> tuple[str, str]:
    """Error code and detail (without a path) for what the operating system said about a file."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "SOURCE_MISSING", ""
    if isinstance(error, PermissionError):
        return "NO_PERMISSION", ""
    if error.errno == errno.ELOOP:
        return "DIRECTORY_LOOP", "a link points to itself"
    return "READ_ERROR", errno.errorcode.get(error.errno or 0, type(error).__name__)
