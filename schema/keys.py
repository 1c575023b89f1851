"""Pseudonymous keys: who and what, without saying so.

Every key is an HMAC-SHA256 under the site key. A plain hash of a record number could be
found by trying all numbers; without the site key an HMAC cannot. Only ``location_hash`` is
a plain hash: it stands beside the path that it is made of.
"""

from __future__ import annotations

import hashlib
import hmac

#: Share of patients whose films are never trained on, so that they can judge.
HELD_OUT_SHARE = 0.2


def _keyed(site_key: bytes, *parts: str) -> str:
    return hmac.new(site_key, "\0".join(parts).encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def uid_key(site_key: bytes, uid: str) -> str:
    """Key of a SOP, study or series instance UID: 64 hex digits; ``""`` for no UID."""
    return _keyed(site_key, "uid", uid) if uid else ""


def patient_key(site_key: bytes, issuer: str, patient_id: str, *, otherwise: str) -> str:
    """Key of a patient: 64 hex digits.

    Without a patient ID the film cannot be tied to another one: its study (``otherwise``)
    stands for the patient.
    """
    if not patient_id:
        return _keyed(site_key, "study", otherwise)
    return _keyed(site_key, "patient", issuer, patient_id)


def location_hash(root: str, path: str, member: str, size: int, modified_ns: int) -> str:
    """Where a file lay and what it was like then, as 64 hex digits.

    Paths can be longer than an entry of an index may be (2.7 kB on PostgreSQL); this cannot.
    """
    place = f"{root}\0{path}\0{member}\0{size}\0{modified_ns}"
    return hashlib.sha256(place.encode("utf-8", "surrogatepass")).hexdigest()


def is_held_out(key: str) -> bool:
    """Whether a patient's films are kept from training; fixed for a key, for ever."""
    digest = hashlib.sha256(b"held-out\0" + key.encode("ascii")).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64
