"""Which of several machines registers this file, when they know nothing of each other?

A cluster's scheduler starts ``carina run --shard I/N`` N times; each walks the same folder and
takes its share, into a database file of its own. ``carina merge`` puts the files together.

A readable film goes by a hash of its SOP Instance UID, so all files of one UID are in one
shard and duplicates and conflicts are settled there. Two UIDs with one content may be in two
shards: merging makes one the other's alias. A file without a readable header goes by a hash of
its place. Only trouble that may be another machine's alone (no permission, a share that is
away) is noted by every shard that has it: if each left such a file to the others, it could be
lost. Merging keeps one note, or none where a shard could read the file.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import URL

from schema.database import Database
from worker.errors import CODES, CarinaError, Kind
from worker.intake.register import Examined
from worker.settings import Settings

_TEXT = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")


@dataclass(frozen=True)
class Shard:
    """Number ``number`` of ``count`` shards, counted from 1."""

    number: int
    count: int

    def takes(self, file: Examined) -> bool:
        """Whether this shard registers ``file``; what it registered before it always takes."""
        if file.header is not None:
            return self._owns("uid", file.header.sop_instance_uid)
        if file.code is None or CODES[file.code].kind is Kind.TRANSIENT:
            return True
        return self._owns("place", file.source.root, file.source.path, file.source.member)

    def _owns(self, *parts: str) -> bool:
        digest = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1


def parse_shard(text: str) -> Shard:
    """``"3/16"`` as the third of sixteen shards; raises ValueError, in words for the user."""
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a shard: write I/N, as in 3/16 for the third of sixteen.")
    shard = Shard(int(match[1]), int(match[2]))
    if not 1 <= shard.number <= shard.count:
        raise ValueError(f"There is no shard {text.strip()}: shards are counted from 1 to {shard.count}.")
    return shard


def shard_file(settings: Settings, shard: Shard, folder: Path | None = None) -> Path:
    """The database file of a shard: in ``folder``, or in the folder ``shards`` of the home folder."""
    place = settings.home / "shards" if folder is None else folder.expanduser().absolute()
    return place / f"carina-{shard.number}-of-{shard.count}.sqlite"


def use_shard(settings: Settings, shard: Shard, folder: Path | None = None) -> Settings:
    """Settings with which this process and its children work in the shard's own database.

    The file is made if it is not there yet. The site key, the bundles and the engines stay
    those of the home folder. The settings are put into the environment too, for the worker
    process: a shard has no broker, since no other machine could do what a ticket asks for.

    Raises
    ------
    CarinaError
        The folder cannot be made.
    """
    file = shard_file(settings, shard, folder)
    try:
        # The database names patients' files.
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CarinaError(
            f"The folder {file.parent} for shard databases cannot be made: {error.strerror}. "
            "Name another one with --shard-folder."
        ) from None
    url = URL.create("sqlite", database=str(file))
    database = Database(url)
    try:
        if database.version() is None:
            database.upgrade()
    finally:
        database.close()
    text = url.render_as_string(hide_password=False)
    for name, value in (("CARINA_DATABASE_URL", text), ("CARINA_BROKER_URL", "")):
        os.environ.pop(f"{name}_FILE", None)
        os.environ[name] = value
    return replace(settings, database_url=text, broker_url="")
