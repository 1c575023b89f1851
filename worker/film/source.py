"""Where a film's bytes come from: a file, or a member of a zip archive."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from worker.errors import FilmError

MAX_FILE_BYTES = 512 << 20


@dataclass(frozen=True)
class FilmSource:
    """A film's file; ``member`` names the film inside it when the file is a zip archive."""

    path: Path
    member: str | None = None


@contextmanager
def open_source(path: Path, member: str | None = None) -> Iterator[tuple[BinaryIO, int]]:
    """Open a film's bytes: a seekable stream at its start, and how many bytes it has.

    Trouble of disk or archive inside the ``with`` block ends as a FilmError too, so keep
    nothing but reading in it.

    Raises
    ------
    FilmError
        ``SOURCE_MISSING``, ``NO_PERMISSION``, ``READ_ERROR``, ``BAD_ARCHIVE``, ``FILE_TOO_LARGE``.
    """
    try:
        if member is None:
            # Unbuffered: the reader asks for the one piece it needs.
            with path.open("rb", buffering=0) as stream:
                yield cast(BinaryIO, stream), path.stat().st_size
        else:
            with zipfile.ZipFile(path) as archive, open_member(archive, member) as opened:
                yield opened
    except FileNotFoundError:
        raise FilmError("SOURCE_MISSING") from None
    except PermissionError:
        raise FilmError("NO_PERMISSION") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
        raise FilmError("BAD_ARCHIVE", "a member is damaged or packed in an unknown way") from None
    except OSError as error:
        raise FilmError("READ_ERROR", type(error).__name__) from None


@contextmanager
def open_member(archive: zipfile.ZipFile, member: str) -> Iterator[tuple[BinaryIO, int]]:
    """Open a member of an archive that is already open: as :func:`open_source`.

    No more bytes are unpacked than the directory of the archive declares, and no member
    that declares more than :data:`MAX_FILE_BYTES`.
    """
    try:
        information = archive.getinfo(member)
    except KeyError:
        raise FilmError("SOURCE_MISSING", "the archive no longer has this member") from None
    if information.flag_bits & 0x1:
        raise FilmError("BAD_ARCHIVE", "the member is encrypted")
    if information.file_size > MAX_FILE_BYTES:
        raise FilmError("FILE_TOO_LARGE", f"a member unpacks to more than {MAX_FILE_BYTES >> 20} MiB")
    with archive.open(information) as stream:
        yield cast(BinaryIO, stream), information.file_size
