"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from worker.errors import CarinaError


@contextmanager
def writing_to(folder: Path, what: str) -> Iterator[None]:
    """Make ``folder`` and turn what the disk refuses inside the block into words.

    Raises
    ------
    worker.errors.CarinaError
        ``folder`` cannot be made or written; ``what`` says in the message what was being written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise CarinaError(
            f"{what} cannot be written to {folder}: {error.strerror}. Free space or choose another folder, "
            "then run it again."
        ) from None


@contextmanager
def whole_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file that appears under ``path`` when the block ends well, and leaves nothing otherwise.

    ``mode`` is ``"w"`` (UTF-8, line ends as written) or ``"wb"``.
    """
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".carina-", suffix=".part")
    try:
        # mkstemp gives the file to its owner alone: give it what open() would have given.
        os.fchmod(descriptor, 0o666 & ~_umask())
        with os.fdopen(descriptor, mode, **text) as stream:
            yield stream
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
