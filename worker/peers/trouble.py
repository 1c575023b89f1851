"""Every way another system can fail us, in one table.

Each code says whose trouble it is, and so what is done about it:

==================  ===========================================================
the trouble         what happens to what was to be sent or fetched
==================  ===========================================================
the peer's          nothing: the peer is left alone for a while, then tried again
passing             tried again with backoff, a limited number of times
lasting             given up at once, for a person to look at
==================  ===========================================================

Messages carry no identifier, no path and no word of the peer's own: those may quote a film.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from worker import errors
from worker.errors import CarinaError


class Whose(StrEnum):
    """What a trouble is about, and whether it passes by itself."""

    PEER = "peer"
    PASSING = "passing"
    LASTING = "lasting"


@dataclass(frozen=True)
class Definition:
    """Whose trouble a code is, what it means and what to do next."""

    whose: Whose
    meaning: str
    advice: str


_BY_ITSELF = "Nothing to do: it is tried again."

TROUBLES: dict[str, Definition] = {
    "UNREACHABLE": Definition(
        Whose.PEER, "The other system cannot be reached.", "Check its address, the network and the firewall."
    ),
    "TLS_FAILED": Definition(
        Whose.PEER, "No encrypted connection comes about.", "Check the certificates on both sides and their dates."
    ),
    "ASSOCIATION_REFUSED": Definition(
        Whose.PEER,
        "The other system refuses the association.",
        "Make our AE title and address known to it, and check its own AE title.",
    ),
    "NOT_AUTHORISED": Definition(Whose.PEER, "The other system does not let us in.", "Check token, user and password."),
    "WRONG_ADDRESS": Definition(
        Whose.PEER, "There is no such service at this address.", "Check the URL: it ends where /studies would follow."
    ),
    "SECRET_MISSING": Definition(
        Whose.PEER, "A file with a secret or a certificate cannot be read here.", "Put it there, readable by this user."
    ),
    "OUT_OF_RESOURCES": Definition(Whose.PEER, "The other system takes nothing just now.", _BY_ITSELF),
    "NO_ANSWER": Definition(Whose.PASSING, "The other system broke off or gave no answer.", _BY_ITSELF),
    "SERVER_ERROR": Definition(Whose.PASSING, "The other system failed over this object.", "Look into its own log."),
    "SOP_CLASS_REFUSED": Definition(
        Whose.LASTING,
        "The other system does not take this kind of object.",
        "Leave this output out for it, or send the overlay instead.",
    ),
    "CANNOT_UNDERSTAND": Definition(
        Whose.LASTING, "The other system cannot understand the object.", "Look into its own log."
    ),
    "DATA_MISMATCH": Definition(
        Whose.LASTING, "The other system says that the object does not match its class.", "Look into its own log."
    ),
    "REFUSED": Definition(Whose.LASTING, "The other system refuses the object.", "Look into its own log."),
    "OBJECT_GONE": Definition(Whose.LASTING, "The other system no longer has the object.", "Nothing to do."),
    "OUTPUT_FAILED": Definition(
        Whose.LASTING, "The output could not be made of the result.", "Report it with carina deliver status --json."
    ),
    # Nobody's trouble: why a delivery was abandoned.
    "SUPERSEDED": Definition(Whose.LASTING, "Another result speaks for the film now.", "Nothing to do."),
    "NOTHING_TO_SEND": Definition(Whose.LASTING, "The result has nothing of this kind.", "Nothing to do."),
    "DESTINATION_REMOVED": Definition(
        Whose.LASTING, "The destination was removed.", "Add it again, then: carina deliver resend --state abandoned"
    ),
}


class PeerError(CarinaError):
    """Another system failed us; ``str()`` is a sentence and what to do next.

    Parameters
    ----------
    code
        A key of :data:`TROUBLES`.
    detail
        What was seen: a status or a kind of error, never what the peer itself said.
    """

    def __init__(self, code: str, detail: str = "") -> None:
        self.code = code
        self.detail = detail
        super().__init__(f"{sentence(code, detail)} {advice(code)}")

    @property
    def whose(self) -> Whose:
        """What the trouble is about."""
        return TROUBLES[self.code].whose


def sentence(code: str, detail: str = "") -> str:
    """What a code of ours or of :data:`worker.errors.CODES` means, and what was seen."""
    if code not in TROUBLES:
        return errors.sentence(code, detail)
    meaning = TROUBLES[code].meaning
    return f"{meaning[:-1]}: {detail}." if detail else meaning


def advice(code: str) -> str:
    """What a person does next about ``code``."""
    return TROUBLES[code].advice if code in TROUBLES else errors.advice(code)


#: Lowest and highest status → code: DICOM PS3.4 table B.2-1 and PS3.7 annex C.
_STATUSES = (
    (0x0122, 0x0122, "SOP_CLASS_REFUSED"),
    (0x0124, 0x0124, "REFUSED"),
    (0xA700, 0xA7FF, "OUT_OF_RESOURCES"),
    (0xA900, 0xA9FF, "DATA_MISMATCH"),
    (0xC000, 0xCFFF, "CANNOT_UNDERSTAND"),
)
#: Stored (B000, B006, B007 with a remark), or there already.
_STORED = (0x0000, 0x0001, 0x0107, 0x0111, 0x0116, 0xB000, 0xB006, 0xB007)


def storage_trouble(status: int) -> PeerError | None:
    """What the status of a C-STORE, or the failure reason of a STOW-RS, says; None for a stored object."""
    if status in _STORED:
        return None
    code = next((code for low, high, code in _STATUSES if low <= status <= high), "SERVER_ERROR")
    return PeerError(code, f"status {status:04X}H")


_HTTP = {
    400: "REFUSED",
    401: "NOT_AUTHORISED",
    403: "NOT_AUTHORISED",
    404: "WRONG_ADDRESS",
    405: "WRONG_ADDRESS",
    407: "NOT_AUTHORISED",
    408: "NO_ANSWER",
    409: "REFUSED",
    410: "OBJECT_GONE",
    413: "REFUSED",
    415: "SOP_CLASS_REFUSED",
    422: "REFUSED",
    429: "OUT_OF_RESOURCES",
    502: "UNREACHABLE",
    503: "OUT_OF_RESOURCES",
    504: "UNREACHABLE",
    507: "OUT_OF_RESOURCES",
}


def http_trouble(status: int) -> PeerError:
    """What an HTTP status other than success says (PS3.18 tables 10.4.3-1, 10.5.3-1 and 10.6.3-1)."""
    if 300 <= status < 400:
        return PeerError("WRONG_ADDRESS", f"HTTP status {status}: it has moved")
    fallback = "SERVER_ERROR" if status >= 500 else "REFUSED"
    return PeerError(_HTTP.get(status, fallback), f"HTTP status {status}")
