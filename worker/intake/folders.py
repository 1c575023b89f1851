"""Which files lie below a folder, or in a zip archive?

Folders are streamed, never listed: a folder of a million files costs no more memory than one
of ten. Links to folders are followed, each target once; a folder that contains itself is
named and skipped. What cannot be opened is named and does not stop the rest.
"""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from worker.intake.sources import Roots, trouble
from worker.queue.outcomes import SourceReference

#: Endings of files that are still being written by someone.
PARTIAL_SUFFIXES = (".part", ".partial", ".filepart", ".crdownload", ".tmp", ".temp", ".download", ".swp", "~")
#: Folders this deep are listed at once, so that no deeper chain holds more folders open.
_STREAMED_DEPTH = 100
_ZIP_START = (b"PK\x03\x04", b"PK\x05\x06")
_ENCRYPTED = 0x1


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file, or a member of a zip archive.

    ``path`` is the file's absolute path on this machine, ``changed_ns`` when its permissions
    or contents last changed (ns since 1970).
    """

    path: str
    source: SourceReference
    changed_ns: int


@dataclass(frozen=True, slots=True)
class ScanProblem:
    """A file or folder that could not be opened: a code of :data:`worker.errors.CODES` and words."""

    path: str
    source: SourceReference
    code: str
    detail: str = ""
    changed_ns: int = 0


class LeftOut(StrEnum):
    """A file that is passed over on purpose."""

    PARTIAL = "still being written, by its name"
    SPECIAL = "not a regular file"


Item = FoundFile | ScanProblem | LeftOut
Found = TypeVar("Found", bound=Item)


def is_partial(name: str) -> bool:
    """Whether a file's name says that it is still being written."""
    return name.lower().endswith(PARTIAL_SUFFIXES)


def scan(roots: Roots, paths: Sequence[Path]) -> Iterator[Item]:
    """Everything below ``paths`` (files, folders, zip archives), in no particular order.

    Members stand for their archive. Hidden files and folders (their names start with a dot)
    below a given folder are passed over: they are snapshots and droppings of file managers.
    A path that was given by name is taken whatever it is called.
    """
    for path in paths:
        top = os.path.normpath(path.absolute())
        yield from with_members(walk(roots, top), given=top)


def with_members(items: Iterable[Found], given: str = "") -> Iterator[Found | FoundFile | ScanProblem]:
    """``items``, but instead of each archive its members; ``given`` is a path that was given by name."""
    for item in items:
        if isinstance(item, FoundFile) and is_archive(item.path, given=item.path == given):
            yield from members(item)
        else:
            yield item


def walk(roots: Roots, top: str) -> Iterator[Item]:
    """As :func:`scan` for one absolute path, but an archive is one file."""
    try:
        status = os.stat(top)  # noqa: PTH116 - paths are text here: objects would double the cost of a file
    except OSError as error:
        yield _problem(roots, top, error)
        return
    if stat.S_ISDIR(status.st_mode):
        yield from _Walk(roots).below(top)
    elif stat.S_ISREG(status.st_mode):
        yield _found(roots, top, status)
    else:
        yield LeftOut.SPECIAL


def is_archive(path: str, *, given: bool = False) -> bool:
    """Whether to look inside a file: a zip archive by name, or by content if it was ``given`` by name."""
    if not given and not path.lower().endswith(".zip"):
        return False
    try:
        with open(path, "rb") as stream:  # noqa: PTH123
            start = stream.read(132)
    except OSError:
        return False
    if start[128:132] == b"DICM":
        return False
    return start[:4] in _ZIP_START or path.lower().endswith(".zip")


def members(archive: FoundFile) -> Iterator[FoundFile | ScanProblem]:
    """The files inside a zip archive; nothing is unpacked.

    An archive that is damaged, or has encrypted members, is a ``BAD_ARCHIVE`` problem.
    """
    try:
        with zipfile.ZipFile(archive.path) as opened:
            # Of two members of one name the last one counts, as when the archive is unpacked.
            entries = {entry.filename: entry for entry in opened.infolist() if not entry.is_dir()}
    except OSError as error:
        yield ScanProblem(archive.path, archive.source, *trouble(error))
        return
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        yield ScanProblem(archive.path, archive.source, "BAD_ARCHIVE")
        return
    encrypted = 0
    for name, entry in entries.items():
        if entry.flag_bits & _ENCRYPTED:
            encrypted += 1
        elif not name.rpartition("/")[2].startswith("."):
            yield FoundFile(archive.path, _member_of(archive.source, name, entry.file_size), archive.changed_ns)
    if encrypted:
        yield ScanProblem(archive.path, archive.source, "BAD_ARCHIVE", f"{encrypted} members are encrypted")


def _member_of(source: SourceReference, name: str, size: int) -> SourceReference:
    return SourceReference(source.root, source.path, name, size, source.modified_ns)


def _found(roots: Roots, path: str, status: os.stat_result) -> FoundFile:
    root, stored = roots.locate(path)
    source = SourceReference(root, stored, "", status.st_size, status.st_mtime_ns)
    return FoundFile(path, source, status.st_ctime_ns)


def _problem(roots: Roots, path: str, error: OSError) -> ScanProblem:
    return _unread(roots, path, *trouble(error))


def _unread(roots: Roots, path: str, code: str, detail: str) -> ScanProblem:
    root, stored = roots.locate(path)
    return ScanProblem(path, SourceReference(root, stored, "", 0, 0), code, detail)


@dataclass(slots=True)
class _Folder:
    path: str
    identity: tuple[int, int]
    entries: Iterator[os.DirEntry[str]]


class _Walk:
    """One walk: the folders open now, from the top down, and the link targets already visited."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots
        self._open: list[_Folder] = []
        self._linked: set[tuple[int, int]] = set()

    def below(self, top: str) -> Iterator[Item]:
        problem = self._enter(top, link=False)
        if problem is not None:
            yield problem
        while self._open:
            folder = self._open[-1]
            try:
                entry = next(folder.entries, None)
            except OSError as error:
                yield _problem(self._roots, folder.path, error)
                entry = None
            if entry is None:
                self._open.pop()
            elif not entry.name.startswith("."):
                item = self._take(entry)
                if item is not None:
                    yield item

    def _take(self, entry: os.DirEntry[str]) -> Item | None:
        try:
            if entry.is_dir():
                return self._enter(entry.path, link=entry.is_symlink())
            if is_partial(entry.name):
                return LeftOut.PARTIAL
            status = entry.stat()
        except OSError as error:
            return _problem(self._roots, entry.path, error)
        return _found(self._roots, entry.path, status) if stat.S_ISREG(status.st_mode) else LeftOut.SPECIAL

    def _enter(self, path: str, *, link: bool) -> ScanProblem | None:
        """Go down into a folder; says why not, if not."""
        try:
            status = os.stat(path)  # noqa: PTH116
            identity = (status.st_dev, status.st_ino)
            if any(folder.identity == identity for folder in self._open):
                return _unread(self._roots, path, "DIRECTORY_LOOP", "")
            if link:
                if identity in self._linked:
                    return None
                self._linked.add(identity)
            entries: Iterator[os.DirEntry[str]] = os.scandir(path)
            if len(self._open) >= _STREAMED_DEPTH:
                entries = iter(list(entries))
        except OSError as error:
            return _problem(self._roots, path, error)
        self._open.append(_Folder(path, identity, entries))
        return None
