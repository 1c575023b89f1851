"""UIDs of what we make: the same result has the same UIDs, another result has others.

Sending again after a failure replaces nothing and doubles nothing, and a new bundle's result stands beside
the old one. A UID is ``2.25.`` and a 128-bit number (PS3.5 B.2), the beginning of an HMAC-SHA256 under the
site key: nobody without the key can tie it to the film.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from schema.outputs import OutputKind


def keyed_uid(site_key: bytes, *parts: str) -> str:
    """A UID that depends on the site key and ``parts`` only."""
    message = "\0".join(("dicom-uid", *parts)).encode("utf-8", "surrogatepass")
    digest = hmac.new(site_key, message, hashlib.sha256).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def pseudonymous_uid(site_key: bytes, uid: str) -> str:
    """What stands for ``uid`` in an export without identity: the same for every object of this site."""
    return keyed_uid(site_key, "pseudonym", uid)


@dataclass(frozen=True)
class ResultIdentifiers:
    """UIDs of the objects made of one result.

    ``source_uid`` is the film's SOP Instance UID as the objects name it, ``content_hash`` and ``bundle`` are
    SHA-256 in hex, ``revision`` is that of our own reading and post-processing.
    """

    site_key: bytes
    source_uid: str
    content_hash: str
    bundle: str
    revision: int

    def instance(self, kind: OutputKind, part: str = "") -> str:
        """SOP Instance UID of the object of a kind; ``part`` tells several of one kind apart."""
        return self._uid("instance", kind, part)

    def series(self, kind: OutputKind) -> str:
        """Series Instance UID of the objects of a kind."""
        return self._uid("series", kind)

    def inner(self, kind: OutputKind, part: str) -> str:
        """Any other UID inside an object of a kind: tracking, dimension organisation."""
        return self._uid("inner", kind, part)

    def _uid(self, *what: str) -> str:
        return keyed_uid(
            self.site_key, self.source_uid, self.content_hash, self.bundle, str(self.revision), *map(str, what)
        )
