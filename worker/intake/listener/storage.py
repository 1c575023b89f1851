"""What becomes of a film that a sender stores (C-STORE, PS3.4 annex B)?

===========  ==========================================================================
status       when
===========  ==========================================================================
0x0000       the film is on the disk, in its place and in the ledger
0x0122       a SOP class that is taken only to say this: DX for processing
0xA700       no room (disk, backlog) or no database now; the sender tries again later
0xA900       the data set is not what the request says it is
0xC000       the header cannot be read
===========  ==========================================================================

Every refusal carries an error comment. Pixels are not looked at here.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sqlalchemy.exc import DBAPIError

from schema.database import DatabaseVersionError, is_busy
from worker.errors import CODES, FilmError
from worker.film.reader import FilmHeader, read_header
from worker.film.source import open_source
from worker.intake.eligibility import refusal
from worker.intake.listener.gate import Gate
from worker.intake.listener.spool import Spool
from worker.intake.listener.tally import Tally
from worker.intake.register import Examined

log = logging.getLogger(__name__)

SUCCESS = 0x0000
CLASS_NOT_SUPPORTED = 0x0122
OUT_OF_RESOURCES = 0xA700
NOT_AS_REQUESTED = 0xA900
CANNOT_UNDERSTAND = 0xC000

#: Digital X-ray image for processing: negotiated only to be refused with a reason.
FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"

_SEND_THE_OTHER = "For processing: send the image for presentation"
#: Characters of an error comment (0000,0902), an LO.
_LONGEST_COMMENT = 64


class Commit(Protocol):
    """Registers one film; returns once it is committed."""

    def register(self, file: Examined, lane: str) -> None:
        """Register ``file`` in ``lane``."""


@dataclass(frozen=True)
class Request:
    """A C-STORE request whose data set lies in a temporary file."""

    sop_class_uid: str
    sop_instance_uid: str
    abstract_syntax: str
    calling_ae: str
    file: Path


@dataclass(frozen=True)
class Answer:
    """Status and, for a refusal, the error comment (at most 64 plain characters)."""

    status: int
    comment: str = ""


class Storage:
    """Stores films for all associations of a process. Safe between threads."""

    def __init__(self, spool: Spool, commit: Commit, gate: Gate, tally: Tally) -> None:
        self._spool = spool
        self._commit = commit
        self._gate = gate
        self._tally = tally

    def store(self, request: Request, lane: str) -> Answer:
        """Store one film, or refuse it; never raises for a film's sake."""
        try:
            return self._store(request, lane)
        except FilmError as error:
            # No detail: it may quote the file.
            return self._refuse(CANNOT_UNDERSTAND, CODES[error.code].meaning, error.code)
        except OSError as error:
            log.error("a film could not be kept: %s", error.strerror or type(error).__name__)
            return self._refuse(OUT_OF_RESOURCES, "The disk gave an error", "disk")
        except (DBAPIError, DatabaseVersionError) as error:
            if not (isinstance(error, DBAPIError) and is_busy(error)):
                log.error("a film could not be registered: %s", type(error).__name__)
            return self._refuse(OUT_OF_RESOURCES, "The database does not answer", "database")

    def _store(self, request: Request, lane: str) -> Answer:
        if request.sop_class_uid == FOR_PROCESSING:
            return self._refuse(CLASS_NOT_SUPPORTED, _SEND_THE_OTHER, "FOR_PROCESSING")
        missing = self._gate.missing()
        if missing is not None:
            return self._refuse(OUT_OF_RESOURCES, f"No room: {missing}", missing)
        header = self._header(request.file)
        if (header.sop_class_uid, header.sop_instance_uid) != (request.sop_class_uid, request.sop_instance_uid):
            return self._refuse(NOT_AS_REQUESTED, "Data set and request name different objects", "mismatch")
        if request.sop_class_uid != request.abstract_syntax:
            return self._refuse(NOT_AS_REQUESTED, "The request is not of its presentation context", "mismatch")
        found = refusal(header)
        if found is not None and found.code == "FOR_PROCESSING":
            return self._refuse(NOT_AS_REQUESTED, _SEND_THE_OTHER, found.code)
        source = self._spool.keep(request.file)
        self._commit.register(Examined(source, header, calling_ae=request.calling_ae), lane)
        self._tally.received(source.size)
        return Answer(SUCCESS)

    def _header(self, file: Path) -> FilmHeader:
        with open_source(file) as (stream, size):
            return read_header(stream, size)

    def _refuse(self, status: int, comment: str, reason: str) -> Answer:
        self._tally.refused(reason)
        return Answer(status, comment[:_LONGEST_COMMENT])
