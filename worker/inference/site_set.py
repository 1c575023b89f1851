"""A site's own films, on which an engine that computes in 8 bits must prove itself.

``<home>/parity-set/<preparation>/<film>.npz`` holds what a network would see of a film: the
preprocessed picture in half precision, and nothing else; no header, no name, no path. The
folder's name is a digest of the preprocessing and the size, so every bundle that sees films in
that way shares them; the file's name is the SHA-256 of the picture, so a film counts once and a changed
file is noticed. Burnt-in writing would be part of a picture: choose films without.

What float32 says about the films is computed when an engine is judged
(:mod:`worker.inference.site_gate`), with the bundle in question.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from schema.bundle import Manifest, Member
from worker.errors import CarinaError, FilmError
from worker.film.pool import DecoderDied, DecoderPool
from worker.film.source import FilmSource
from worker.inference.engines.base import FloatArray

FOLDER = "parity-set"


@dataclass(frozen=True)
class SiteFilms:
    """The site's films as one member sees them; ``digest`` changes with any of them, and is empty without any."""

    files: tuple[Path, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.files)

    def pictures(self) -> Iterator[FloatArray]:
        """The films, float32 (channels, height, width), one after the other.

        Raises
        ------
        CarinaError
            A file is damaged or was changed.
        """
        for file in self.files:
            yield _read(file).astype(np.float32)


@dataclass(frozen=True)
class Addition:
    """What came of adding films: how many are new, how many were known, and why others were refused."""

    added: int
    known: int
    refused: tuple[tuple[Path, str], ...]


def site_films(home: Path, member: Member) -> SiteFilms:
    """The films that are there for a member's preprocessing and size."""
    files = tuple(sorted((home / FOLDER / preparation_of(member)).glob("*.npz")))
    names = "\n".join(file.stem for file in files)
    return SiteFilms(files, hashlib.sha256(names.encode()).hexdigest() if files else "")


def preparation_of(member: Member) -> str:
    """A digest of how a member sees a film: its preprocessing steps and size."""
    return hashlib.sha256(json.dumps(_preparation(member), sort_keys=True).encode()).hexdigest()[:16]


def add_films(
    home: Path,
    manifests: Iterable[Manifest],
    paths: Iterable[Path],
    *,
    decoders: int = 1,
    memory_bytes: int,
    timeout_seconds: float,
    progress: Callable[[int], None] = lambda done: None,
) -> Addition:
    """Prepare films for every member of some bundles and keep the pictures.

    Parameters
    ----------
    manifests
        Bundles whose 8-bit engines are to be judged on these films.
    paths
        DICOM files, or folders that are searched for them.
    decoders, memory_bytes, timeout_seconds
        As for :class:`worker.film.pool.DecoderPool`.
    progress
        Called with the number of files done.

    Raises
    ------
    CarinaError
        A path does not exist, or the home folder cannot be written.
    """
    members = {preparation_of(member): member for manifest in manifests for member in manifest.members}
    files = list(_files(paths))
    added = known = 0
    refused: list[tuple[Path, str]] = []
    plan = {name: member.preprocess for name, member in members.items()}
    try:
        for name, member in members.items():
            _make_folder(home, name, member)
        with (
            DecoderPool(plan, size=decoders, memory_bytes=memory_bytes, timeout_seconds=timeout_seconds) as pool,
            ThreadPoolExecutor(decoders) as threads,
        ):
            results = threads.map(lambda file: _add(pool, file, home / FOLDER), files)
            for done, (file, result) in enumerate(zip(files, results, strict=True), 1):
                if isinstance(result, str):
                    refused.append((file, result))
                elif result:
                    added += 1
                else:
                    known += 1
                progress(done)
    except OSError as error:
        raise CarinaError(f"The site set in {home} cannot be written: {error.strerror or error}.") from None
    return Addition(added, known, tuple(refused))


def _preparation(member: Member) -> dict[str, Any]:
    return {"shape": [member.channels, member.height, member.width], "preprocess": list(member.preprocess)}


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.is_file())
        elif path.exists():
            yield path
        else:
            raise CarinaError(f"There is no file or folder {path}.")


def _add(pool: DecoderPool, file: Path, folder: Path) -> bool | str:
    """Whether the film is new, or why it cannot be read."""
    try:
        prepared = pool.prepare(FilmSource(file))
    except FilmError as error:
        return str(error)
    except DecoderDied as error:
        return f"WORKER_CRASHED: {error}"
    new = [_keep(folder / name, picture) for name, picture in prepared.tensors.items()]
    return any(new)


def _make_folder(home: Path, name: str, member: Member) -> None:
    folder = home / FOLDER / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "preparation.json").write_text(json.dumps(_preparation(member), indent=2) + "\n", "utf-8")


def _keep(folder: Path, picture: FloatArray) -> bool:
    """Store a picture under its digest; False if it is there."""
    half = picture.astype(np.float16)
    target = folder / f"{_digest(half)}.npz"
    if target.exists():
        return False
    partial = folder / f".{uuid.uuid4().hex}"
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            np.savez_compressed(stream, input=half)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return True


def _read(file: Path) -> np.ndarray[Any, np.dtype[np.float16]]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            half = np.asarray(arrays["input"], np.float16)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CarinaError(f"The site film {file} cannot be read ({error}): remove it and add it again.") from None
    if _digest(half) != file.stem:
        raise CarinaError(f"The site film {file} was changed: remove it and add it again.")
    return half


def _digest(half: np.ndarray[Any, np.dtype[np.float16]]) -> str:
    return hashlib.sha256(np.ascontiguousarray(half).tobytes() + str(half.shape).encode()).hexdigest()[:32]
