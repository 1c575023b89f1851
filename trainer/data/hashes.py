"""SHA-256 of files, remembered by size and time of change, so that a large data set is not read twice."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from trainer.data.records import some_of
from trainer.errors import DataError

_THREADS = 4  # hashing lets go of the interpreter, and a disk serves several readers better than one


class FileHashes:
    """Hashes of files, kept in a JSON file between runs; a context manager, which writes it at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[object]] = {}
        self._changed = False
        with contextlib.suppress(OSError, ValueError):  # without it all files are read again
            self._known = json.loads(path.read_text("utf-8"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._changed:
            return
        descriptor, partial = tempfile.mkstemp(dir=self._path.parent, prefix=f"{self._path.name}.")
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(self._known, stream)
        Path(partial).replace(self._path)

    def of(self, paths: Iterable[Path]) -> dict[Path, str]:
        """Path → SHA-256 in hex digits.

        Raises
        ------
        DataError
            Files that cannot be read, up to twenty named.
        """
        wanted = list(dict.fromkeys(paths))
        with ThreadPoolExecutor(_THREADS) as threads:
            hashes = dict(zip(wanted, threads.map(self._of, wanted), strict=True))
        unreadable = [f"{path} ({said.strerror})" for path, said in hashes.items() if isinstance(said, OSError)]
        if unreadable:
            raise DataError(f"Files that cannot be read: {some_of(unreadable)}.")
        return {path: said for path, said in hashes.items() if isinstance(said, str)}

    def _of(self, path: Path) -> str | OSError:
        try:
            facts = path.stat()
            known = self._known.get(str(path))
            if known and known[:2] == [facts.st_size, facts.st_mtime_ns]:
                return str(known[2])
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            return error
        self._changed = True
        self._known[str(path)] = [facts.st_size, facts.st_mtime_ns, digest]
        return digest
